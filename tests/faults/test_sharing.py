"""Two comparisons at once: one cache, one folder of runs, one store; and one of them may die."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from fault_place import Place, ended, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks its workers"),
]

ROW = "faulty_wait_quantize"


@pytest.mark.parametrize("killed", [False, True])
def test_one_quantises_and_the_other_waits(tmp_path: Path, killed: bool) -> None:
    """The artifact is made once; where its maker is killed half-way, the other takes over."""
    place = Place(tmp_path)
    maker = place.compare(ROW)
    place.reached(ROW, maker)
    other = place.compare(ROW, "faulty_fine")
    wait_until(lambda: len(place.workers(ROW)) == 2)
    if killed:
        maker.kill()
        wait_until(lambda: len(list(place.marks.glob("child.*.pid"))) == 2)
    place.let_go()
    assert ended(maker)[0] == (-signal.SIGKILL if killed else 0)
    returned, _, err = ended(other)
    assert returned == 0, err
    assert [[row["status"] for row in run["rows"]] for run in place.stored()] == [["ok"]] * (
        not killed
    ) + [["ok", "ok"]]
    assert (place.marks / "made").read_text() == "once\n"
    (artifact,) = place.cache.glob("faulty-*")
    assert (artifact / "weights.bin").read_bytes() == b"whole"
    place.assert_clean()


def test_a_run_that_is_under_way_is_not_gone_on_with(tmp_path: Path) -> None:
    """``--resume last`` elsewhere would mix up its rows; once it was killed, it is free."""
    place = Place(tmp_path)
    first = place.compare("faulty_wait_load")
    place.reached("faulty_wait_load", first)
    returned, _, err = ended(place.compare("faulty_wait_load", resume="last"))
    assert returned == 2 and "is under way in another process" in err
    first.kill()
    ended(first)
    place.let_go()
    returned, _, err = ended(place.compare("faulty_wait_load", resume="last"))
    assert returned == 0, err
    assert len(place.stored()) == 1
    place.assert_clean()
