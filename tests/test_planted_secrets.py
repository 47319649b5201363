"""Secrets are planted wherever they may lie, a backend tells them all, and none is found again."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from llmfit.records import ModelSpec, Plan, Workload
from llmfit.runner.isolate import run_isolated

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
_PLUGIN = '''
"""Formats that tell all they know, each in another way."""
import os
import sys
from dataclasses import replace

from llmfit.errors import ModelLoadError
from llmfit.testing import FakeBackend, FakeModel


def everything():
    token = open(os.environ["HF_TOKEN_PATH"]).read()
    return f"{dict(os.environ)} {token}"


class Leaky(FakeBackend):
    """Prints them, names a stage by one, and has them in its notes."""

    id = label = "leaky"

    def load(self, plan, progress=None):
        print(everything(), flush=True)
        os.write(2, everything().encode())
        progress(f"401 for {os.environ['HF_TOKEN']}", 1, 2)
        model = FakeModel()
        model.info = replace(model.info, notes=(everything(), os.environ["WANDB_API_KEY"]))
        return model


class Leaky2(FakeBackend):
    """Fails by an error that holds one."""

    id = label = "leaky2"

    def load(self, plan, progress=None):
        raise ModelLoadError(f"401 for {os.environ['HF_TOKEN']}: {everything()}")


class Leaky3(FakeBackend):
    """Ends its process in the middle of a dump."""

    id = label = "leaky3"

    def load(self, plan, progress=None):
        for name, value in os.environ.items():
            print(f"{name}={value}", flush=True)
        print("token of the file:", everything()[-30:], flush=True)
        os._exit(7)
'''
_NIGHT = """
title = "A night"
store = "store.db"
[defaults]
backends = ["leaky", "leaky2", "leaky3"]
tasks = []
[workloads.short]
prompt_tokens = 8
new_tokens = 8
repeats = 5
[[models]]
model = "embedded"
[[models]]
name = "gone"
model = "/nowhere/hf_PLANTED_by_name"
"""


class _Hook(BaseHTTPRequestHandler):
    taken: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the plugin, a stored token and a night's settings."""
    home = tmp_path_factory.mktemp("home")
    plugin = home / "plugin"
    about = plugin / "leaky-1.dist-info"
    about.mkdir(parents=True)
    (plugin / "leaky.py").write_text(_PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[llmfit.backends]\nleaky = leaky:Leaky\nleaky2 = leaky:Leaky2\nleaky3 = leaky:Leaky3\n"
    )
    (home / "token").write_text("hf_PLANTED_in_file\n")
    (home / "night.toml").write_text(_NIGHT)
    (home / "tmp").mkdir()
    return home


@pytest.fixture(scope="module")
def environment(home: Path) -> Iterator[dict[str, str]]:
    """Everything planted, in an environment whose every folder lies in ``home``."""
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(home / "plugin"), str(ROOT)]),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "TMPDIR": str(home / "tmp"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_TOKEN": "hf_PLANTED_by_name",
        "HUGGING_FACE_HUB_TOKEN": "hf_PLANTED_older_name",
        "HUGGINGFACEHUB_API_TOKEN": "hf_PLANTED_other_name",
        "WANDB_API_KEY": "PLANTED0wandb0key",
        "AWS_SECRET_ACCESS_KEY": "PLANTED+aws/secret",
        "MLFLOW_TRACKING_PASSWORD": "PLANTED mlflow",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "LLMFIT_WEBHOOK_URL": f"http://127.0.0.1:{server.server_port}/services/PLANTEDhook",
        "DATABASE_URL": "postgresql://me:PLANTEDpg@127.0.0.1:1/x",
        "SHORT_URL": "redis://me:PLANT@127.0.0.1:1",
        "LLMFIT_STORE": str(home / "store.db"),
    }
    server.shutdown()
    server.server_close()


def run(
    environment: dict[str, str], home: Path, *words: str, **changed: str
) -> subprocess.CompletedProcess[str]:
    """The command line, in ``home``."""
    return subprocess.run(
        [sys.executable, "-m", "llmfit", *words],
        cwd=home,
        env={**environment, **changed},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def leaks(home: Path) -> list[str]:
    """Files below ``home`` with a planted value in them, packed or not."""
    found = []
    for file in home.rglob("*"):
        if not file.is_file() or file.name in ("token", "night.toml"):
            continue
        if b"PLANT" in file.read_bytes():
            found.append(str(file))
        if file.suffix == ".db":
            found += [f"{file}: {table}" for table, cell in _cells(file) if b"PLANT" in cell]
    return found


def _cells(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every cell of a SQLite file, unpacked where it is packed."""
    with sqlite3.connect(file) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                for cell in row:
                    packed = isinstance(cell, bytes)
                    yield table, zlib.decompress(cell) if packed else str(cell).encode()


def test_a_night_tells_none(environment: dict[str, str], home: Path) -> None:
    """Records, logs, store, report, page, XML, message, terminal, and a tracker's error.

    The rows, their reasons and what they printed are there all the same.
    """
    tracker = "http://me:PLANTEDtracker@127.0.0.1:1/x?token=PLANTEDquery"
    done = run(
        environment, home, "report", "--config", "night.toml", "--webhook", "--mlflow", tracker,
        "--out", "report", "--tag", "hf_PLANTED_by_name",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "PLANT" not in done.stdout + done.stderr
    assert "MLflow at http://me:***@127.0.0.1" in done.stderr
    (message,) = _Hook.taken
    assert b"PLANT" not in message
    assert {file.name for file in (home / "report").iterdir()} == {
        "report.html", "report.md", "report.json", "junit.xml",
    }  # fmt: skip
    logs = {file.name: file.read_text() for file in home.glob("data/llmfit/runs/*/*.log")}
    assert logs.keys() == {"leaky.log", "leaky2.log", "leaky3.log"}
    assert "'HF_TOKEN': '***'" in logs["leaky.log"] and "HF_TOKEN=***" in logs["leaky3.log"]
    assert "token of the file" in logs["leaky3.log"]
    told = (home / "report" / "report.json").read_text()
    assert "401 for ***" in told and "exit code 7" in told
    assert "--mlflow 'http://me@127.0.0.1:1/x?token=***'" in told
    assert leaks(home) == []


def test_progress_tells_none(
    environment: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch, embedded: ModelSpec
) -> None:
    """Stages are shown as they come."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(home / "plugin"))
    stages: list[str] = []
    plan = Plan(
        backend="leaky",
        model=embedded,
        device="cpu",
        workload=Workload(prompt_tokens=8, new_tokens=2, repeats=1, warmup=0),
        evaluation=None,
    )
    run_isolated(plan, progress=lambda stage, done, total: stages.append(stage))
    assert "401 for ***" in stages and "PLANT" not in "".join(stages)


def test_a_recorded_command_tells_none(environment: dict[str, str], home: Path) -> None:
    """Whatever word of it is one."""
    (home / environment["HF_TOKEN"]).mkdir()
    done = run(environment, home, "plan", "--format", "json", "--runs-dir", environment["HF_TOKEN"])
    assert done.returncode == 0, done.stderr
    assert '"command": "llmfit plan --format json --runs-dir ***"' in done.stdout
    assert "PLANT" not in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("history",),
        ("history", "--store", "postgresql://me:PLANTEDpw@127.0.0.1:1/x?password=PLANTEDquery"),
        ("report", "--webhook", "https://hooks.example.com/PLANTEDpath"),
        ("report", "--webhook=https://hooks.example.com/PLANTEDpath"),
        ("reproduce", "hf_PLANTED_by_name"),
        ("plan", "./hf_PLANTED_in_file"),
    ],
)
def test_an_error_tells_none(
    words: tuple[str, ...], environment: dict[str, str], home: Path
) -> None:
    """Of a database that is not there, and of what was typed."""
    place = {"LLMFIT_STORE": environment["DATABASE_URL"]} if words == ("history",) else {}
    done = run(environment, home, *words, **place)
    assert done.returncode in (1, 2) and done.stderr
    assert "PLANT" not in done.stdout + done.stderr
