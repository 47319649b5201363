"""A night: every comparison of the settings, one after the other, whatever fails.

    NightlyConfig ─► lock ─► session (new, or the interrupted one) ─► compare, cell by cell
                                                                        └► regressions ─► result

On a fleet the cells of every kind of node are done at the same time, in the order of each.

All that a resumed night needs is in the store: which runs of the session have ended, and the rows
of the one that has not.
"""

from __future__ import annotations

import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.comparison import compare
from llmfit.errors import LlmfitError, RunChanged, StoreError, UsageError
from llmfit.executors.base import OUT_OF_TIME
from llmfit.files import expanded
from llmfit.history import default_runs_dir
from llmfit.job import Observer
from llmfit.keeping import Keeping
from llmfit.nightly.baseline import check_baseline, find_regressions, night_trends
from llmfit.nightly.config import EMBEDDED, Cell, NightlyConfig
from llmfit.nightly.places import Places, places
from llmfit.records import Comparison, RunRecord
from llmfit.redaction import known_secrets
from llmfit.store.place import machine_name, utc_now
from llmfit.trend_records import CellResult, NightHead, NightResult

if TYPE_CHECKING:
    from llmfit.store.store import Store

_SAME_NIGHT = timedelta(hours=24)
"""An interrupted night that began longer ago is not gone on with: it would mix two days."""
Watch = Callable[[Cell, int, int], Observer | None]
"""Told of each comparison before it runs, with its number and their count."""


def watch_nothing(cell: Cell, number: int, total: int) -> Observer | None:
    """Progress that nobody follows."""
    return None


def run_night(
    config: NightlyConfig,
    *,
    runs_dir: str | None = None,
    cache_dir: str | None = None,
    watch: Watch = watch_nothing,
    command: str | None = None,
) -> NightResult:
    """Measure all that ``config`` asks for, and say what became worse.

    What fails is a cell with its reason. Raises UsageError where another night runs on this
    machine or the baseline is unknown, StoreError where the store cannot be used, and
    KeyboardInterrupt: the same call then goes on from there.
    """
    from llmfit.store.store import Store

    with _lock(runs_dir), Store(config.store) as store, places(config) as there:
        check_baseline(store, config.baseline)
        head, notes = _session(store, config)
        night = _Night(
            config=config,
            head=head,
            begun={
                run.cell: run.run_id
                for run in store.runs_of(head.session_id)
                if run.cell is not None
            },
            store=store,
            places=there,
            runs_dir=runs_dir,
            cache_dir=cache_dir,
            deadline=None
            if config.time_limit_h is None
            else time.monotonic() + 3600 * config.time_limit_h,
            command=command,
        )
        cells = night.run(watch)
        runs = [cell.run_id for cell in cells if cell.run_id is not None]
        notes += tuple(
            f"{cell.name}: measured anew, as rows of {night.begun[cell.name]}, which was "
            "interrupted, would not compare with new ones"
            for cell in cells
            if cell.run_id is not None and night.begun.get(cell.name, cell.run_id) != cell.run_id
        )
        result = NightResult(
            session_id=head.session_id,
            title=head.title,
            machine=head.machine,
            started_at=head.started_at,
            ended_at=utc_now(),
            tag=head.tag,
            cells=cells,
            baseline=config.baseline,
            notes=notes,
            command=command,
        )
        trends = night_trends(store, result.machines)
        found = find_regressions(store, trends, runs, baseline=config.baseline)
        result = replace(result, regressions=found)
        result = known_secrets().hide_in(result)
        store.end_session(result)
    return result


@contextmanager
def _lock(runs_dir: str | None) -> Iterator[None]:
    """Only one night at a time on a machine: two would measure each other. Raises UsageError."""
    from filelock import FileLock, Timeout

    folder = default_runs_dir() if runs_dir is None else expanded(runs_dir)
    path = folder / "nightly.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout as exc:
        raise UsageError(
            f"another nightly run is under way on this machine: {path} is locked.",
            hint="wait for it, or stop it",
        ) from exc
    except OSError as exc:
        raise StoreError(f"cannot lock {path}: {exc.strerror}.", hint="--runs-dir DIR") from exc
    try:
        yield
    finally:
        lock.release()


def _session(store: Store, config: NightlyConfig) -> tuple[NightHead, tuple[str, ...]]:
    """The night to go on with, else a new one; and a note of it."""
    machine = config.machine or machine_name()
    since = (datetime.now(UTC) - _SAME_NIGHT).isoformat(timespec="microseconds")
    begun = store.unended_session(machine, config.digest, since=since)
    if begun is not None:
        return begun, (f"goes on with the night that was interrupted, begun {begun.started_at}",)
    night = NightHead(
        session_id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-night-{secrets.token_hex(3)}",
        title=config.title,
        machine=machine,
        started_at=utc_now(),
        config_hash=config.digest,
        tag=config.tag,
    )
    head = known_secrets().hide_in(night)
    store.begin_session(head)
    return head, ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Night:
    """A night under way."""

    config: NightlyConfig
    head: NightHead
    begun: Mapping[str, str]
    """Of a night that goes on: the newest run of each cell by its name."""
    store: Store
    places: Places
    runs_dir: str | None
    cache_dir: str | None
    deadline: float | None
    """Of the monotonic clock."""
    command: str | None

    def run(self, watch: Watch) -> tuple[CellResult, ...]:
        """Every cell's result, in the settings' order."""
        cells = self.config.cells()

        def of_kind(kind: str | None) -> dict[str, CellResult]:
            return {
                cell.name: self._cell(cell, partial(watch, cell, number, len(cells)))
                for number, cell in enumerate(cells, start=1)
                if cell.kind == kind
            }

        done = self.places.each(of_kind)
        return tuple(done[cell.kind][cell.name] for cell in cells)

    def _cell(self, cell: Cell, watch: Callable[[], Observer | None]) -> CellResult:
        """One comparison; one that ended before an interruption is not run again."""
        blank = CellResult(
            name=cell.name,
            model=cell.model.model,
            workload=cell.workload_name,
            kind=cell.kind,
            machine=self.places.machine_name(self.head.machine, cell.kind),
            status="not run",
        )
        resume = self.begun.get(cell.name)
        if resume is not None and self.store.line(resume).ended:
            return _finished(blank, self.store.comparison(resume))
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return replace(blank, reason=OUT_OF_TIME)
        began = time.monotonic()
        try:
            comparison = self._compared(cell, resume, watch())
        except LlmfitError as exc:
            return replace(
                blank, status="failed", reason=str(exc), seconds=time.monotonic() - began
            )
        except Exception as exc:  # noqa: BLE001 - a fault of ours costs one cell, and is shown
            where = traceback.extract_tb(exc.__traceback__)[-1]
            reason = f"{type(exc).__name__}: {exc} ({Path(where.filename).name}:{where.lineno})"
            return replace(blank, status="failed", reason=reason, seconds=time.monotonic() - began)
        return _finished(blank, comparison)

    def _compared(self, cell: Cell, resume: str | None, observer: Observer | None) -> Comparison:
        """The cell, gone on with; anew where an upgrade since keeps old rows from new ones."""
        try:
            return self._compare(cell, resume, observer)
        except RunChanged:
            return self._compare(cell, None, observer)

    def _compare(self, cell: Cell, resume: str | None, observer: Observer | None) -> Comparison:
        asked = cell.model
        return compare(
            None if asked.model == EMBEDDED else asked.model,
            backends=asked.backends,
            workload=cell.workload,
            shorten=True,
            evaluation=cell.evaluation(),
            checkpoints=asked.checkpoints,
            calibration_file=asked.calibration_file,
            gpu_gb=asked.gpu_gb,
            ram_gb=asked.ram_gb,
            weights=asked.weights,
            device=asked.device,
            threads=asked.threads,
            seed=asked.seed,
            cache_dir=self.cache_dir,
            keeping=Keeping(
                runs_dir=self.runs_dir,
                store=self.config.store,
                machine=self.head.machine,
                session_id=self.head.session_id,
                cell=cell.name,
                tag=self.head.tag,
                resume=resume,
            ),
            time_limit_s=asked.row_time_limit_s,
            deadline=self.deadline,
            observer=observer,
            command=self.command,
            kv_cache_dtype=asked.kv_cache_dtype,
            objective=asked.objective,
            allow_pickle=asked.allow_pickle,
            trust_remote_code=asked.trust_remote_code,
            executor=self.places.executors[cell.kind],
        )


def _finished(blank: CellResult, comparison: Comparison) -> CellResult:
    """A cell whose comparison has ended; one of which no row ran has not been measured."""
    rows = comparison.rows
    if any(row.predicted_only for row in rows):
        return replace(blank, status="failed", reason=rows[0].reason, rows=len(rows))
    if comparison.store_error is not None:
        return replace(blank, status="failed", reason=comparison.store_error, rows=len(rows))
    result = replace(
        blank,
        status="done",
        run_id=comparison.run_id,
        rows_ok=sum(row.status == "ok" for row in rows),
        rows=len(rows),
        seconds=comparison.total_s,
    )
    if late := sum(row.reason == OUT_OF_TIME for row in rows):
        return replace(
            result, status="not run", reason=f"{late} of {len(rows)} rows: {OUT_OF_TIME}"
        )
    if result.rows_ok == 0:
        return replace(result, status="failed", reason=_why_no_row(rows))
    return result


def _why_no_row(rows: Sequence[RunRecord]) -> str:
    """Why none of a comparison's rows ran: every reason once, with the rows that it is of."""
    of: dict[str, list[str]] = {}
    for row in rows:
        of.setdefault(row.reason or row.status, []).append(row.backend)
    if len(of) == 1:
        return next(iter(of))
    return "; ".join(f"{', '.join(backends)}: {reason}" for reason, backends in of.items())
