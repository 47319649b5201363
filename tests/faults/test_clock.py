"""A clock that is set while a comparison runs: limits and durations do not follow it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from fault_place import ROOT, Place, ended, wait_until

DAY_S = 24 * 3600

_SHIM = '''
"""The wall clock of this process, moved by what a file says: as when it is set by hand."""
import datetime
import os
import time

true_time = time.time


def shifted_time():
    with open(os.environ["CLOCK_OFFSET"]) as stream:
        return true_time() + float(stream.read())


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(shifted_time(), tz)


time.time = shifted_time
datetime.datetime = Shifted
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks its workers")
def test_a_clock_that_is_set_costs_nothing(tmp_path: Path) -> None:
    """A day forward, back, and forward again in the middle of rows, with a limit of two minutes.

    The run that was interrupted is found again, though another one seems to be newer.
    """
    place = Place(tmp_path)
    (place.folder / "plugin" / "sitecustomize.py").write_text(_SHIM)
    offset = place.folder / "offset"
    place.environment["CLOCK_OFFSET"] = str(offset)

    offset.write_text(str(DAY_S))
    returned, _, err = ended(place.compare("faulty_fine"))  # tomorrow, as it seems
    assert returned == 0, err

    offset.write_text("0")
    process = place.compare("faulty_wait_load", "faulty_wait_measure", time_limit="120")
    place.reached("faulty_wait_load", process)
    offset.write_text(str(-DAY_S))
    place.let_go("faulty_wait_load")
    place.reached("faulty_wait_measure", process)
    process.kill()
    ended(process)

    resumed = place.compare(
        "faulty_wait_load", "faulty_wait_measure", time_limit="120", resume="last"
    )
    wait_until(lambda: len(place.workers("faulty_wait_measure")) == 2)
    offset.write_text(str(DAY_S))
    place.let_go()
    returned, out, err = ended(resumed)
    assert returned == 0 and "faulty_wait_load" in out, err

    second, first = place.stored()
    assert first["run_id"] > second["run_id"]
    assert [row["status"] for row in second["rows"]] == ["ok", "ok"]
    for run in (first, second):
        assert 0 < run["total_s"] < 600
        assert all(0 < row["total_s"] < 120 for row in run["rows"])
    place.assert_clean()
    returned, out, err = ended(place.start("history"))
    assert returned == 0 and out.count(" · pick faulty") == 2, err


def test_durations_are_of_a_clock_that_nobody_sets() -> None:
    """The time of day is asked for stamps alone; one age of a file is held against it."""
    asked = {
        f"{path.relative_to(ROOT)}:{node.func.value.id}.{node.func.attr}"
        for path in (ROOT / "llmfit").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in {("time", "time"), ("datetime", "now")}
    }
    assert asked == {
        "llmfit/keeping.py:time.time",  # how long ago a run was interrupted
        "llmfit/keeping.py:datetime.now",
        "llmfit/nightly/session.py:datetime.now",
        "llmfit/quantize/cache.py:datetime.now",
        "llmfit/runner/worker.py:datetime.now",
        "llmfit/store/place.py:datetime.now",
        "llmfit/study.py:datetime.now",
    }
