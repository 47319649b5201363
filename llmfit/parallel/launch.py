"""Starts a group of processes under torchrun and hands over what they send, line by line.

    run_group ─► agent (torchrun) ─► python -m MODULE FOLDER, once a rank
        ▲                                 │ a line
        └──────── FOLDER/rank-0 … ◄───────┘ (a pipe each)

The group ends when ``receive`` has what it wants, and when any of its processes dies.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llmfit.child import ending, environment

Receive = Callable[[int, bytes], bool]
"""Given a rank and a line that it sent; True where nothing more is wanted."""

_POLL_S = 0.2
_ENDING_S = 10
"""How long torchrun may take to end its processes, before it is killed and they with it."""
_TAIL_BYTES = 2000
_TAIL_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A group that ended before it was done."""

    rank: int | None
    """Of the process that failed first; None where torchrun itself did."""
    how: str
    """Its exit code or signal, in words."""
    said: str
    """The end of its output; empty where it printed nothing."""


def pipe_of(folder: Path, rank: int) -> Path:
    """The named pipe on which a process of the group talks."""
    return folder / f"rank-{rank}"


def run_group(
    module: str,
    processes: int,
    folder: Path,
    receive: Receive,
    *,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Ended | None:
    """Run ``python -m module folder`` in ``processes`` processes under torchrun.

    Lines go to ``receive`` until it returns True: then, as at an error of its own, the group is
    ended. None where it was True, else how the group ended. ``folder`` is the caller's own, for the
    pipes and logs; ``variables`` are added to the processes' environment. What they print goes to
    this one's stdout and stderr as well.
    """
    failure, logs = folder / "failure.json", folder / "logs"
    with ExitStack() as stack:
        pipes = _pipes(folder, processes, stack)
        agent = subprocess.Popen(
            [
                sys.executable, "-m", "llmfit.parallel.agent", str(os.getpid()), str(failure),
                "--standalone", f"--nproc-per-node={processes}", "--tee=3", f"--log-dir={logs}",
                "-m", module, str(folder),
            ],
            stdin=subprocess.DEVNULL,
            env={**environment(), **variables},
        )  # fmt: skip
        stack.callback(_end, agent)
        done = any(receive(rank, line) for rank, line in _lines(pipes, agent))
        return None if done else _ended(agent.returncode, failure, logs)


def _pipes(folder: Path, processes: int, stack: ExitStack) -> selectors.BaseSelector:
    """A pipe a rank, which ``stack`` closes; a key's data are its rank and the begun line."""
    selector = stack.enter_context(selectors.DefaultSelector())
    for rank in range(processes):
        os.mkfifo(pipe_of(folder, rank), 0o600)
        # For writing too, so that it has no end while a process has yet to open it.
        pipe = os.open(pipe_of(folder, rank), os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, pipe)
        selector.register(pipe, selectors.EVENT_READ, (rank, bytearray()))
    return selector


def _lines(
    pipes: selectors.BaseSelector, agent: subprocess.Popen[bytes]
) -> Iterator[tuple[int, bytes]]:
    """Whole lines with their rank, until torchrun has ended and the pipes are empty."""
    ended = False
    while True:
        events = pipes.select(0 if ended else _POLL_S)
        for key, _ in events:
            rank, begun = key.data
            begun += os.read(key.fd, 1 << 16)
            *whole, rest = bytes(begun).split(b"\n")
            begun[:] = rest
            for line in whole:
                yield rank, line
        if ended and not events:
            return
        ended = agent.poll() is not None


def _end(agent: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its processes; they die with it where it has to be killed."""
    if agent.poll() is None:
        agent.send_signal(signal.SIGTERM)
    try:
        agent.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()


def _ended(code: int, failure: Path, logs: Path) -> Ended:
    if not failure.is_file():
        return Ended(rank=None, how=ending(code), said="")
    found = json.loads(failure.read_text(encoding="utf-8"))
    rank = int(found["rank"])
    return Ended(rank=rank, how=ending(int(found["code"])), said=_tail(logs, rank))


def _tail(logs: Path, rank: int) -> str:
    """The last lines that a process of the group wrote to stderr, else to stdout."""
    for name in ("stderr.log", "stdout.log"):
        for file in logs.glob(f"*/attempt_0/{rank}/{name}"):
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
                lines = opened.read().decode("utf-8", errors="replace").split("\n")
            told = [line.strip() for line in lines if line.strip()]
            if told:
                return " / ".join(told[-_TAIL_LINES:])
    return ""
