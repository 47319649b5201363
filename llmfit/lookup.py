"""A record by what a user calls it: a JSON file, a run's folder, a run's id, or one of its rows.

"result.json" | "runs/20260102-…" | "20260102-…" | "20260102-…/nf4" ─► Recorded
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llmfit.errors import StoreError, UsageError
from llmfit.files import expanded
from llmfit.history import default_runs_dir
from llmfit.keeping import COMPARISON_FILE, Keeping
from llmfit.records import Comparison, RunRecord, from_json, keys_of, read_record
from llmfit.serving_records import ServerBenchmark


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Rows that were recorded, each with the machine that it ran on."""

    name: str
    rows: tuple[RunRecord, ...]
    folder: Path | None = None
    """Where the run's other rows may lie."""
    comparison: Comparison | None = None
    """The whole run; None where single rows were named."""
    server: ServerBenchmark | None = None
    """A server's figures; then there are no rows."""


def find_record(record: str | Path | RunRecord | Comparison, keeping: Keeping) -> Recorded:
    """What ``record`` names: a file or folder, else a run in ``keeping``'s folder or store.

    Raises UsageError where there is none, and StoreError for a file that is no record.
    """
    if isinstance(record, RunRecord):
        return Recorded(name=f"the record of {record.backend}", rows=(record,))
    if isinstance(record, Comparison):
        return Recorded(name=record.run_id, rows=_rows(record), comparison=record)
    runs = expanded(keeping.runs_dir) if keeping.runs_dir else default_runs_dir()
    given = expanded(record)
    for path in (given, runs / given) if str(record) else ():
        if path.is_dir():
            return _read_folder(path, str(record))
        if path.is_file():
            return replace(_read_file(path, str(record)), folder=path.parent)
    found = _stored(str(record), keeping) if str(record) else None
    if found is None:
        raise UsageError(
            f"there is no record {str(record)!r}: neither a file or folder, nor a run in {runs} "
            "or in the store.",
            hint="llmfit history",
        )
    return found


def _stored(record: str, keeping: Keeping) -> Recorded | None:
    from llmfit.store.store import Store

    run_id, _, backend = record.partition("/")
    with Store(keeping.store, to_read=True) as store:
        if not store.history(run_ids=(run_id,)):
            server = store.server(record)
            return None if server is None else Recorded(name=record, rows=(), server=server)
        comparison = store.comparison(run_id)
    found = Recorded(name=record, rows=_rows(comparison), comparison=comparison)
    if not backend:
        return found
    rows = tuple(row for row in found.rows if row.backend == backend)
    if not rows:
        known = ", ".join(row.backend for row in found.rows) or "none"
        raise UsageError(f"the run {run_id} has no row {backend!r}; it has {known}.")
    return replace(found, rows=rows, comparison=None)


def _read_folder(folder: Path, name: str) -> Recorded:
    """The rows of a run; those that were finished, where it came to no end."""
    whole = folder / COMPARISON_FILE
    if whole.is_file():
        return replace(_read_file(whole, name), folder=folder)
    rows = tuple(read_record(RunRecord, path) for path in sorted(folder.glob("*.json")))
    if not rows:
        raise UsageError(f"the folder {str(folder)!r} holds no record.")
    return Recorded(name=name, rows=rows, folder=folder)


def _read_file(path: Path, name: str) -> Recorded:
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror}.") from exc
    keys = keys_of(text, source=str(path))
    if "levels" in keys:
        return Recorded(
            name=name, rows=(), server=from_json(ServerBenchmark, text, source=str(path))
        )
    if "rows" in keys:
        comparison = from_json(Comparison, text, source=str(path))
        return Recorded(name=name, rows=_rows(comparison), comparison=comparison)
    return Recorded(name=name, rows=(from_json(RunRecord, text, source=str(path)),))


def _rows(comparison: Comparison) -> tuple[RunRecord, ...]:
    return tuple(
        replace(row, environment=row.environment or comparison.environment)
        for row in comparison.rows
    )
