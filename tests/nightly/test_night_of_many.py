"""A night with faulty entries, for real: the short form of ``benchmarks/night_of_64.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import night_of_64 as nights  # noqa: E402

FAULTS = tuple(each for each in nights.FAULTS if each.name in ("kills-itself", "cut-weights"))
COMMAND = (sys.executable, "-m", "llmfit", "report")


@pytest.mark.slow
def test_a_night_ends_with_every_good_row(tmp_path: Path) -> None:
    """Of ten models two are faulty, and Ctrl-C comes half-way: every good row is there, once."""
    night = nights.make_night(tmp_path, 10, FAULTS)
    assert (len(night.good), len(night.faulty)) == (8, 2)
    stopped = nights.run(night, command=COMMAND, stop_at=6)
    ended = nights.run(night, command=COMMAND)
    assert nights.problems(night, stopped, ended) == []
    reasons = nights.reasons(night)
    assert "SIGKILL" in reasons["m04-kills-itself"]
    assert "damaged" in reasons["m09-cut-weights"]
