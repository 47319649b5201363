"""Work in a process of its own: what parents and children of all kinds have in common.

    parent: converse ─► one JSON job on stdin ─► child: job ─► JSON messages on stdout ─► receive

A child ends when its stdin closes, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

Message = dict[str, Any]
Send = Callable[..., None]
"""Sends a message, its entries given by name."""


def converse(
    module: str,
    job: Message,
    receive: Callable[[Message], None],
    *,
    cwd: str | None = None,
    time_limit_s: float | None = None,
    log: IO[bytes] | None = None,
) -> int:
    """Run ``python -m module`` on ``job`` and hand over its messages; its return code.

    Past the time limit the child is killed (SIGKILL). What ``receive`` raises ends the child too.
    What the child prints goes to ``log``, or to stderr.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=environment(),
    )
    assert child.stdin is not None and child.stdout is not None
    alarm = threading.Timer(time_limit_s or 0, child.kill)
    alarm.daemon = True
    if time_limit_s is not None:
        alarm.start()
    try:
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            receive(json.loads(line))
        return child.wait()
    finally:
        alarm.cancel()
        child.kill()
        child.stdin.close()
        child.wait()


def job_and_send() -> tuple[Message, Send]:
    """The child's side: its job, and what sends a message to the parent.

    From here on what libraries print to stdout joins stderr.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()

    def send(**message: object) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return job, send


def environment(*first: str) -> dict[str, str]:
    """This process's environment, in which a child finds ``first`` and then llmfit itself."""
    package_root = str(Path(__file__).resolve().parents[1])
    path = filter(None, (*first, package_root, os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def ending(code: int) -> str:
    """A child's return code in words: its exit code, or the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"signal {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def end_with_parent() -> None:
    """Wait until stdin is closed, as it is when the parent is gone, and end this process."""
    sys.stdin.read()
    os._exit(1)
