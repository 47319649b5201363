"""What the processes that make artifacts have in common."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def environment(*first: str) -> dict[str, str]:
    """This process's environment, in which a child finds ``first`` and then llmfit itself."""
    package_root = str(Path(__file__).resolve().parents[2])
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
