"""Records that earlier comparisons on this machine left: what later predictions are calibrated by.

    RUNS/20260102-030405-model-abcdef/ROW.json ─► newest first ─► of this CPU ─► RunRecord

A plan is to be there in less than a second, so what is read is bounded in number and in time, and a
file that is damaged, or of another version, is passed over: it is the comparison's to complain.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.errors import StoreError
from llmfit.files import expanded
from llmfit.records import RunRecord, read_record

ROWS_PER_BACKEND = 16
"""Newest rows of each backend that are read; a prediction uses fewer, of the same model."""
RUNS_LOOKED_AT = 400
"""Newest runs whose rows are listed."""
LARGEST_BYTES = 8_000_000
"""A row's record is some 100 kB; one that is larger is not worth its reading."""
TIME_LIMIT_S = 0.3

_NO_ROW = frozenset({"comparison.json"})


def default_runs_dir() -> Path:
    """Where records are kept unless told otherwise: the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("llmfit") / "runs"


def own_records(
    runs_dir: str | Path | None = None,
    *,
    machine: tuple[str, int] | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> tuple[RunRecord, ...]:
    """Timed rows of a machine under ``runs_dir`` (None: the default), newest first.

    Of a machine is what has its CPU and as many cores of it, which ``machine`` tells; None is this
    one. Of which GPU a row is, it says itself. Empty where there are none, or the folder cannot be
    read.
    """
    cpu, cores = machine or (cpu_name(), physical_cores())
    folder = default_runs_dir() if runs_dir is None else expanded(runs_dir)
    deadline = time.monotonic() + time_limit_s
    taken: Counter[str] = Counter()
    records: list[RunRecord] = []
    for path in _row_files(folder):
        if time.monotonic() > deadline:
            break
        if taken[path.stem] >= ROWS_PER_BACKEND:
            continue
        record = _read(path)
        if record is None or record.decode is None or record.environment is None:
            continue
        if (record.environment.cpu, record.environment.cpu_cores) == (cpu, cores):
            taken[path.stem] += 1
            records.append(record)
    return tuple(records)


def _row_files(folder: Path) -> Iterator[Path]:
    """Files of single rows, the newest run first: a run's name begins with its moment."""
    try:
        runs = sorted((path.name for path in folder.iterdir()), reverse=True)
    except OSError:
        return
    for name in runs[:RUNS_LOOKED_AT]:
        yield from sorted(p for p in (folder / name).glob("*.json") if p.name not in _NO_ROW)


def _read(path: Path) -> RunRecord | None:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            return None
        return read_record(RunRecord, path)
    except (OSError, StoreError):
        return None
