"""Runs the command line as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def llmfit() -> Run:
    """A function that runs ``llmfit`` with these words; ``env`` adds to the environment."""

    def run(
        *words: str, stdin: bytes = b"", cwd: Path | None = None, timeout_s: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "llmfit", *words],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env=environment(**env),
            timeout=timeout_s,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


def environment(**extra: str) -> dict[str, str]:
    """The environment of a run of this checkout, in UTF-8 unless told otherwise."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **extra}
