"""The parent's side: a process of its own per row, with a time limit, whatever happens in it.

Plan ─► start ─► messages ─► RunRecord
             ├─► killed, crashed, out of time ─► a failed RunRecord with the reason
             └─► above its RAM budget ─► killed ─► a RunRecord that does not fit
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import IO

import msgspec

from llmfit.backends.base import Progress, no_progress
from llmfit.errors import LlmfitError
from llmfit.records import Environment, Plan, RunRecord, to_builtins
from llmfit.runner.forkserver import ForkedWorker, ForkServer
from llmfit.runner.messages import Message, Task, decode
from llmfit.runner.ram_watch import POLL_S, RamWatch
from llmfit.runner.worker import blank_record
from llmfit.units import format_bytes

_LOG_LINES = 3
_POLL_S = 0.5
_ALLOCATION_FAILED = re.compile(
    r"bad_alloc|(cannot|can't|failed to|unable to) allocate|out of memory|MemoryError",
    re.IGNORECASE,
)
"""What libraries print before they end a process that got no memory."""


class _Cut(Enum):
    """Why the parent ends a worker."""

    TIME = "time limit"
    RAM = "RAM budget"


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a worker ended without a record."""

    code: int | None
    cut: _Cut | None
    stage: str
    log_tail: str


def run_isolated(
    plan: Plan,
    *,
    time_limit_s: float | None = None,
    progress: Progress = no_progress,
    log_path: Path | None = None,
    server: ForkServer | None = None,
) -> RunRecord:
    """Run a plan in a process of its own and return its record, a failed one if it came to grief.

    It is forked from ``server`` where there is one, and started anew otherwise. The worker's own
    output goes to ``log_path``. Where the plan has a RAM budget, a worker whose resident set grows
    above it is killed, and the row does not fit. An interrupt kills the worker and is passed on.
    """
    started = time.monotonic()
    with _log_file(log_path) as log, _started("run", log, plan.offline, server) as worker:
        line = msgspec.json.encode(to_builtins(plan)) + b"\n"
        with suppress(BrokenPipeError):  # it died at once; exit code and log say why, below
            worker.stdin.write(line)
            worker.stdin.flush()
        deadline = None if time_limit_s is None else started + time_limit_s
        watch = None
        if plan.ram_budget_bytes is not None:
            watch = RamWatch(worker.process.pid, plan.ram_budget_bytes)
        stage, cut = "start", None
        for message in worker.messages(deadline, watch):
            if isinstance(message, _Cut):
                cut = message
                break
            if message.record is not None:
                return message.record
            if message.stage is not None:
                stage = message.stage.name
                if watch is not None:
                    watch.stage = stage
                progress(stage, message.stage.done, message.stage.total)
        code = worker.process.wait() if cut is None else worker.stop()
        ended = _Ended(code, cut, stage, _tail(log))
    record = replace(blank_record(plan), total_s=time.monotonic() - started)
    if watch is not None and (too_much := _beyond_ram(ended, watch)) is not None:
        return replace(record, status="does_not_fit", reason=too_much)
    return replace(record, reason=_reason(ended, time_limit_s))


def probe_environment(*, bandwidth: bool = False, server: ForkServer | None = None) -> Environment:
    """Machine and versions, asked in a process of its own: the parent holds no GPU memory.

    With ``bandwidth``, that of its memories is measured too, which takes about a second. Raises
    LlmfitError where the process fails, with the end of what it printed.
    """
    task: Task = "bandwidth" if bandwidth else "environment"
    with _log_file(None) as log, _started(task, log, server=server) as worker:
        for message in worker.messages(None):
            if isinstance(message, Message) and message.environment is not None:
                return message.environment
        worker.process.wait()
        raise LlmfitError(
            f"the worker process cannot start: {_tail(log) or 'no output'}", hint="llmfit backends"
        )


class _Worker:
    """A running child, its stdin, and the pipe on which it talks."""

    def __init__(
        self, process: subprocess.Popen[bytes] | ForkedWorker, stdin: IO[bytes], pipe: int
    ) -> None:
        self.process = process
        self.stdin = stdin
        self._pipe = pipe

    def messages(
        self, deadline: float | None, watch: RamWatch | None = None
    ) -> Iterator[Message | _Cut]:
        """Messages until the pipe closes, or until time or RAM is used up, which comes last."""
        pending = b""
        poll = _POLL_S if watch is None else POLL_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while True:
                wait = poll if deadline is None else min(poll, deadline - time.monotonic())
                if wait <= 0:
                    yield _Cut.TIME
                    return
                if watch is not None and watch.exceeded():
                    yield _Cut.RAM
                    return
                if not selector.select(wait):
                    continue
                piece = os.read(self._pipe, 1 << 16)
                if not piece:
                    return
                *lines, pending = (pending + piece).split(b"\n")
                for line in lines:
                    yield decode(line)

    def stop(self) -> int | None:
        """Kill the worker with everything it started; returns its exit code."""
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


@contextmanager
def _started(
    task: Task, log: IO[bytes], offline: bool = False, server: ForkServer | None = None
) -> Iterator[_Worker]:
    """A worker in a session of its own: Ctrl-C reaches only the parent. Killed at the end."""
    read_end, write_end = os.pipe()
    theirs, ours = os.pipe()
    with os.fdopen(ours, "wb") as stdin:
        try:
            process = _fork(server, task, theirs, log, write_end) or subprocess.Popen(
                [sys.executable, "-m", "llmfit.runner.worker", str(write_end), task],
                stdin=theirs,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                env=_environment(offline),
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
            os.close(theirs)
        worker = _Worker(process, stdin, read_end)
        try:
            yield worker
        finally:
            with suppress(BrokenPipeError):  # what it did not read, it will not
                stdin.close()
            worker.stop()
            os.close(read_end)


def _fork(
    server: ForkServer | None, task: Task, stdin: int, log: IO[bytes], channel: int
) -> ForkedWorker | None:
    """A worker of the server's; None where there is no server, or it has died."""
    if server is None:
        return None
    try:
        return server.fork(task, stdin, log.fileno(), channel)
    except OSError:
        return None


def fork_server(plan: Plan) -> AbstractContextManager[ForkServer | None]:
    """A server that forks workers for rows like ``plan``; None where the system cannot."""
    if not ForkServer.available():
        return nullcontext()
    return ForkServer(_environment(plan.offline), scoring=plan.evaluation is not None)


def _environment(offline: bool) -> dict[str, str]:
    """The parent's environment, with llmfit importable where it was run from a source folder."""
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    added = {
        "PYTHONPATH": package_root if not path else os.pathsep.join([package_root, path]),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return os.environ | added | ({"HF_HUB_OFFLINE": "1"} if offline else {})


@contextmanager
def _log_file(path: Path | None) -> Iterator[IO[bytes]]:
    if path is None:
        with tempfile.TemporaryFile() as log:
            yield log
    else:
        with path.open("w+b") as log:
            yield log


def _tail(log: IO[bytes]) -> str:
    """The last lines that the worker printed."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4096))
    lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])


def _beyond_ram(ended: _Ended, watch: RamWatch) -> str | None:
    """Why a worker that left no record did not fit into its RAM; None where it ended otherwise."""
    budget = format_bytes(watch.budget_bytes)
    if ended.cut is _Cut.RAM:
        held = format_bytes(watch.seen_bytes)
        return f"stopped at {held} of RAM in all during {ended.stage!r}, the budget is {budget}"
    if ended.cut is None and _ALLOCATION_FAILED.search(ended.log_tail):
        return (
            f"got no more memory during {ended.stage!r} under the budget of {budget} of RAM: "
            f"{ended.log_tail}"
        )
    return None


def _reason(ended: _Ended, time_limit_s: float | None) -> str:
    if ended.cut is _Cut.TIME:
        return (
            f"time limit of {time_limit_s:g} s reached during {ended.stage!r}. "
            "Try: a larger --time-limit, or a smaller --limit"
        )
    if ended.code is not None and ended.code < 0:
        name = signal.Signals(-ended.code).name
        cause = " (often the system running out of memory)" if name == "SIGKILL" else ""
        return f"the worker was killed by {name} during {ended.stage!r}{cause}"
    said = f": {ended.log_tail}" if ended.log_tail else ""
    return f"the worker ended with exit code {ended.code} during {ended.stage!r}{said}"
