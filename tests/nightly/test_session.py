"""A night from its settings to what it found, with real worker processes and a real store."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from llmfit.errors import UsageError
from llmfit.job import ComparisonInterrupted, Observer
from llmfit.nightly import places
from llmfit.nightly.config import Cell, NightlyConfig
from llmfit.nightly.session import run_night
from llmfit.nightly.stored import report_of_night, report_of_store
from llmfit.records import RunRecord
from llmfit.runner.forkserver import ForkServers
from llmfit.store.store import Store
from llmfit.trend_records import NightResult

pytestmark = pytest.mark.slow

Night = Callable[..., NightlyConfig]
Plugin = Callable[[str], None]


@pytest.fixture
def one_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The nights of a test import the libraries once, and not once each."""
    with ForkServers() as servers:
        monkeypatch.setattr(places, "ForkServers", lambda: nullcontext(servers))
        yield


def run(config: NightlyConfig, folder: Path, observer: Observer | None = None) -> NightResult:
    """The night, its files under ``folder``."""

    def watch(cell: Cell, number: int, total: int) -> Observer | None:
        return observer

    return run_night(config, runs_dir=str(folder / "runs"), watch=watch)


class Stop(Observer):
    """Ctrl-C after the first row."""

    def row_done(self, record: RunRecord) -> None:
        raise KeyboardInterrupt


class Count(Observer):
    """Which rows ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def row_done(self, record: RunRecord) -> None:
        self.ran.append(record.backend)


class Servers(Observer):
    """Which processes the rows were forked from."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def row_done(self, record: RunRecord) -> None:
        (server,) = self.alive()
        self.seen.append(server)

    @staticmethod
    def alive() -> list[int]:
        return [
            child.pid
            for child in psutil.Process().children()
            if "llmfit.runner.forkserver" in " ".join(child.cmdline())
        ]


@pytest.mark.usefixtures("one_server")
def test_a_planted_slowdown_is_found_and_named(
    night: Night, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three good nights, then version 1.1, which sleeps twice as long."""
    for _ in range(3):  # its prompt takes microseconds, which scatter
        before = run(night(), tmp_path).regressions
        assert not [each for each in before if each.key.metric == "decode.tokens_per_s"]
    plugin("1.1")
    monkeypatch.setenv("SLOWPOKE_S", "0.01")
    result = run(night(), tmp_path)
    assert result.complete
    found = {(r.key.backend, r.key.metric): r for r in result.regressions}
    slower = found["slowpoke", "decode.tokens_per_s"]
    assert slower.change == pytest.approx(-0.5, abs=0.15)
    assert slower.since_run == result.cells[0].run_id
    assert slower.causes[0] == "slowpoke 1.0 → 1.1"
    with Store(night().store) as store:
        report = report_of_night(store, result)
        again = report_of_store(store, title="x")
    assert [c.run_id for c in report.comparisons] == [result.cells[0].run_id]
    assert report.regressions == again.regressions == result.regressions
    points = {len(s.points) for s in report.series if s.key.metric == "decode.tokens_per_s"}
    assert points == {4}


@pytest.mark.usefixtures("one_server")
def test_a_row_that_fails_now_is_a_regression(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its reason, and its figures are not judged."""
    run(night(), tmp_path)
    monkeypatch.setenv("SLOWPOKE_FAILS", "no kernel for this card")
    result = run(night(), tmp_path)
    assert {r.key.metric for r in result.regressions} == {"status"}
    assert len(result.regressions) == 2
    assert "no kernel for this card" in str(result.regressions[0].reason)
    (cell,) = result.cells
    assert (cell.status, cell.rows_ok) == ("failed", 0), "no row ran: it is not measured"
    assert "no kernel for this card" in str(cell.reason) and not result.complete


@pytest.mark.usefixtures("one_server")
def test_an_interrupted_night_goes_on_row_by_row(night: Night, tmp_path: Path) -> None:
    """The row that was finished is not run again; the night is one session and one run."""
    with pytest.raises(ComparisonInterrupted):
        run(night(), tmp_path, Stop())
    count = Count()
    result = run(night(), tmp_path, count)
    assert count.ran == ["slowpoke2"]
    assert "goes on with the night" in result.notes[0]
    with Store(night().store) as store:
        (line,) = store.history()
        assert line.session_id == result.session_id and line.ended
        assert [row.backend for row in line.rows] == ["slowpoke", "slowpoke2"]
    # Its end is stored: the next call is another night.
    assert run(night(), tmp_path, count).session_id != result.session_id
    assert count.ran == ["slowpoke2", "slowpoke", "slowpoke2"]


@pytest.mark.usefixtures("one_server")
def test_what_an_upgrade_interrupted_is_measured_anew(
    night: Night, plugin: Plugin, tmp_path: Path
) -> None:
    """A reboot into other versions: its rows would not compare with those still to come."""
    with pytest.raises(ComparisonInterrupted):
        run(night(), tmp_path, Stop())
    plugin("1.1")
    count = Count()
    result = run(night(), tmp_path, count)
    assert result.complete and count.ran == ["slowpoke", "slowpoke2"]
    assert "measured anew, as rows of" in result.notes[1]
    with Store(night().store) as store:
        new, old = store.history()
    assert (new.ended, old.ended) == (True, False)
    assert new.run_id == result.cells[0].run_id and new.session_id == old.session_id


@pytest.mark.usefixtures("one_server")
def test_other_settings_do_not_go_on(night: Night, tmp_path: Path) -> None:
    """A file that was edited asks for something else."""
    with pytest.raises(ComparisonInterrupted):
        run(night(), tmp_path, Stop())
    count = Count()
    assert run(night(title='title = "B"'), tmp_path, count).notes == ()
    assert count.ran == ["slowpoke", "slowpoke2"]


def test_what_fails_costs_only_itself(night: Night, tmp_path: Path) -> None:
    """A model that is not there is a cell with its reason, and the others run.

    The libraries are imported once for all of them.
    """
    again = '[[models]]\nname = "again"'
    models = f'[[models]]\nmodel = "/nowhere"\n{again}\nmodel = "embedded"\n[[models]]'
    servers = Servers()
    result = run(night(models=models), tmp_path, servers)
    assert [cell.status for cell in result.cells] == ["failed", "done", "done"]
    assert "no folder '/nowhere'" in str(result.cells[0].reason)
    assert not result.complete
    assert [cell.rows_ok for cell in result.cells] == [0, 2, 2]
    assert len(servers.seen) == 4 and len(set(servers.seen)) == 1
    assert not Servers.alive()


def test_the_night_s_time_limit_is_kept(night: Night, tmp_path: Path) -> None:
    """What would begin beyond it is not run, and is told."""
    limit = 'title = "t"\ntime_limit_h = 1e-9'
    result = run(night(title=limit), tmp_path)
    assert [cell.status for cell in result.cells] == ["not run"]
    assert "time limit" in str(result.cells[0].reason)


def test_two_nights_at_once_are_refused(night: Night, tmp_path: Path) -> None:
    """By a lock that goes with its process."""
    runs = tmp_path / "runs"
    runs.mkdir()
    code = (
        "import sys, time; from filelock import FileLock\n"
        f"lock = FileLock({str(runs / 'nightly.lock')!r}); lock.acquire()\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match="another nightly run is under way"):
            run(night(), tmp_path)
    finally:
        other.kill()
        other.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert run(night(), tmp_path).complete
            return
        except UsageError:  # the system frees the lock a moment after the process
            time.sleep(0.1)
    pytest.fail("the lock outlived its process")


@pytest.mark.usefixtures("one_server")
def test_a_baseline_is_a_tag_a_run_or_the_last(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow night is worse than the tagged one, and not than a slow one before it."""
    tagged = 'title = "t"\ntag = "v1"'
    first = run(night(title=tagged), tmp_path)
    monkeypatch.setenv("SLOWPOKE_S", "0.02")
    run(night(), tmp_path)

    def worse(baseline: str) -> set[str]:
        result = run(night(title=f'title = "t"\nbaseline = "{baseline}"'), tmp_path)
        return {r.key.metric for r in result.regressions}

    assert "decode.tokens_per_s" in worse("v1")
    assert "decode.tokens_per_s" in worse(str(first.cells[0].run_id))
    assert "decode.tokens_per_s" in worse("history")
    assert "decode.tokens_per_s" not in worse("last")
    with pytest.raises(UsageError, match="has the tag or id 'v9'"):
        worse("v9")


@pytest.mark.usefixtures("one_server")
def test_a_row_that_would_end_too_late_is_stopped(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds within a comparison: the first row is cut, the second does not begin."""
    began = time.monotonic()
    run(night(), tmp_path)  # how long this machine takes to come to the first row, and more
    limit_s = 5 + 2 * (time.monotonic() - began)
    monkeypatch.setenv("SLOWPOKE_S", "3600")
    result = run(night(title=f'title = "t"\ntime_limit_h = {limit_s / 3600}'), tmp_path)
    (cell,) = result.cells
    assert cell.status == "not run" and "time limit" in str(cell.reason)
    with Store(night().store) as store:
        statuses = [row.status for row in store.comparison(str(cell.run_id)).rows]
    assert statuses == ["failed", "skipped"]
