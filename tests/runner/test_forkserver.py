"""Forked workers behave as those started anew: results, memory, deaths, interrupts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from llmfit.records import ModelSpec, Plan, Workload
from llmfit.runner.forkserver import ForkedWorker, ForkServer, ForkServers
from llmfit.runner.isolate import _Worker, fork_server, probe_environment, run_isolated

pytestmark = pytest.mark.skipif(not ForkServer.available(), reason="no fork of PyTorch here")

SHORT = Workload(prompt_tokens=16, new_tokens=9, repeats=5)
LONG = Workload(prompt_tokens=16, new_tokens=9, repeats=2000)


def plan(spec: ModelSpec, workload: Workload = SHORT, backend: str = "sdpa") -> Plan:
    return Plan(
        backend=backend, model=spec, device="cpu", workload=workload, evaluation=None, threads=2
    )


def servers() -> list[psutil.Process]:
    """The fork servers below this process."""
    return [
        child
        for child in psutil.Process().children()
        if "llmfit.runner.forkserver" in " ".join(child.cmdline())
    ]


def worker_of(pid: int) -> psutil.Process:
    """The worker of the server ``pid``."""
    (worker,) = psutil.Process(pid).children()
    return worker


@pytest.mark.slow
def test_rows_are_those_of_processes_started_anew(embedded: ModelSpec, tmp_path: Path) -> None:
    """Same figures of memory within 6 MB, log in its file, several rows from one server."""
    anew = run_isolated(plan(embedded))
    with fork_server(plan(embedded)) as server:
        machine = probe_environment(server=server)
        assert machine.packages["torch"] == probe_environment().packages["torch"]
        forked = [
            run_isolated(plan(embedded), server=server, log_path=tmp_path / f"{index}.log")
            for index in range(2)
        ]
    for record in forked:
        assert record.status == "ok", record.reason
        assert record.memory is not None and anew.memory is not None
        assert record.memory.peak_bytes is not None and anew.memory.peak_bytes is not None
        assert abs(record.memory.peak_bytes - anew.memory.peak_bytes) < 6e6
        assert record.kernel is not None and anew.kernel is not None
        assert record.kernel.linear == anew.kernel.linear
    assert (tmp_path / "0.log").is_file()
    assert not servers()


@pytest.mark.slow
def test_a_killed_worker_leaves_the_server_for_the_next_row(embedded: ModelSpec) -> None:
    """kill -9 is a failed row that names the signal; the next one is forked and runs."""
    with fork_server(plan(embedded)) as server:
        assert server is not None

        def kill(stage: str, done: int, total: int) -> None:
            if stage == "measure" and done >= 1:
                (parent,) = servers()
                worker_of(parent.pid).kill()

        failed = run_isolated(plan(embedded, LONG), progress=kill, server=server)
        assert failed.status == "failed" and "SIGKILL" in str(failed.reason)
        assert run_isolated(plan(embedded), server=server).status == "ok"


@pytest.mark.slow
def test_a_time_limit_ends_a_forked_worker(embedded: ModelSpec) -> None:
    """The worker is killed, and the server goes on."""
    with fork_server(plan(embedded)) as server:
        run_isolated(plan(embedded), server=server)  # imports are done now
        late = run_isolated(plan(embedded, LONG), server=server, time_limit_s=2.0)
        assert "time limit" in str(late.reason)
        (parent,) = servers()
        assert not parent.children()
        assert run_isolated(plan(embedded), server=server).status == "ok"


@pytest.mark.slow
def test_without_its_server_a_row_starts_anew(embedded: ModelSpec) -> None:
    """A server that was killed is no reason to fail."""
    with fork_server(plan(embedded)) as server:
        for each in servers():
            each.kill()
            each.wait()
        assert run_isolated(plan(embedded), server=server).status == "ok"


def test_comparisons_in_a_row_share_a_server_while_it_suits(
    embedded: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for rows alike, another where it died or workers are to have other variables."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with ForkServers() as shared:

        def server(**changes: object) -> ForkServer | None:
            asked = replace(plan(embedded), **changes)  # type: ignore[arg-type]
            with fork_server(asked, shared) as found:
                return found

        first = server()
        assert server(backend="bf16") is first
        (process,) = servers()
        process.kill()
        process.wait()
        second = server()
        assert second is not first and server() is second
        assert server(offline=True) is not second
        monkeypatch.setenv("LLMFIT_ANY", "1")
        other = server()
        assert other is not second
        until = time.monotonic() + 20
        while len(servers()) != 1 and time.monotonic() < until:  # it is forked, and then named
            time.sleep(0.05)
        assert len(servers()) == 1
    assert not servers()


def test_a_worker_may_end_before_the_server_has_said_so() -> None:
    """Stopping one that the server has reaped, and is still sweeping up after, is no error."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    ours, theirs = socket.socketpair()
    server = ForkServer({}, scoring=False)
    server._socket = ours
    read_end, write_end = os.pipe()
    with ours, theirs, os.fdopen(write_end, "wb") as stdin, os.fdopen(read_end, "rb"):
        worker = _Worker(ForkedWorker(ended.pid, server), stdin, read_end, mark="")
        told = threading.Timer(0.2, theirs.sendall, [b"0\n"])
        told.start()
        worker.stop()
        told.join()
    assert worker.process.returncode == 0


@pytest.mark.slow
def test_nothing_outlives_a_killed_parent(embedded: ModelSpec, tmp_path: Path) -> None:
    """kill -9 of the program: server and worker are gone soon after."""
    script = (
        "from llmfit.models import resolve\n"
        "from llmfit.records import Plan, Workload\n"
        "from llmfit.runner.isolate import fork_server, run_isolated\n"
        "import os\n"
        "work = Workload(prompt_tokens=16, new_tokens=9, repeats=2000)\n"
        "plan = Plan(backend='sdpa', model=resolve(None), device='cpu', workload=work,"
        " evaluation=None, threads=1)\n"
        "def told(stage, done, total):\n"
        "    if stage == 'measure': print('measuring', flush=True)\n"
        "with fork_server(plan) as server:\n"
        "    run_isolated(plan, progress=told, server=server)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "measuring\n"
        below = psutil.Process(program.pid).children(recursive=True)
        assert len(below) == 2  # the server and its worker
        os.kill(program.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(each.is_running() for each in below) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(each.is_running() for each in below)


@pytest.mark.slow
def test_the_server_starts_no_thread_of_pytorchs() -> None:
    """What it imports leaves one Python thread, and no CUDA context: a fork could use neither."""
    script = (
        "import sys, threading\n"
        "from importlib import import_module\n"
        "from llmfit.runner.forkserver import PRELOADED, SCORING\n"
        "for name in PRELOADED + SCORING: import_module(name)\n"
        "import torch\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not torch.cuda.is_initialized()\n"
        "names = {open(f'/proc/self/task/{t}/comm').read() for t in __import__('os').listdir("
        "'/proc/self/task')}\n"
        "assert not any('omp' in name for name in names), names\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_server_starts_again_without_what_opens_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fork could use the GPU then. A module stands for one that opens it, as torchao is."""
    (tmp_path / "opens_the_gpu.py").write_text(
        "import torch\ntorch._C._cuda_isInBadFork = lambda: True\n"
    )
    monkeypatch.setattr(
        "llmfit.runner.forkserver.PRELOADED", ("torch", "json", "opens_the_gpu", "transformers")
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with ForkServer(environment, scoring=False) as server:
        machine = probe_environment(server=server)
        (process,) = servers()
        assert process.cmdline()[-2:] == ["torch", "json"]
    assert machine.packages["torch"] == probe_environment().packages["torch"]
