"""Processes that this one answers for, also where those that started them have ended."""

from __future__ import annotations

import ctypes
import os
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
    import psutil

    while _has_children():
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended
                each.kill()
        with suppress(ChildProcessError):  # it was the last one
            os.waitpid(-1, 0)


def kill_marked(variable: str, value: str) -> None:
    """Kill the processes that were started with this variable, and those below them.

    They pass it on, wherever they are by then. This process is not one of them.
    """
    import psutil

    for each in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if each.environ().get(variable) == value:
                each.kill()


def _has_children() -> bool:
    """True where a child of this process is running; those that have ended are forgotten."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True
