"""Runs out of a store and into another: nothing is lost on the way."""

from __future__ import annotations

import csv
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from stored_runs import head_of, rows_of

from llmfit.errors import StoreError, UsageError
from llmfit.files import write_atomically
from llmfit.records import to_json
from llmfit.store.exchange import ExportFormat, Imported, export_runs, import_runs
from llmfit.store.store import Store
from llmfit.testing import make_comparison
from llmfit.trend_records import NightHead


@pytest.fixture
def full(store: Store) -> Store:
    """A store with three runs."""
    for night in (1, 2, 3):
        run_id = f"r{night}"
        comparison = make_comparison(rows_of(40 + night, night=night), run_id=run_id)
        store.put(head_of(run_id, night=night, tag="x" if night == 3 else None), comparison)
    return store


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_what_was_interrupted_stays_so(store: Store, form: ExportFormat, tmp_path: Path) -> None:
    """It can be gone on with, and its end is imported when there is one."""
    first, second = rows_of()
    store.begin(head_of("a"))
    store.add("a", 0, first)
    path = tmp_path / f"half.{form}"
    export_runs(store, form, path)
    with Store(tmp_path / "other.db") as other:
        assert import_runs(other, [path]) == Imported(added=1, known=0)
        assert import_runs(other, [path]) == Imported(added=0, known=1)
        assert not other.line("a").ended and len(other.line("a").rows) == 1
        store.add("a", 1, second)
        store.conclude(make_comparison([first, second], run_id="a"))
        export_runs(store, form, path)
        assert import_runs(other, [path]) == Imported(added=1, known=0)
        assert other.comparison("a") == store.comparison("a") and other.line("a").ended


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_an_export_is_imported_as_it_was(full: Store, form: ExportFormat, tmp_path: Path) -> None:
    """Every record, head and conclusion; a second import adds nothing."""
    path = tmp_path / f"runs.{form}"
    assert export_runs(full, form, path) == 3
    with Store(tmp_path / "other.db") as other:
        assert import_runs(other, [path]) == Imported(added=3, known=0)
        assert import_runs(other, [path]) == Imported(added=0, known=3)
        for line in full.history():
            assert other.comparison(line.run_id) == full.comparison(line.run_id)
            assert other.head(line.run_id) == full.head(line.run_id)
        assert other.trends() == full.trends()


def test_csv_has_a_line_for_each_row(full: Store, tmp_path: Path) -> None:
    """When and where, and its figures in base units."""
    path = tmp_path / "runs.csv"
    export_runs(full, "csv", path)
    with path.open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 6
    assert [line["run_id"] for line in lines] == ["r1", "r1", "r2", "r2", "r3", "r3"]
    assert lines[0]["machine"] == "lab" and lines[0]["started_at"].startswith("2026-01-01")
    assert float(lines[1]["decode_tokens_per_s_median"]) == 82.0 and lines[5]["tag"] == "x"


def test_parquet_is_a_table_that_others_read(full: Store, tmp_path: Path) -> None:
    """By pyarrow alone, with types and nulls."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "runs.parquet"
    export_runs(full, "parquet", path)
    table = parquet.read_table(path)
    assert table.num_rows == 6
    assert table.column("decode_tokens_per_s_median").to_pylist() == [
        41.0,
        82.0,
        42.0,
        84.0,
        43.0,
        86.0,
    ]
    assert table.column("joules_per_token").null_count == 6


def test_a_comparison_s_json_and_folder_are_taken(store: Store, tmp_path: Path) -> None:
    """What ``compare --format json`` wrote, and runs' folders with all that lies in them."""
    comparison = make_comparison(rows_of(), run_id="loose")
    write_atomically(tmp_path / "result.json", to_json(comparison))
    folder = tmp_path / "runs" / "kept"
    folder.mkdir(parents=True)
    write_atomically(folder / "comparison.json", to_json(make_comparison(rows_of(), run_id="kept")))
    (tmp_path / "runs" / "unfinished").mkdir()
    places = [tmp_path / "result.json", tmp_path / "runs"]
    assert import_runs(store, places, machine="lab") == Imported(added=2, known=0)
    assert store.comparison("loose") == comparison
    assert store.line("kept").machine == "lab"
    assert import_runs(store, [folder]) == Imported(added=0, known=1)


def test_what_holds_no_run_adds_nothing(full: Store, tmp_path: Path) -> None:
    """One error each, naming the file; a good file beside it is not added either."""
    good = tmp_path / "good.json"
    write_atomically(good, to_json(make_comparison(rows_of(), run_id="new")))
    texts = {"no.json": "{", "other.json": json.dumps({"a": 1}), "rows.json": '{"rows": 3}'}
    texts |= {"deep.json": "[" * 200_000, "deeper.json": '{"rows": ' + "[" * 200_000}
    whole = to_json(make_comparison(rows_of()))
    texts["latin.json"] = whole.replace("bf16", "b\udcad16")  # a byte that is no UTF-8
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises((UsageError, StoreError), match=name):
            import_runs(full, [good, tmp_path / name])
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="CSV holds figures"):
        import_runs(full, [tmp_path / "x.csv"])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match=r"x\.parquet is no Parquet export"):
        import_runs(full, [tmp_path / "x.parquet"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no finished run"):
        import_runs(full, [tmp_path / "empty"])
    assert len(full.history()) == 3


def test_an_empty_store_exports_nothing(store: Store, tmp_path: Path) -> None:
    """And leaves no file."""
    with pytest.raises(UsageError, match="there is no run of x"):
        export_runs(store, "json", tmp_path / "x.json", model="x")
    assert list(tmp_path.glob("x*")) == []


def test_a_nights_runs_are_imported_where_the_night_is_not_known(
    store: Store, tmp_path: Path
) -> None:
    """They stay named after it in their heads."""
    night = NightHead(
        session_id="n1", title="t", machine="lab", started_at="2026-01-01", config_hash="c"
    )
    store.begin_session(night)
    head = replace(head_of("a"), session_id="n1")
    store.put(head, make_comparison(rows_of(), run_id="a"))
    path = tmp_path / "runs.json"
    export_runs(store, "json", path)
    with Store(tmp_path / "other.db") as other:
        assert import_runs(other, [path]) == Imported(added=1, known=0)
        assert other.line("a").session_id is None and other.head("a") == store.head("a")
    assert store.line("a").session_id == "n1"


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_an_export_goes_through_links_and_into_pipes(
    full: Store, form: ExportFormat, tmp_path: Path
) -> None:
    """What is there and no file stays what it is: /dev/stdout is a link to a pipe."""
    plain, target = tmp_path / "plain", tmp_path / "target"
    export_runs(full, form, plain)
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    export_runs(full, form, link)
    assert link.is_symlink() and target.stat().st_size == plain.stat().st_size
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    export_runs(full, form, pipe)
    reader.join(timeout=20)
    assert pipe.is_fifo() and len(read[0]) > 100
