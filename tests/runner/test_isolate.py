"""A row's process may die in any way: the row says how, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from llmfit.records import ModelSpec, Plan, RunRecord, Workload
from llmfit.runner.isolate import probe_environment, run_isolated

LONG = Workload(prompt_tokens=8, new_tokens=400, repeats=1000)


def workers() -> list[psutil.Process]:
    """The worker processes below this one."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "llmfit.runner.worker" in " ".join(child.cmdline())
    ]


def plan(spec: ModelSpec, workload: Workload = LONG) -> Plan:
    """A bf16 row without scoring."""
    return Plan(
        backend="bf16", model=spec, device="cpu", workload=workload, evaluation=None, threads=1
    )


@pytest.mark.slow
def test_a_row_comes_back_measured(embedded: ModelSpec, tmp_path: Path) -> None:
    """A short row is ok, with its figures, and what libraries print is in the log alone."""
    workload = Workload(prompt_tokens=16, new_tokens=9, batch=2, repeats=5)
    log = tmp_path / "row.log"
    record = run_isolated(plan(embedded, workload), log_path=log)
    assert record.status == "ok", record.reason
    assert record.decode is not None and record.memory is not None
    for rate, steps in zip(
        record.decode.tokens_per_s.samples, record.decode.step.samples_s, strict=True
    ):
        assert len(steps) == 8
        assert rate == pytest.approx(2 * 8 / sum(steps))
    assert record.memory.peak_ram_bytes is not None
    assert record.memory.peak_bytes == record.memory.peak_ram_bytes
    assert record.hellaswag is None and record.perplexity is None
    assert log.is_file()
    assert not workers()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_a_failed_row(embedded: ModelSpec, sent: signal.Signals) -> None:
    """kill -9 in the middle of measuring gives a failed record that names the signal."""
    stages: list[str] = []
    result: list[RunRecord] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage == "measure" and done >= 1:
            for worker in workers():
                os.kill(worker.pid, sent)

    short = Workload(prompt_tokens=16, new_tokens=9, repeats=1000)  # long enough to be hit
    result.append(run_isolated(plan(embedded, short), progress=progress))
    assert result[0].status == "failed"
    assert sent.name in str(result[0].reason)
    assert "measure" in str(result[0].reason)
    assert result[0].decode is None
    assert not workers()


def test_the_time_limit_is_kept(embedded: ModelSpec) -> None:
    """A row that takes too long is stopped, and says at which stage."""
    started = time.monotonic()
    record = run_isolated(plan(embedded), time_limit_s=1.5)
    assert record.status == "failed"
    assert "time limit of 1.5 s" in str(record.reason)
    assert time.monotonic() - started < 20
    assert not workers()


def test_a_crash_tells_what_was_printed(embedded: ModelSpec) -> None:
    """An error that nobody foresaw is in the reason, not lost in a log."""
    broken = plan(embedded)
    object.__setattr__(broken, "device", "tpu")  # no such device: the plan is refused when read
    record = run_isolated(broken)
    assert record.status == "failed"
    assert "StoreError" in str(record.reason) or "tpu" in str(record.reason)


@pytest.mark.slow
def test_no_orphan_when_the_parent_is_killed(embedded: ModelSpec, tmp_path: Path) -> None:
    """kill -9 of the parent ends the worker too."""
    code = (
        "import sys; from llmfit.records import *; from llmfit.runner.isolate import run_isolated;"
        "plan = read_record(Plan, __import__('pathlib').Path(sys.argv[1])); run_isolated(plan)"
    )
    from llmfit.records import to_json

    path = tmp_path / "plan.json"
    path.write_text(to_json(plan(embedded)))
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        worker = wait_for_worker()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        worker.wait(timeout=20)
        assert not worker.is_running()
    finally:
        parent.kill()
        parent.wait()


def wait_for_worker() -> psutil.Process:
    """The first worker below this process, once it has read its plan."""
    for _ in range(200):
        found = workers()
        if found:
            time.sleep(3)  # past its imports
            return found[0]
        time.sleep(0.1)
    raise AssertionError("no worker was started")


@pytest.mark.slow
def test_an_interrupt_stops_the_worker(embedded: ModelSpec) -> None:
    """Ctrl-C in the parent is passed on and leaves no process."""
    timer = threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_isolated(plan(embedded))
    assert not workers()


@pytest.mark.slow
def test_the_environment_is_described() -> None:
    """Machine and versions come from a process of their own."""
    environment = probe_environment()
    assert environment.packages["torch"]
    assert environment.cpu_cores >= 1
    assert environment.ram_bytes == psutil.virtual_memory().total
    assert environment.cpu_bandwidth is None


@pytest.mark.slow
def test_the_memorys_bandwidth_is_measured_on_request() -> None:
    """Beside machine and versions; a machine without a GPU has none of a GPU."""
    environment = probe_environment(bandwidth=True)
    assert environment.cpu_bandwidth is not None and environment.cpu_bandwidth > 1e9
    assert (environment.gpu_bandwidth is None) == (environment.gpu is None)
