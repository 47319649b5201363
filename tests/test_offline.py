"""No telemetry, and with --offline no network at all: sockets are forbidden, and every try told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forbidden_network import environment, tried

from llmfit.models import data_path

SMALL = ("--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1", "--warmup", "0")
_NIGHT = """
[defaults]
backends = ["sdpa"]
tasks = []
[workloads.short]
prompt_tokens = 8
new_tokens = 4
repeats = 1
[[models]]
model = "embedded"
"""


def run(
    folder: Path, *words: str, alone: bool = False, **changed: str
) -> subprocess.CompletedProcess[str]:
    """The command line where it cannot reach anyone; ``alone`` in a network namespace of its own.

    Skips the test where the system allows no namespace.
    """
    before = ["unshare", "-n"] if alone else []
    if (
        alone
        and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may make no network namespace")
    return subprocess.run(
        [*before, sys.executable, "-m", "llmfit", *words],
        cwd=folder,
        env=environment(folder, **changed),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_a_try_is_told(tmp_path: Path) -> None:
    """The guard itself: Python's sockets and a native program's are stopped and noted."""
    given = environment(tmp_path)
    fetch = "import urllib.request as r; r.urlopen('http://127.0.0.1:9')"
    assert subprocess.run(
        [sys.executable, "-c", fetch], env=given, capture_output=True, check=False
    )
    assert any(line.startswith("socket.getaddrinfo") for line in tried(tmp_path))
    if "LD_PRELOAD" in given:
        subprocess.run(["curl", "-s", "http://127.0.0.1:9"], env=given, check=False)
        assert any(line.startswith("native connect") for line in tried(tmp_path))


@pytest.mark.slow
def test_a_comparison_of_what_is_here_connects_to_nobody(
    tmp_path: Path, artifact_cache: Path
) -> None:
    """Without --offline: no library of theirs phones home, nor does lm-eval."""
    done = run(
        tmp_path, "compare", "--backends", "bf16,gptq,gguf", "--limit", "2", *SMALL,
        "--cache-dir", str(artifact_cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not scored" not in done.stdout and done.stdout.count("failed") == 0, done.stdout
    assert tried(tmp_path) == []


@pytest.mark.slow
def test_offline_everything_that_is_here_works(tmp_path: Path) -> None:
    """Without any network: a folder is compared, a model planned, a night run."""
    model = tmp_path / "my-model"
    shutil.copytree(data_path("embedded"), model)
    (tmp_path / "night.toml").write_text(_NIGHT)
    runs = (
        ("compare", "./my-model", "--backends", "sdpa", *SMALL, "--no-eval", "--offline",
         "--format", "json", "--out", "result.json"),
        ("plan", "qwen2.5-7b", "--gpu-gb", "8", "--offline"),
        ("report", "--config", "night.toml", "--offline", "--quiet"),
    )  # fmt: skip
    for words in runs:
        done = run(tmp_path, *words, alone=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert '"offline": true' in (tmp_path / "result.json").read_text()
    assert tried(tmp_path) == []


@pytest.mark.slow
def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    """For a model that is not here: one clear error, at once, and no try."""
    for words in (("compare", "org/model"), ("plan", "org/model"), ("generate", "org/model")):
        prompt = ("--prompt", "x") if words[0] == "generate" else ()
        done = run(tmp_path, *words, *prompt, "--offline")
        assert done.returncode == 1
        assert "org/model is not downloaded, and --offline keeps from asking" in done.stderr
    assert tried(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (("report", "--webhook"), ("--offline", "--webhook")),
        (("report", "--wandb", "x"), ("--offline", "--wandb")),
        (("report", "--mlflow", "https://me:pw@host/x"), ("--offline", "--mlflow https://me:***@")),
        (("history", "--store", "postgresql://me@host/x"), ("--offline", "postgresql")),
        (("compare", "--store", "postgresql://me@host/x"), ("--offline", "postgresql")),
    ],
)
def test_offline_excludes_what_is_on_a_network(
    words: tuple[str, ...], both: tuple[str, str], tmp_path: Path
) -> None:
    """A usage error that names both, before anything runs."""
    done = run(tmp_path, *words, "--offline", LLMFIT_WEBHOOK_URL="https://hooks.example.com/x")
    assert done.returncode == 2
    assert all(each in done.stderr for each in both), done.stderr
    assert tried(tmp_path) == []


def test_offline_a_store_that_a_variable_names_is_refused(tmp_path: Path) -> None:
    """It is not on the command line, and told all the same."""
    done = run(tmp_path, "history", "--offline", LLMFIT_STORE="postgresql://me:pw@host/x")
    assert done.returncode == 2 and "me:***@host" in done.stderr
    assert tried(tmp_path) == []


def test_offline_trackers_of_files_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow in a database file, and wandb's own offline mode."""
    from llmfit.network import offline
    from llmfit.nightly.sinks import check_sinks

    monkeypatch.setenv("WANDB_MODE", "offline")
    with offline():
        check_sinks(mlflow="sqlite:///x.db", wandb="x")
        check_sinks(mlflow="./mlruns", wandb=None)


def test_offline_ends_with_its_block() -> None:
    """Also in the order of several, and where it is not asked for."""
    import llmfit
    from llmfit.child import environment as given
    from llmfit.network import is_offline

    assert not is_offline()
    with llmfit.offline():
        with llmfit.offline(False):
            assert is_offline()
        assert given()["HF_DATASETS_OFFLINE"] == "1"
    assert not is_offline() and "HF_DATASETS_OFFLINE" not in given()
    assert given()["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_offline_is_for_the_whole_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python as from the command line."""
    import llmfit

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with llmfit.offline(), pytest.raises(llmfit.LlmfitError, match="keeps from asking the hub"):
        llmfit.compare("org/model")


def test_offline_a_store_on_a_network_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No process is started, no machine described."""
    import llmfit
    from llmfit.errors import UsageError
    from llmfit.executors import local

    monkeypatch.setattr(local, "fork_server", lambda *_: pytest.fail("a process was started"))
    keeping = llmfit.Keeping(store="postgresql://me@host/x")
    with llmfit.offline(), pytest.raises(UsageError, match="store postgresql://me@host/x"):
        llmfit.compare(backends=["bf16"], keeping=keeping)
