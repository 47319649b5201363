"""Work in a process of its own: what parents and children of all kinds have in common.

    parent: converse ─► one JSON job on stdin ─► child: job ─► JSON messages on stdout ─► receive

A child ends when its stdin closes, so it never outlives its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from llmfit.network import NO_TELEMETRY, OFFLINE, is_offline
from llmfit.private_code import inductor_environment

Message = dict[str, Any]
Send = Callable[..., None]
"""Sends a message, its entries given by name."""
_PR_SET_PDEATHSIG = 1
"""Source: Linux, include/uapi/linux/prctl.h."""


def converse(
    module: str,
    job: Message,
    receive: Callable[[Message], None],
    *,
    cwd: str | None = None,
    time_limit_s: float | None = None,
    log: int | None = None,
    own_session: bool = False,
    ending_s: float = 0.0,
) -> int:
    """Run ``python -m module`` on ``job`` and hand over its messages; its return code.

    Past the time limit the child is killed (SIGKILL). What ``receive`` raises ends the child too,
    which has ``ending_s`` seconds to do so by itself. What the child prints goes to the descriptor
    ``log``, or to stderr. In a session of its own it is killed with all that it started, and a
    terminal's Ctrl-C does not reach it.
    """

    def kill() -> None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            if own_session:
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()

    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=environment(),
        start_new_session=own_session,
    )
    assert child.stdin is not None and child.stdout is not None
    alarm = threading.Timer(time_limit_s or 0, kill)
    alarm.daemon = True
    if time_limit_s is not None:
        alarm.start()
    try:
        with suppress(BrokenPipeError):  # it died at once: its return code tells
            child.stdin.write(json.dumps(job) + "\n")
            child.stdin.flush()
        for line in child.stdout:
            if line.endswith("\n"):  # else it died while it sent this one
                receive(json.loads(line))
        return child.wait()
    finally:
        alarm.cancel()
        if ending_s and child.returncode is None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                child.stdin.close()
                child.wait(ending_s)
        kill()
        with suppress(BrokenPipeError):  # what it did not read, it will not
            child.stdin.close()
        child.wait()


def job_and_send(before_end: Callable[[Message], None] | None = None) -> tuple[Message, Send]:
    """The child's side: its job, and what sends a message to the parent.

    From here on what libraries print to stdout joins stderr. ``before_end`` is called with the job
    before the child ends with its parent; without it, the system ends the child at once.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if before_end is None:
        die_with_parent()
    job = json.loads(sys.stdin.readline())
    last_act = partial(before_end, job) if before_end is not None else None
    threading.Thread(target=end_with_parent, args=(last_act,), daemon=True).start()

    def send(**message: object) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return job, send


def environment(*first: str, offline: bool = False) -> dict[str, str]:
    """This process's environment, in which a child finds ``first`` and then llmfit itself.

    In it libraries send no telemetry, and keep their compiled code where nobody else writes. With
    ``offline``, and wherever this process is to be, they do not reach for the hub.
    """
    package_root = str(Path(__file__).resolve().parents[1])
    path = filter(None, (*first, package_root, os.environ.get("PYTHONPATH")))
    return {
        **os.environ,
        **NO_TELEMETRY,
        **(OFFLINE if offline or is_offline() else {}),
        **inductor_environment(),
        "PYTHONPATH": os.pathsep.join(path),
    }


@contextmanager
def variables(given: Mapping[str, str]) -> Iterator[None]:
    """Within, these variables of this process's environment; afterwards those of before."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def ending(code: int) -> str:
    """A child's return code in words: its exit code, or the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    name = signal_name(-code)
    return f"signal {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def signal_name(number: int) -> str:
    """A signal's name, such as SIGKILL; its number for one that has no name here."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def end_with_parent(before_end: Callable[[], None] | None = None) -> None:
    """Wait until stdin is closed, as it is when the parent is gone, and end this process."""
    sys.stdin.read()
    if before_end is not None:
        before_end()
    os._exit(1)


def die_with_parent(die: bool = True) -> None:
    """Have the system kill this process as soon as the thread that started it has ended (Linux).

    Native code that never lets another Python thread run would keep ``end_with_parent`` waiting.
    With ``die`` False it is let live again.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if die else 0)
