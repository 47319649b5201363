"""llama-cpp-python's own server, started for the test and measured by the command line."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmfit.deployer import Deployer
from llmfit.records import from_json
from llmfit.serving.load import ServerTarget, bench_server
from llmfit.serving.prompts import fitted
from llmfit.serving_records import ServerBenchmark, ServerWorkload

pytestmark = pytest.mark.slow
pytest.importorskip("starlette_context", reason="needs llama-cpp-python[server]")


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded model as a GGUF; the server's address."""
    folder = tmp_path_factory.mktemp("llama-server")
    with Deployer(backend="gguf", cache_dir=str(folder)).load() as deployed:
        model = deployed.info.artifact
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "served",
        "--n_ctx", "512", "--n_threads", "1", "--interrupt_requests", "false",
        "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip
    log = (folder / "log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while not _answers(url):
                there = server.poll() is None and time.monotonic() < deadline
                assert there, (folder / "log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            server.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            return bool(json.load(answer)["data"])
    except OSError:
        return False


def llmfit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmfit", *words], capture_output=True, text=True, check=False
    )


def test_three_concurrencies_are_measured_kept_and_shown(llama_server: str, tmp_path: Path) -> None:
    """It computes one answer at a time, so waiting grows with the load."""
    store, out = str(tmp_path / "s.db"), tmp_path / "server.json"
    done = llmfit(
        "bench-server", llama_server, "--concurrency", "1,4,16", "--prompt-tokens", "48",
        "--new-tokens", "12", "--model", "llmfit-embedded", "--backend", "gguf", "--store", store,
        "--format", "json", "--out", str(out), "--tag", "here",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = from_json(ServerBenchmark, out.read_bytes())
    assert found.served_model == "served" and found.tag == "here" and found.local
    assert [level.concurrency for level in found.levels] == [1, 4, 16]
    assert all(level.errors == {} and level.tokens_per_s for level in found.levels)
    waits = [level.ttft.p50_s for level in found.levels if level.ttft is not None]
    assert waits[0] < waits[1] < waits[2]
    rates = [level.tokens_per_s or 0.0 for level in found.levels]
    if found.saturation is None:  # something else slowed this machine down until the last level
        assert rates[2] >= 1.1 * max(rates[:2])
    else:
        assert found.saturation in (1, 4)
    for level in found.levels:
        assert level.new_tokens <= 12 * level.requests
    shown = llmfit("show", found.benchmark_id, "--store", store)
    assert shown.returncode == 0 and "llmfit-embedded (gguf), served as served" in shown.stdout
    assert llmfit("show", str(out)).stdout == shown.stdout
    listed = llmfit("history", "--servers", "--store", store)
    assert found.benchmark_id in listed.stdout and "tokens/s" in listed.stdout
    moved, other = str(tmp_path / "all.json"), str(tmp_path / "other.db")
    assert llmfit("export", "--out", moved, "--store", store).returncode == 0
    assert "1 run added" in llmfit("import", moved, "--store", other).stdout
    assert "1 there already" in llmfit("import", str(out), "--store", other).stdout
    again = llmfit("show", found.benchmark_id, "--store", other, "--format", "json")
    assert from_json(ServerBenchmark, again.stdout) == found


def test_tokens_are_those_of_the_library_that_others_use(llama_server: str) -> None:
    """OpenAI's own client, streaming the same prompt, gets as many pieces of text."""
    openai = pytest.importorskip("openai")
    workload = ServerWorkload(concurrency=(1,), prompt_tokens=48, new_tokens=12, requests=8)
    found = bench_server(ServerTarget(url=llama_server), workload)
    client = openai.OpenAI(base_url=f"{llama_server}/v1", api_key="none")

    async def count(text: str) -> int | None:
        asked = client.completions.create(model="served", prompt=text, max_tokens=1)
        assert asked.usage is not None
        return asked.usage.prompt_tokens

    prompts = asyncio.run(fitted(workload.seed, workload.prompt_tokens, count))
    theirs = []
    for number in range(1, 9):  # the first one warms the server up
        stream = client.completions.create(
            model="served", prompt=prompts.text(number), max_tokens=12, temperature=0.0, stream=True
        )
        theirs.append(sum(bool(chunk.choices[0].text) for chunk in stream))
    (level,) = found.levels
    assert [len(trace.chunks_s) for trace in level.traces] == theirs
    assert 40 <= asyncio.run(count(prompts.text(1))) <= 56
