"""Progress on stderr: what each finished row says, with and without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.cli._progress import Bars, Lines, Silent, observer, summary
from llmfit.testing import make_record


def play(watching: Silent) -> None:
    """One row that works and one that fails."""
    with watching:
        for index, status in enumerate(("ok", "failed")):
            watching.row_started("nf4", "NF4 [x]\x1b[0m", index, 2)
            watching.progress("nf4", "load", 0, 0)
            watching.progress("nf4", "hellaswag", 3, 10)
            record = make_record("nf4", tokens_per_s=42, peak_gb=4.9, status=status)
            watching.row_done(replace(record, reason="killed.") if status == "failed" else record)


def test_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal each row is two lines, with control characters spelled out."""
    play(Lines())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/2] NF4 [x]\\x1b[0m …"
    assert lines[1].startswith("      ok · 42.0 tokens/s · 4.90 GB · HellaSwag 80.0 %")
    assert lines[3] == "      failed: killed."


def test_bars_leave_a_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Finished rows stay on the screen as lines, with markup in names as text."""
    play(Bars())
    captured = capsys.readouterr()
    text = " ".join(captured.err.split())
    assert "[1/2] NF4 [x]\\x1b[0m: ok · 42.0 tokens/s" in text
    assert "[2/2] NF4 [x]\\x1b[0m: failed: killed." in text
    assert captured.out == ""


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """--quiet leaves both streams empty."""
    play(observer(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_lines_are_chosen() -> None:
    """Bars are for a terminal only."""
    assert isinstance(observer(quiet=False), Lines)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_gets_bars() -> None:
    """On a pseudo-terminal the stage and its count are drawn."""
    import pty

    code = (
        "from llmfit.cli._progress import observer\n"
        "with observer(quiet=False) as o:\n"
        "    o.row_started('nf4', 'NF4', 0, 2); o.progress('nf4', 'hellaswag', 3, 10)\n"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=child,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(child)
    drawn = b""
    try:
        while piece := os.read(parent, 4096):
            drawn += piece
    except OSError:  # Linux's way of saying that the other end is closed
        pass
    os.close(parent)
    assert process.wait(timeout=60) == 0
    assert b"[1/2] NF4: hellaswag" in drawn and b"3/10" in drawn


def test_a_row_without_a_reason_still_has_its_status() -> None:
    """A record without a reason reads as its status alone."""
    assert summary(make_record("nf4", status="skipped")) == "skipped"
