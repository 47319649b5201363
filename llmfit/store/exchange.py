"""Runs out of a store and into one: JSON and Parquet with whole records, CSV with figures alone.

store ─► runs, one by one ─► lines.json | table.parquet | table.csv
those, a comparison's JSON or a run's folder ─► runs that are not there yet ─► store
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from llmfit.errors import StoreError, UsageError
from llmfit.files import replaced_atomically, write_result
from llmfit.records import NOT_FINISHED, SCHEMA_VERSION, Comparison, from_json, keys_of, to_json
from llmfit.report.csv_ import csv_text, flat_rows
from llmfit.serving_records import ServerBenchmark
from llmfit.store.heads import RunHead
from llmfit.store.place import utc_now
from llmfit.store.store import Store

ExportFormat = Literal["json", "csv", "parquet"]
_RECORD = "llmfit_run"
"""Column of a Parquet table that holds a run's whole record, in the first of its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run as it is exported."""

    head: RunHead
    comparison: Comparison
    ended: bool = True
    """False: it was interrupted, and has the rows that were finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A JSON export."""

    schema_version: int = SCHEMA_VERSION
    runs: tuple[StoredRun, ...]
    servers: tuple[ServerBenchmark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did."""

    added: int
    known: int
    """Runs and servers that were there already, and stay as they are."""


def export_runs(store: Store, fmt: ExportFormat, path: Path, *, model: str | None = None) -> int:
    """Write the store's runs, of ``model`` or all, to ``path``; the number of runs.

    Servers' figures are in JSON alone, and counted with the runs. Raises StoreError, and UsageError
    where there is no run or Parquet's package is missing.
    """
    runs = [
        StoredRun(
            head=store.head(line.run_id),
            comparison=store.comparison(line.run_id),
            ended=line.ended,
        )
        for line in reversed(store.history(model))
    ]
    servers = store.servers(model)[::-1] if fmt == "json" else ()
    if not runs and not servers:
        raise UsageError(
            f"there is no run{'' if model is None else f' of {model}'} in {store.name}.",
            hint="llmfit history",
        )
    if fmt == "parquet":
        _write_parquet(runs, path)
        return len(runs)
    if fmt == "json":
        text = to_json(Export(runs=tuple(runs), servers=servers)) + "\n"
    else:
        text = csv_text(row for run in runs for row in _rows(run))
    try:
        write_result(path, text)
    except OSError as exc:
        raise StoreError(f"cannot write {path}: {exc.strerror}.", hint="another --out") from exc
    return len(runs) + len(servers)


def _rows(run: StoredRun) -> list[dict[str, Any]]:
    """A line for each row: when and where, then its figures."""
    head = run.head
    first = {"started_at": head.started_at, "machine": head.machine, "tag": head.tag}
    return [first | row for row in flat_rows(run.comparison)]


def _write_parquet(runs: Sequence[StoredRun], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise UsageError(
            "Parquet needs the package pyarrow.", hint='pip install "llmfit[parquet]"'
        ) from exc
    rows = [row for run in runs for row in _with_record(run)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        table = pyarrow.table(columns)
        if path.exists() and not path.is_file():  # a pipe or device cannot be replaced
            with path.open("wb") as stream:
                parquet.write_table(table, stream, compression="zstd")
            return
        with replaced_atomically(path.resolve()) as part:  # of a name that nobody can foresee
            parquet.write_table(table, part, compression="zstd")
    except OSError as exc:
        raise StoreError(f"cannot write {path}: {exc.strerror}.", hint="another --out") from exc


def _with_record(run: StoredRun) -> list[dict[str, Any]]:
    rows = _rows(run) or [{}]
    rows[0] |= {_RECORD: msgspec.json.encode(run).decode()}
    return rows


# ---------------------------------------------------------------- in


def import_runs(store: Store, places: Sequence[Path], *, machine: str | None = None) -> Imported:
    """Add the runs of files and folders that are not in the store yet, each whole or not at all.

    ``machine`` names where runs were made that do not say it. Raises UsageError for what holds no
    run, before anything is added, and StoreError.
    """
    found = [each for place in places for each in _read(place, machine)]
    added = sum(_added(store, each) for each in found)
    return Imported(added=added, known=len(found) - added)


def _added(store: Store, each: StoredRun | ServerBenchmark) -> bool:
    if isinstance(each, ServerBenchmark):
        return store.add_server(each)
    return store.put(each.head, each.comparison, ended=each.ended)


def _read(place: Path, machine: str | None) -> Iterator[StoredRun | ServerBenchmark]:
    if place.is_dir():
        yield from _read_folder(place, machine)
    elif place.suffix == ".parquet":
        yield from _read_parquet(place)
    elif place.suffix == ".csv":
        raise UsageError(
            f"{place}: CSV holds figures and no records.",
            hint="llmfit export --format json, or parquet",
        )
    else:
        yield from _read_json(place, machine)


def _read_folder(folder: Path, machine: str | None) -> Iterator[StoredRun | ServerBenchmark]:
    """A run's folder, or one of such folders."""
    whole = folder / "comparison.json"
    if whole.is_file():
        yield from _read_json(whole, machine)
        return
    inside = sorted(path for path in folder.iterdir() if (path / "comparison.json").is_file())
    if not inside:
        raise UsageError(f"the folder {folder} holds no finished run.")
    for each in inside:
        yield from _read_json(each / "comparison.json", machine)


def _read_json(path: Path, machine: str | None) -> Iterator[StoredRun | ServerBenchmark]:
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror}.") from exc
    keys = keys_of(text, source=str(path))
    if "runs" in keys:
        export = from_json(Export, text, source=str(path))
        yield from export.runs
        yield from export.servers
    elif "levels" in keys:
        found = from_json(ServerBenchmark, text, source=str(path))
        yield replace(found, machine=found.machine or machine)
    elif "rows" in keys:
        yield _of_comparison(from_json(Comparison, text, source=str(path)), machine)
    else:
        raise UsageError(f"{path} holds no run.", hint="llmfit export, or compare --format json")


def _of_comparison(comparison: Comparison, machine: str | None) -> StoredRun:
    """A comparison that was kept without its head, which is made from its rows.

    One that was interrupted has its finished rows alone, so that it can be gone on with.
    """
    started = min((r.started_at for r in comparison.rows if r.started_at), default=utc_now())
    head = RunHead(
        run_id=comparison.run_id,
        model=comparison.model,
        workload=comparison.workload,
        environment=comparison.environment,
        backends=tuple(row.backend for row in comparison.rows),
        started_at=started,
        budget_bytes=comparison.budget_bytes,
        ram_budget_bytes=comparison.ram_budget_bytes,
        command=comparison.command,
        record=comparison.record,
        machine=machine,
    )
    finished = tuple(row for row in comparison.rows if row.reason != NOT_FINISHED)
    return StoredRun(
        head=head,
        comparison=replace(comparison, rows=finished, store_error=None),
        ended=len(finished) == len(comparison.rows),
    )


def _read_parquet(path: Path) -> Iterator[StoredRun]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as exc:
        raise UsageError(
            "Parquet needs the package pyarrow.", hint='pip install "llmfit[parquet]"'
        ) from exc
    try:
        table = parquet.read_table(path, columns=[_RECORD])
    except (OSError, ArrowException, KeyError) as exc:
        raise StoreError(f"{path} is no Parquet export of llmfit: {exc}.") from exc
    for text in table.column(_RECORD).to_pylist():
        if text is not None:
            yield from_json(StoredRun, text, source=str(path))
