"""The parent's side: a process of its own per row, with a time limit, whatever happens in it.

Plan ─► start ─► messages ─► RunRecord
             ├─► killed, crashed, silent, garbled, out of time ─► a failed RunRecord with the reason
             └─► above its RAM budget ─► killed ─► a RunRecord that does not fit
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import IO

import msgspec

from llmfit.backends.base import Progress, no_progress
from llmfit.child import environment, signal_name
from llmfit.device.processes import kill_marked
from llmfit.errors import LlmfitError
from llmfit.records import Environment, Plan, RunRecord, to_builtins
from llmfit.redaction import known_secrets
from llmfit.runner.forkserver import ForkedWorker, ForkServer, ForkServers
from llmfit.runner.messages import Message, Task, decode
from llmfit.runner.output import KEPT_BYTES, Output
from llmfit.runner.ram_watch import POLL_S, RamWatch
from llmfit.runner.worker import blank_record
from llmfit.units import format_bytes

_POLL_S = 0.5
_CRASHING_S = 5
"""How long a worker that closed its pipe may take to end: a GPU's driver closes its files too."""
_KILLED_S = 60
"""How long a killed one may take: a GPU's driver frees its memory first."""
_LONGEST_LINE_BYTES = 2**28
"""A record with each of 10⁷ steps' seconds; what is longer is no message."""
_SHOWN_BYTES = 60
_MARK = "LLMFIT_WORKER"
"""Variable of a worker that is started anew, by which what it leaves running is found."""
_ALLOCATION_FAILED = re.compile(
    r"bad_alloc|(cannot|can't|failed to|unable to) allocate|out of memory|MemoryError",
    re.IGNORECASE,
)
"""What libraries print before they end a process that got no memory."""


class _Cut(Enum):
    """Why the parent ends a worker."""

    TIME = "time limit"
    RAM = "RAM budget"
    GARBLED = "no message"


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a worker ended without a record."""

    code: int | None
    """Its exit code, negative for a signal; None where nobody knows it."""
    cut: _Cut | None
    stage: str
    log_tail: str
    silent: bool = False
    """It closed its pipe and ran on."""
    sent: bytes = b""
    """The beginning of what it sent instead of a message."""


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
    deadline = None if time_limit_s is None else started + time_limit_s
    with Output(log_path) as log, _started("run", log, plan.offline, server) as worker:
        watch = None
        if plan.ram_budget_bytes is not None:
            watch = RamWatch(worker.process.pid, plan.ram_budget_bytes)
        worker.send(msgspec.json.encode(to_builtins(plan)) + b"\n")
        found = _follow(worker, log, progress, deadline, watch)
    if isinstance(found, _Ended):
        record = replace(blank_record(plan), total_s=time.monotonic() - started)
        too_much = None if watch is None else _beyond_ram(found, watch)
        if too_much is None:
            record = replace(record, reason=_reason(found, time_limit_s))
        else:
            record = replace(record, status="does_not_fit", reason=too_much)
    else:
        record = found
    if log.left_out_bytes == 0:
        return record
    note = (
        f"it printed {format_bytes(log.printed_bytes)}; its log has the first and the last "
        f"{format_bytes(KEPT_BYTES)}"
    )
    return replace(record, notes=(*record.notes, note))


def _follow(
    worker: _Worker,
    log: Output,
    progress: Progress,
    deadline: float | None,
    watch: RamWatch | None,
) -> RunRecord | _Ended:
    """Hand on the worker's progress until its record comes, or else how it ended."""
    stage, cut = "start", None
    secrets = known_secrets()
    for message in worker.messages(deadline, watch):
        if isinstance(message, _Cut):
            cut = message
            break
        if message.record is not None:
            return message.record
        if message.stage is not None:
            stage = secrets.hide(message.stage.name)
            if watch is not None:
                watch.stage = stage
            progress(stage, message.stage.done, message.stage.total)
    silent = cut is None and not worker.wait(_CRASHING_S)
    if silent or cut is not None:
        worker.stop()
    return _Ended(worker.process.returncode, cut, stage, log.tail(), silent, worker.garbled)


def probe_environment(*, bandwidth: bool = False, server: ForkServer | None = None) -> Environment:
    """Machine and versions, asked in a process of its own: the parent holds no GPU memory.

    With ``bandwidth``, that of its memories is measured too, which takes about a second. Raises
    LlmfitError where the process fails, with the end of what it printed.
    """
    task: Task = "bandwidth" if bandwidth else "environment"
    with Output() as log, _started(task, log, server=server) as worker:
        for message in worker.messages(None):
            if isinstance(message, Message) and message.environment is not None:
                return message.environment
        worker.wait(_CRASHING_S)
        raise LlmfitError(
            f"the worker process cannot start: {log.tail() or 'no output'}", hint="llmfit backends"
        )


class _Worker:
    """A running child, its stdin, and the pipe on which it talks."""

    def __init__(
        self,
        process: subprocess.Popen[bytes] | ForkedWorker,
        stdin: IO[bytes],
        pipe: int,
        mark: str,
    ) -> None:
        self.process = process
        self.garbled = b""
        """The beginning of a line that is no message."""
        self._stdin = stdin
        self._pipe = pipe
        self._mark = mark

    def send(self, line: bytes) -> None:
        """Give it its plan."""
        with suppress(BrokenPipeError):  # it died at once, and its exit code and output say why
            self._stdin.write(line)
            self._stdin.flush()

    def messages(
        self, deadline: float | None, watch: RamWatch | None = None
    ) -> Iterator[Message | _Cut]:
        """Messages until the pipe closes or the worker ends; why it is to be stopped comes last."""
        pending: list[bytes] = []
        poll = _POLL_S if watch is None else POLL_S
        ended = False
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
                if not selector.select(0 if ended else wait):
                    if ended:  # what it started may hold the pipe open
                        return
                    ended = self._ended()
                    continue
                piece = os.read(self._pipe, 1 << 16)
                if not piece:
                    return
                for line in _lines(pending, piece):
                    message = self._message(line)
                    yield message
                    if message is _Cut.GARBLED:
                        return

    def _message(self, line: bytes) -> Message | _Cut:
        try:
            return decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.garbled = line[:_SHOWN_BYTES]
            return _Cut.GARBLED

    def _ended(self) -> bool:
        if isinstance(self.process, ForkedWorker):
            return self.process.ended()
        return self.process.poll() is not None

    def wait(self, limit_s: float) -> bool:
        """Wait for its end; False where it does not come."""
        if isinstance(self.process, ForkedWorker):
            return self.process.wait(limit_s)
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Kill the worker with everything it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            if not self._ended():  # it was forked just now, and has no session of its own yet
                with suppress(ProcessLookupError):  # or has ended, which the server is about to say
                    os.kill(self.process.pid, signal.SIGKILL)
        self.wait(_KILLED_S)
        if not isinstance(self.process, ForkedWorker):  # else the server has done it
            kill_marked(_MARK, self._mark)

    def close(self) -> None:
        """Close its stdin, upon which it would end by itself."""
        with suppress(BrokenPipeError):  # what it did not read, it will not
            self._stdin.close()


def _lines(pending: list[bytes], piece: bytes) -> Iterator[bytes]:
    """The lines that ``piece`` completes; ``pending`` is what came before, and then what is left.

    A line that is too long is given as it is.
    """
    first, *others = piece.split(b"\n")
    pending.append(first)
    for other in others:
        yield b"".join(pending)
        pending[:] = [other]
    if sum(map(len, pending)) > _LONGEST_LINE_BYTES:
        yield b"".join(pending)


@contextmanager
def _started(
    task: Task, log: Output, offline: bool = False, server: ForkServer | None = None
) -> Iterator[_Worker]:
    """A worker in a session of its own: Ctrl-C reaches only the parent. Killed at the end."""
    read_end, write_end = os.pipe()
    theirs, ours = os.pipe()
    mark = uuid.uuid4().hex
    with os.fdopen(ours, "wb") as stdin:
        try:
            process = _fork(server, task, theirs, log, write_end) or subprocess.Popen(
                [sys.executable, "-m", "llmfit.runner.worker", str(write_end), task],
                stdin=theirs,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                env=_environment(offline) | {_MARK: mark},
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            log.given()
            os.close(write_end)
            os.close(theirs)
        worker = _Worker(process, stdin, read_end, mark)
        try:
            yield worker
        finally:
            worker.close()
            worker.stop()
            os.close(read_end)


def _fork(
    server: ForkServer | None, task: Task, stdin: int, log: Output, channel: int
) -> ForkedWorker | None:
    """A worker of the server's; None where there is no server, or it has died."""
    if server is None:
        return None
    try:
        return server.fork(task, stdin, log.fileno(), channel)
    except OSError:
        return None


def fork_server(
    plan: Plan, servers: ForkServers | None = None
) -> AbstractContextManager[ForkServer | None]:
    """A server that forks workers for rows like ``plan``; None where the system cannot.

    It is that of ``servers`` where they are given, and outlives the context.
    """
    if not ForkServer.available():
        return nullcontext()
    given, scoring = _environment(plan.offline), plan.evaluation is not None
    if servers is not None:
        return nullcontext(servers.server(given, scoring=scoring))
    return ForkServer(given, scoring=scoring)


def _environment(offline: bool) -> dict[str, str]:
    return environment(offline=offline) | {
        "TOKENIZERS_PARALLELISM": "false",
        "GGML_NO_BACKTRACE": "1",  # it would start a debugger where a check of its own fails
    }


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
    if ended.cut is _Cut.GARBLED:
        return f"the worker sent what is no message during {ended.stage!r}: {ended.sent!r}"
    said = f": {ended.log_tail}" if ended.log_tail else ""
    if ended.silent:
        return f"the worker closed its pipe during {ended.stage!r} and did not end{said}"
    if ended.code is None:
        return (
            f"the worker and the process that it was forked from ended during {ended.stage!r}{said}"
        )
    if ended.code < 0:
        name = signal_name(-ended.code)
        cause = " (often the system running out of memory)" if name == "SIGKILL" else ""
        own = said if name == "SIGABRT" else ""  # a library's check failed, which says so
        return f"the worker was killed by {name} during {ended.stage!r}{cause}{own}"
    return f"the worker ended with exit code {ended.code} during {ended.stage!r}{said}"
