"""A hub that is away, slow, broken or hostile: waiting ends, one error says why, nothing is left.

The hub is a real HTTP server (``hub_server.py``); the hub client asks it as it asks the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import small_model
from content_rows import compared
from hub_server import (
    COMMIT,
    Fault,
    Hub,
    changed,
    cut_off,
    files_of,
    in_circles,
    longer,
    outside,
    serving,
    silent,
    status,
    steady,
    trickling,
)

from llmfit.errors import LlmfitError, ModelNotFound
from llmfit.evaluate.fetch import fetch_data
from llmfit.hub import hub_reachable
from llmfit.models import data_path, local_folder, resolve, why_no_weights
from llmfit.records import Comparison, EvaluationSettings, from_json
from llmfit.testing import make_model

pytestmark = pytest.mark.slow
WEIGHTS = "model.safetensors"
ANSWER_S = 1
"""HF_HUB_DOWNLOAD_TIMEOUT of these tests; fetches end after six times as long without a byte."""
PATIENCE_S = 60
"""More than all waiting together, on a busy machine."""
AGAIN = "the same again"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the small model under every name, as the environment tells it."""
    folder = small_model.write(tmp_path_factory.mktemp("model") / "tiny")
    with serving(Hub(files_of(folder))) as running:
        yield running


@pytest.fixture(scope="module")
def home(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """HF_HOME and what else a user would set, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("hf_home")
    with pytest.MonkeyPatch.context() as patch:
        endpoint = f"http://127.0.0.1:{hub.port}"
        patch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", ANSWER_S)
        yield folder


@pytest.fixture(autouse=True)
def environment(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the environment, which every test begins with anew."""
    for name, value in settings(hub, home).items():
        monkeypatch.setenv(name, value)


def settings(hub: Hub, home: Path) -> dict[str, str]:
    """What tells a process of the hub."""
    return {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": str(ANSWER_S),
        "HF_HUB_ETAG_TIMEOUT": str(ANSWER_S),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def unfinished(home: Path) -> list[str]:
    """Files that the hub client did not finish."""
    return [path.name for path in home.rglob("*.incomplete")]


def fetched(model: str) -> Path:
    """A model's folder, from its name to its last file."""
    return Path(local_folder(resolve(model)).path)


# ---------------------------------------------------------------- faults and what is said

FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "error-500": (status(500), ("the hub answers 500", AGAIN)),
    "error-503": (status(503), ("the hub answers 503", AGAIN)),
    "too-many": (status(429, **{"Retry-After": "300"}), ("the hub answers 429", AGAIN)),
    "gated": (status(403, error="GatedRepo"), ("is gated on the hub", "hf auth login")),
    "private": (status(401), ("the hub refuses org/private (401)", "hf auth login")),
    "forbidden": (status(403, WEIGHTS), ("the hub refuses org/forbidden (403)", "hf auth login")),
    "gone": (status(404, WEIGHTS, error="EntryNotFound"), ("is not there", AGAIN)),
    "circle": (in_circles, ("TooManyRedirects", AGAIN)),
    "damaged": (changed(WEIGHTS), ("model.safetensors of org/damaged came damaged", AGAIN)),
    "spoilt": (changed("config.json"), ("config.json of org/spoilt came damaged", AGAIN)),
    "longer": (longer(WEIGHTS), ("Consistency check failed", AGAIN)),
    "outside": (outside, ("planted.json", AGAIN)),
    "broken": (cut_off(WEIGHTS, 5000), ("broke off", AGAIN)),
    "mute": (silent("/org/mute"), ("the hub was not reached (ReadTimeout)", "a local folder")),
    "mute-list": (silent(f"/tree/{COMMIT}"), ("nothing of org/mute-list came", AGAIN)),
    "mute-file": (silent(WEIGHTS), ("nothing of org/mute-file came", AGAIN)),
    "trickle": (trickling(WEIGHTS), ("nothing of org/trickle came", AGAIN)),
    "waiting": (
        status(429, WEIGHTS, **{"Retry-After": "300"}),
        ("HTTP Error 429", "Waiting 301", AGAIN),
    ),
}


@pytest.fixture(scope="module")
def outcomes(hub: Hub, home: Path) -> dict[str, tuple[Exception | None, float]]:
    """What came of every faulty model, and the seconds that it took; some at a time."""
    hub.faults.update({f"org/{name}": fault for name, (fault, _) in FAULTS.items()})

    def attempt(name: str) -> tuple[Exception | None, float]:
        began = time.monotonic()
        try:
            fetched(f"org/{name}")
        except LlmfitError as exc:
            return exc, time.monotonic() - began
        return None, time.monotonic() - began

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        for key, value in settings(hub, home).items():
            patch.setenv(key, value)
        waiting_first = list(FAULTS)[::-1]
        return dict(zip(waiting_first, pool.map(attempt, waiting_first), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_error_in_time(
    name: str, outcomes: dict[str, tuple[Exception | None, float]]
) -> None:
    """It names the model or file and the fault, and the next command; no waiting is without end."""
    error, seconds = outcomes[name]
    assert isinstance(error, ModelNotFound), error
    for words in FAULTS[name][1]:
        assert words in str(error)
    assert seconds < PATIENCE_S


def test_no_fault_leaves_anything_or_stands_in_the_way(
    hub: Hub, home: Path, outcomes: dict[str, tuple[Exception | None, float]]
) -> None:
    """Nothing half, nothing outside; with the fault gone the same command works, and what had come
    whole is not fetched again."""
    assert outcomes and unfinished(home) == []
    assert not list(home.parent.rglob("planted.json"))
    before = {name: hub.count("GET", f"org/{name}", "/tokenizer.json") for name in FAULTS}
    assert before["broken"] == 1
    hub.faults.clear()
    for name in ("broken", "damaged", "spoilt"):
        folder = fetched(f"org/{name}")
        assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.count("GET", "org/broken", "/tokenizer.json") == 1


def test_a_connection_that_breaks_now_and_then_is_gone_on_with(hub: Hub, home: Path) -> None:
    """Twice cut off in the middle: the rest is asked for, and the file is whole."""
    hub.faults["org/shaky"] = cut_off(WEIGHTS, 400_000, times=2)
    assert (fetched("org/shaky") / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.count("GET", "org/shaky", WEIGHTS) == 3


def test_two_that_want_one_model_fetch_it_once(hub: Hub, home: Path) -> None:
    """The second waits for the first, longer than it would for a silent hub."""
    hub.faults["org/wanted"] = steady(WEIGHTS, pause_s=0.75)
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        folders = set(pool.map(fetched, ["org/wanted"] * 2))
    assert len(folders) == 1 and hub.count("GET", "org/wanted", WEIGHTS) == 1
    assert time.monotonic() - began > 6 * ANSWER_S


def test_a_failed_download_is_no_run(hub: Hub, tmp_path: Path) -> None:
    """The error comes before a run is begun; its folder and the store hold none."""
    hub.faults["org/late"] = status(403, WEIGHTS)
    with pytest.raises(ModelNotFound, match="refuses org/late"):
        compared(Path("org/late"), tmp_path, "sdpa", "bf16", server=None)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "store.db").exists()


def test_a_hub_that_only_fails_is_not_reachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not then look for evaluation data there one after the other; refusals are answers."""
    assert hub_reachable()
    for fault, reachable in ((status(503), False), (status(429), False), (status(403), True)):
        hub.faults[""] = fault
        assert hub_reachable() is reachable
    hub.faults[""] = silent("/")
    assert not hub_reachable()
    del hub.faults[""]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert not hub_reachable()


def test_evaluation_data_come_once_and_in_time(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that gives none ends the waiting before any row; what it gives, rows find offline."""
    lines = data_path("hellaswag.jsonl").read_bytes().splitlines(keepends=True)[:20]
    hub.data = {"Rowan/hellaswag": {"README.md": b"# h\n", "validation.jsonl": b"".join(lines)}}
    asked = make_model(), EvaluationSettings(tasks=("hellaswag",))
    hub.faults["Rowan/hellaswag"] = silent("Rowan")
    began = time.monotonic()
    fetch_data(*asked)
    assert time.monotonic() - began < PATIENCE_S
    del hub.faults["Rowan/hellaswag"]
    fetch_data(*asked)
    assert hub.count("GET", "Rowan/hellaswag", "validation.jsonl") == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = (
        "from llmfit.evaluate.datasets_ import load_questions\n"
        "print(len(load_questions(None).rows))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.strip() == "20"


# ---------------------------------------------------------------- the real command


def command(*words: str) -> list[str]:
    """``llmfit compare`` in places of its own, with rows of a second."""
    return [
        sys.executable, "-m", "llmfit", "compare", *words, "--no-eval", "--prompt-tokens", "8",
        "--new-tokens", "3", "--repeats", "1", "--threads", "1",
    ]  # fmt: skip


def places(folder: Path) -> list[str]:
    """Options that keep everything in ``folder``."""
    named = {"--cache-dir": "cache", "--runs-dir": "runs", "--store": "store.db"}
    return [word for flag, name in named.items() for word in (flag, str(folder / name))]


def test_a_model_of_the_hub_is_compared_and_then_needs_no_hub(
    hub: Hub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is fetched once whatever the number of rows; afterwards the hub may be away."""
    words = command("org/tiny", "--backends", "bf16,sdpa", "--format", "json", *places(tmp_path))
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = from_json(Comparison, done.stdout)
    assert [row.status for row in found.rows] == ["ok", "ok"] and found.model.name == "org/tiny"
    assert [hub.count("GET", "org/tiny", name) for name in (WEIGHTS, "/config.json")] == [1, 1]
    assert hub.count("GET", "org/tiny", "README.md") == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert why_no_weights(resolve("org/tiny")) is None
    assert fetched("org/tiny").name == COMMIT


def until(what: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_ends_a_download_and_leaves_nothing(hub: Hub, home: Path, tmp_path: Path) -> None:
    """Exit code 130, no traceback, no half of a file, no run; so does the end of the parent."""
    hub.faults["org/slow"] = trickling(WEIGHTS, pause_s=0.02)
    words = command("org/slow", "--backends", "sdpa", *places(tmp_path))
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until(lambda: hub.count("GET", "org/slow", WEIGHTS) == 1 and bool(unfinished(home)))
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and out == "", err
    assert "interrupted" in err and "Traceback" not in err
    assert unfinished(home) == []
    assert not list((tmp_path / "runs").glob("*")) and not (tmp_path / "store.db").exists()


def test_a_download_ends_with_its_parent(hub: Hub, home: Path) -> None:
    """Killed outright: its child removes what it had begun, and ends."""
    hub.faults["org/slower"] = trickling(WEIGHTS, pause_s=0.02)
    code = "from llmfit.models import local_folder, resolve; local_folder(resolve('org/slower'))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        until(lambda: hub.count("GET", "org/slower", WEIGHTS) == 1 and bool(unfinished(home)))
        process.kill()
    until(lambda: unfinished(home) == [])
