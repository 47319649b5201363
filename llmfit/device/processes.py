"""Processes that this one answers for: those below it, also where their parents have ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36
"""Source: Linux, include/uapi/linux/prctl.h."""


def adopt_orphans() -> None:
    """Have the system make this process the parent of those below it whose parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_children() -> None:
    """Kill all processes below this one, in whichever session, and wait for its own children."""
    while _has_children():
        kill_descendants(os.getpid())
        with suppress(ChildProcessError):  # it was the last one
            os.waitpid(-1, 0)


def kill_descendants(pid: int) -> None:
    """Kill all processes below ``pid``; itself it stays."""
    import psutil

    with suppress(psutil.Error):  # it has ended
        for each in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                each.send_signal(signal.SIGKILL)


def _has_children() -> bool:
    """True where a child of this process is running; those that have ended are forgotten."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True
