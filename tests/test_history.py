"""Own records on disk: which are read, in what order, and what bounds the reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.history import ROWS_PER_BACKEND, default_runs_dir, own_records
from llmfit.records import Environment, RunRecord, to_json
from llmfit.testing import make_comparison, make_record

HERE = Environment(
    platform="Linux",
    python="3.12.1",
    cpu=cpu_name(),
    cpu_cores=physical_cores(),
    ram_bytes=32 << 30,
)


def _write(runs: Path, run: str, *rows: RunRecord) -> None:
    """A run's folder as a comparison leaves it: a file a row, and the comparison."""
    folder = runs / run
    folder.mkdir(parents=True)
    for row in rows:
        (folder / f"{row.backend.replace(':', '-')}.json").write_text(to_json(row))
    (folder / "comparison.json").write_text(to_json(make_comparison(rows[:1])))


def _row(backend: str, rate: float = 40.0, **changes: object) -> RunRecord:
    return make_record(backend, tokens_per_s=rate, **{"environment": HERE, **changes})


def _rates(records: tuple[RunRecord, ...]) -> list[float]:
    return [row.decode.tokens_per_s.median for row in records if row.decode is not None]


def test_the_newest_runs_come_first_and_each_row_once(tmp_path: Path) -> None:
    """By the moment in the run's name; the comparison's copies of the rows are not counted."""
    _write(tmp_path, "20260102-030405-model-aaaaaa", _row("nf4", 20.0))
    _write(tmp_path, "20260302-030405-model-cccccc", _row("nf4", 40.0), _row("sdpa", 41.0))
    _write(tmp_path, "20260202-030405-model-bbbbbb", _row("nf4", 30.0))
    assert _rates(own_records(tmp_path)) == [40.0, 41.0, 30.0, 20.0]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Nothing of a record is lost on the way, however little of it a prediction uses."""
    row = _row("gguf:q3_k_m", 12.0, notes=("a note",))
    _write(tmp_path, "20260102-030405-model-aaaaaa", row)
    assert own_records(str(tmp_path)) == (row,)


def test_what_another_machine_measured_is_left_out(tmp_path: Path) -> None:
    """Another CPU, the same one with more cores, or no word of the machine."""
    _write(
        tmp_path,
        "20260102-030405-model-aaaaaa",
        _row("bf16", environment=replace(HERE, cpu="Another CPU")),
        _row("sdpa", environment=replace(HERE, cpu_cores=HERE.cpu_cores + 1)),
        _row("nf4", environment=None),
        _row("awq", 33.0),
    )
    assert _rates(own_records(tmp_path)) == [33.0]


def test_rows_without_a_measured_rate_are_left_out(tmp_path: Path) -> None:
    """Failed rows and those that were only predicted hold nothing to calibrate by."""
    failed = _row("bf16", status="failed", decode=None)
    _write(tmp_path, "20260102-030405-model-aaaaaa", failed, _row("sdpa", 33.0))
    assert _rates(own_records(tmp_path)) == [33.0]


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    """Half a file, no JSON, not a record, a folder of that name: all the rest is read."""
    _write(tmp_path, "20260102-030405-model-aaaaaa", _row("sdpa", 33.0))
    folder = tmp_path / "20260102-030405-model-aaaaaa"
    whole = (folder / "sdpa.json").read_text()
    (folder / "awq.json").write_text(whole[: len(whole) // 2])
    (folder / "bf16.json").write_text("not JSON")
    (folder / "int8.json").write_text('{"schema_version": 99}')
    (folder / "nf4.json").mkdir()
    (tmp_path / "a stray file").write_text("")
    assert _rates(own_records(tmp_path)) == [33.0]


def test_no_folder_is_no_record(tmp_path: Path) -> None:
    """Where nothing was ever compared there is nothing to read, and no error."""
    assert own_records(tmp_path / "nowhere") == ()


def test_the_default_folder_is_the_users(user_folders: Path) -> None:
    """What ``llmfit compare`` keeps without --runs-dir is what is read without one."""
    _write(default_runs_dir(), "20260102-030405-model-aaaaaa", _row("sdpa", 33.0))
    assert default_runs_dir().is_relative_to(user_folders)
    assert _rates(own_records()) == [33.0]


def test_many_runs_are_read_in_part(tmp_path: Path) -> None:
    """Of each backend the newest rows, so that one that is run often leaves room for the others."""
    _write(tmp_path, "20260101-000000-model-aaaaaa", _row("awq", 33.0))
    for index in range(ROWS_PER_BACKEND + 5):
        _write(tmp_path, f"20260201-0000{index:02d}-model-aaaaaa", _row("sdpa", float(index + 1)))
    records = own_records(tmp_path, time_limit_s=60.0)
    newest = [float(index + 1) for index in range(ROWS_PER_BACKEND + 4, 4, -1)]
    assert _rates(records) == [*newest, 33.0]


@pytest.mark.parametrize("limit_s", [0.0, -1.0])
def test_reading_ends_with_its_time(tmp_path: Path, limit_s: float) -> None:
    """A plan does not wait for a slow disk: without time left nothing is read."""
    _write(tmp_path, "20260102-030405-model-aaaaaa", _row("sdpa"))
    assert own_records(tmp_path, time_limit_s=limit_s) == ()
