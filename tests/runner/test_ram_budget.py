"""A RAM budget is kept by the whole worker: what claims to fit has run inside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_isolate import workers

from llmfit.device.memory import resident_bytes, resident_bytes_of
from llmfit.records import ModelSpec, Plan, RunRecord, Workload
from llmfit.runner.isolate import _beyond_ram, _Ended, run_isolated
from llmfit.runner.ram_watch import RamWatch

MB = 10**6
SHORT = Workload(prompt_tokens=16, new_tokens=5, repeats=2)


def run(backend: str, spec: ModelSpec, cache: Path, ram_mb: int | None) -> RunRecord:
    """A short row without scoring, on one thread."""
    return run_isolated(
        Plan(
            backend=backend, model=spec, device="cpu", workload=SHORT, evaluation=None, threads=1,
            cache_dir=str(cache), ram_budget_bytes=None if ram_mb is None else ram_mb * MB,
        )
    )  # fmt: skip


def held_bytes(record: RunRecord) -> int:
    """The kernel's own peak of the whole process, interpreter and libraries included."""
    assert record.memory is not None and record.memory.idle_ram_bytes is not None
    assert record.memory.peak_ram_bytes is not None
    return record.memory.idle_ram_bytes + record.memory.peak_ram_bytes


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sdpa", "gguf"])
def test_a_row_that_fits_peaked_inside_its_budget(
    embedded: ModelSpec, artifact_cache: Path, backend: str
) -> None:
    """With 100 MB more than it takes without a budget it runs; with 30 MB less it does not fit."""
    pytest.importorskip("llama_cpp")
    run(backend, embedded, artifact_cache, None)  # makes the artifact, which is no part of it
    need_mb = held_bytes(run(backend, embedded, artifact_cache, None)) // MB
    fits = run(backend, embedded, artifact_cache, need_mb + 100)
    assert fits.status == "ok", fits.reason
    assert held_bytes(fits) <= (need_mb + 100) * MB
    too_large = run(backend, embedded, artifact_cache, need_mb - 30)
    assert too_large.status == "does_not_fit"
    assert too_large.decode is None or held_bytes(too_large) > (need_mb - 30) * MB
    assert f"the budget is {need_mb - 30} MB" in str(too_large.reason)
    assert not workers()


def test_imports_beyond_the_budget_end_the_row(embedded: ModelSpec, artifact_cache: Path) -> None:
    """The interpreter and its libraries count: 150 MB are less than torch alone takes."""
    record = run("sdpa", embedded, artifact_cache, 150)
    assert record.status == "does_not_fit"
    assert "of RAM in all during 'import', the budget is 150 MB" in str(record.reason)
    assert record.decode is None
    assert not workers()


def test_only_stages_of_deploying_count() -> None:
    """Making an artifact or scoring above the budget is let be, loading above it is not."""
    assert resident_bytes_of(os.getpid()) == pytest.approx(resident_bytes(), rel=0.05)
    watch = RamWatch(os.getpid(), budget_bytes=MB)  # far below what this process holds
    for stage, counts in (("load", True), ("quantize", False), ("score", False), ("measure", True)):
        watch.stage = stage
        assert watch.exceeded() is counts
    assert not RamWatch(os.getpid(), budget_bytes=10**15).exceeded()


def test_a_worker_that_has_ended_is_not_above_its_budget() -> None:
    """Its resident set is unknown, not an error."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not RamWatch(ended.pid, budget_bytes=1).exceeded()


def python(code: str) -> str:
    """What ``code`` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_the_system_refuses_what_could_never_fit() -> None:
    """Under a limit of 2 GB, 8 GB are refused at once, as an error that torch and we understand."""
    code = """
import torch
from llmfit.device.execution import is_out_of_memory
from llmfit.device.limits import limit_private_memory
limit_private_memory(2 * 10**9)
try:
    torch.empty(8 * 10**9, dtype=torch.uint8)
except RuntimeError as exc:
    print(is_out_of_memory(exc))
limit_private_memory(None)
print(torch.empty(8 * 10**9, dtype=torch.uint8).numel())
"""
    assert python(code).split() == ["True", "8000000000"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_llama_cpp_without_memory_is_an_error(embedded: ModelSpec, artifact_cache: Path) -> None:
    """A KV cache that the system refuses ends as an error of ours caused by memory, no abort."""
    pytest.importorskip("llama_cpp")
    file = run("gguf:f16", embedded, artifact_cache, None).artifact
    assert file is not None
    code = f"""
from pathlib import Path
from llmfit.decode.llama_cpp import LlamaCppModel
from llmfit.device.limits import limit_private_memory
from llmfit.errors import LlmfitError
model = LlamaCppModel(Path({file!r}), threads=1)
limit_private_memory(10**9)
try:
    model.context(sequences=1, capacity=2_000_000, chunk=8, outputs=1)
except LlmfitError as exc:
    print(type(exc.__cause__).__name__)
"""
    assert python(code) == "MemoryError"


def test_a_library_that_ends_the_process_for_memory_is_a_row_that_does_not_fit() -> None:
    """What C++ prints before it aborts is understood; any other crash stays a failure."""
    watch = RamWatch(os.getpid(), budget_bytes=2 * 10**9)
    aborted = _Ended(-6, None, "load", "terminate called after throwing 'std::bad_alloc'")
    assert "no more memory during 'load' under the budget of 2.00 GB" in str(
        _beyond_ram(aborted, watch)
    )
    assert _beyond_ram(_Ended(-11, None, "load", "Segmentation fault"), watch) is None
