"""Bundles: whole, as each engine wants them, and seen to work by starting it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.deployer import Deployer
from llmfit.engines.registry import get_engine
from llmfit.errors import DoesNotFit, LlmfitError, UsageError
from llmfit.planner import Machine, find_machine
from llmfit.records import ModelSpec, from_json
from llmfit.serving.bundle import check_place, deploy
from llmfit.serving.settling import Settled, settle, with_path
from llmfit.serving.starting import free_port, started
from llmfit.serving_records import Bundle
from llmfit.testing import make_model


def llmfit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmfit", *words], capture_output=True, text=True, check=False
    )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """This machine, on its CPU, without records of its own."""
    return find_machine(device="cpu", runs_dir=str(tmp_path / "none"))


def settled(machine: Machine, backend: str = "sdpa", engine: str = "transformers") -> Settled:
    deployer = Deployer(backend=backend, device="cpu")
    found = settle(deployer.plan, get_engine(engine), machine)
    return with_path(found, deployer.plan.model.path)


# ---------------------------------------------------------------- settings


def test_the_context_is_what_fits(machine: Machine) -> None:
    """All of a small model's; of a large one on a small card what the planner says fits."""
    plan = Deployer(device="cpu").plan
    engine = get_engine("transformers")
    assert settle(plan, engine, machine).served.context == plan.model.max_position_embeddings
    card = find_machine(gpu="RTX 4060", gpu_gb=7, runs_dir="none")
    large = replace(plan, backend="awq", model=make_model())
    found = settle(large, get_engine("vllm"), card)
    assert 1000 < found.served.context < 131_072 and found.served.device == "cuda"
    assert found.served.gpu_share is not None and 0.8 < found.served.gpu_share < 0.9
    assert any("of the model's" in note for note in found.notes)
    with pytest.raises(DoesNotFit, match="has room for"):
        settle(replace(large, backend="bf16"), get_engine("vllm"), card)
    with pytest.raises(DoesNotFit, match="not 131072"):
        settle(large, get_engine("vllm"), card, context=131_072)
    with pytest.raises(UsageError, match="exceeds"):
        settle(large, get_engine("vllm"), card, context=10**6)
    with pytest.raises(UsageError, match="takes no context"):
        settle(plan, engine, machine, context=64)


# ---------------------------------------------------------------- the folder


def test_a_bundle_is_whole_and_says_what_it_is(machine: Machine, tmp_path: Path) -> None:
    """Its files are the model's, with their sums; its script starts the engine in its folder."""
    out = tmp_path / "out"
    plan = Deployer(device="cpu").plan
    bundle = deploy(
        plan, settled(machine), get_engine("transformers"), out, start=False, command="llmfit x"
    )
    assert from_json(Bundle, (out / "bundle.json").read_bytes()) == bundle
    assert bundle.validation == "checked" and bundle.command[:3] == (
        "transformers",
        "serve",
        "model",
    )
    for file in bundle.files:
        content = (out / file.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
        source = Path(plan.model.path) / Path(file.path).name
        assert content == source.read_bytes()
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= {
        file.path for file in bundle.files
    }
    summed = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=out, check=False)
    assert summed.returncode == 0
    script = out / "serve.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    told = (out / "README.md").read_text()
    assert "No stored run has figures" in told and "llmfit bench-server" in told


def test_a_script_takes_host_port_and_further_words(machine: Machine, tmp_path: Path) -> None:
    """Seen by a program of the engine's name that prints what it is given."""
    out = tmp_path / "a folder"
    deploy(
        Deployer(device="cpu").plan, settled(machine), get_engine("transformers"), out, start=False
    )
    (tmp_path / "transformers").write_text('#!/bin/sh\npwd; printf "%s\\n" "$@"\n')
    (tmp_path / "transformers").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PORT": "1234"}
    done = subprocess.run(
        [out / "serve.sh", "--log-level", "info"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    words = done.stdout.split("\n")
    assert words[0] == str(out) and words[1:3] == ["serve", "model"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "1234"
    assert words[-3:-1] == ["--log-level", "info"]


def test_a_folder_that_holds_something_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="no empty folder"):
        check_place(tmp_path)
    plan = Deployer(device="cpu").plan
    with pytest.raises(UsageError):
        deploy(plan, settled(machine), get_engine("transformers"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_what_is_not_whole_leaves_nothing(
    machine: Machine, tmp_path: Path, embedded: ModelSpec, missing: str
) -> None:
    """A model without tokenizer, or with weights that are cut off."""
    source = tmp_path / "model"
    source.mkdir()
    for file in Path(embedded.path).iterdir():
        content = file.read_bytes()
        if file.name != missing:
            (source / file.name).write_bytes(content)
        elif missing == "model.safetensors":
            (source / file.name).write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    broken = with_path(settled(machine), str(source))
    with pytest.raises(LlmfitError):
        deploy(Deployer(device="cpu").plan, broken, get_engine("transformers"), out, start=False)
    assert not out.exists()


def test_a_models_name_and_links_reach_nothing(
    machine: Machine, tmp_path: Path, embedded: ModelSpec
) -> None:
    """A name with a line of shell in it, and a file that is a link to somebody else's."""
    (tmp_path / "secret").write_text("secret")
    source = tmp_path / "evil\ntouch owned\n#$(touch owned)"
    source.mkdir()
    for file in Path(embedded.path).iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "notes.json").symlink_to(tmp_path / "secret")
    plan = Deployer(str(source), device="cpu").plan
    found = settle(plan, get_engine("transformers"), machine)
    assert set(found.served.name) <= set("eviltouchowned-sdpa")
    out = tmp_path / "out"
    bundle = deploy(
        plan, with_path(found, str(source)), get_engine("transformers"), out, start=False
    )
    assert "model/notes.json" not in {file.path for file in bundle.files}
    assert not (out / "model" / "notes.json").exists()
    subprocess.run([out / "serve.sh"], cwd=out, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert not list(tmp_path.rglob("owned"))
    told = (out / "README.md").read_text()
    assert not any(line.startswith("touch") for line in told.splitlines())


def test_the_hubs_cache_is_links_to_blobs(
    machine: Machine, tmp_path: Path, embedded: ModelSpec
) -> None:
    """Whose files are copied as such."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(Path(embedded.path).iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    out = tmp_path / "out"
    plan = Deployer(str(snapshot), device="cpu").plan
    found = with_path(settle(plan, get_engine("transformers"), machine), str(snapshot))
    bundle = deploy(plan, found, get_engine("transformers"), out, start=False)
    assert "model/model.safetensors" in {file.path for file in bundle.files}
    assert not any(path.is_symlink() for path in out.rglob("*"))


# ---------------------------------------------------------------- started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "engine"), [("sdpa", "transformers"), ("gptq", "transformers"), ("gguf", "ollama")]
)
def test_the_engine_is_started_on_it(
    backend: str, engine: str, tmp_path: Path, artifact_cache: Path
) -> None:
    """Quantised, copied, started, asked; llama-cpp-python's server stands in for Ollama."""
    done = llmfit(
        "deploy", "--backend", backend, "--engine", engine, "--out", str(tmp_path / "out"),
        "--store", str(tmp_path / "s.db"), "--cache-dir", str(artifact_cache),
        "--format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert from_json(Bundle, done.stdout).validation == "started"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["llama-cpp-python", "llama-server"])
def test_what_was_measured_is_in_it_and_it_is_measured(engine: str, tmp_path: Path) -> None:
    """A run's figures are in the README; its script serves, and bench-server measures that."""
    if get_engine(engine).missing() is not None:
        pytest.skip(f"{engine} is not installed")
    store, cache = str(tmp_path / "s.db"), str(tmp_path / "cache")
    measured = llmfit(
        "compare", "--backends", "gguf", "--no-eval", "--prompt-tokens", "16", "--new-tokens", "4",
        "--repeats", "1", "--store", store, "--cache-dir", cache, "--runs-dir", str(tmp_path / "r"),
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    out = tmp_path / "out"
    done = llmfit(
        "deploy", "--backend", "gguf", "--engine", engine, "--out", str(out),
        "--store", store, "--cache-dir", cache, "--format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundle = from_json(Bundle, done.stdout)
    assert bundle.validation == "started" and bundle.run_id is not None
    assert bundle.validated_by == get_engine(engine).label
    told = (out / "README.md").read_text()
    assert f"| run | {bundle.run_id} |" in told and "decode, tokens/s" in told
    port = str(free_port())
    env = {
        **os.environ,
        "PORT": port,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with subprocess.Popen(
        [out / "serve.sh"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _answer(server, f"http://127.0.0.1:{port}/v1/models")
            (asked,) = [
                line for line in told.splitlines() if line.startswith("llmfit bench-server")
            ]
            words = asked.replace("127.0.0.1:8000", f"127.0.0.1:{port}").split()[1:]
            load = ["--concurrency", "1,2,4", "--prompt-tokens", "16", "--new-tokens", "4"]
            found = llmfit(*words, *load, "--store", store, "--format", "json")
            assert found.returncode == 0, found.stderr
            assert [level["concurrency"] for level in json.loads(found.stdout)["levels"]] == [
                1,
                2,
                4,
            ]
        finally:
            server.kill()


@pytest.mark.slow
def test_serve_becomes_the_server(tmp_path: Path) -> None:
    """The process itself answers requests, by the name that it says, until it is ended."""
    port = free_port()
    words = ["serve", "--backend", "gguf", "--engine", "llama-cpp-python", "--port", str(port)]
    words += ["--cache-dir", str(tmp_path), "--context", "256"]
    with subprocess.Popen(
        [sys.executable, "-m", "llmfit", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as server:
        try:
            models = _answer(server, f"http://127.0.0.1:{port}/v1/models")
            assert [each["id"] for each in models["data"]] == ["llmfit-embedded-gguf"]
            command = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
            assert b"llama_cpp.server" in command and b"256" in command
        finally:
            server.send_signal(signal.SIGINT)
            told = server.communicate(timeout=60)[1].decode()
    assert "llmfit bench-server http://127.0.0.1" in told and "context 256" in told


def _answer(server: subprocess.Popen[bytes], url: str) -> dict[str, list[dict[str, str]]]:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found: dict[str, list[dict[str, str]]] = json.load(answer)
                return found
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.3)


def test_a_server_that_ends_is_an_error_with_its_words(tmp_path: Path) -> None:
    """And one that never answers is killed."""
    script = "print('no such model'); raise SystemExit(3)"
    with (
        pytest.raises(LlmfitError, match="ended with 3: no such model"),
        started([sys.executable, "-c", script], cwd=tmp_path, host="127.0.0.1", port=free_port()),
    ):
        pass
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(LlmfitError, match=r"did not answer within 0\.5 s"),
        started(silent, cwd=tmp_path, host="127.0.0.1", port=free_port(), limit_s=0.5),
    ):
        pass
    with (
        pytest.raises(LlmfitError, match="cannot start not-there"),
        started(["not-there"], cwd=tmp_path, host="127.0.0.1", port=free_port()),
    ):
        pass


def test_weights_behind_a_link_are_not_left_out_in_silence(
    machine: Machine, tmp_path: Path, embedded: ModelSpec
) -> None:
    """A folder whose weights are on another disk: the bundle would have none, and say whole."""
    source, elsewhere = tmp_path / "model", tmp_path / "disk" / "weights.safetensors"
    source.mkdir()
    elsewhere.parent.mkdir()
    for file in Path(embedded.path).iterdir():
        target = elsewhere if file.suffix == ".safetensors" else source / file.name
        target.write_bytes(file.read_bytes())
    (source / "model.safetensors").symlink_to(elsewhere)
    plan = Deployer(str(source), device="cpu").plan
    found = with_path(settle(plan, get_engine("transformers"), machine), str(source))
    out = tmp_path / "out"
    with pytest.raises(
        LlmfitError, match=r"model\.safetensors is a link out of the model's folder"
    ):
        deploy(plan, found, get_engine("transformers"), out, start=False)
    assert not out.exists()
