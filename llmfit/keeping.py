"""A run's records, kept twice: in a folder as they come, and in the store.

    Keeping ─► Keeper ─► RUNS/RUN_ID/ROW.json, ROW.log, comparison.json
                    └──► store: begin, a row as it ends, how it ended

The folder is what a running comparison works in. A store that fails while rows run costs none of
them: they are in the folder, and what is missing is added at the end, or by ``llmfit import``.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.errors import StoreError, UsageError
from llmfit.files import write_atomically
from llmfit.history import default_runs_dir
from llmfit.records import Comparison, Environment, ModelSpec, Plan, RunRecord, to_json
from llmfit.store.heads import RunHead
from llmfit.store.place import machine_name, utc_now

if TYPE_CHECKING:
    from llmfit.store.store import Store

LAST = "last"
"""The newest interrupted run of the model on this machine."""
COMPARISON_FILE = "comparison.json"
"""A run's whole record, in its folder."""
REFERENCE_FILE = "reference-logits.bin"
"""The reference row's logits: large, and there while its comparison is not at its end."""
_RESUMABLE_S = 7 * 24 * 3600
"""How long the logits of an interrupted run are kept for going on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where a run's records go, and what they are filed under."""

    runs_dir: str | None = None
    """None: the user's data folder."""
    store: str | None = None
    """A file or ``postgresql://…``; None: the default place."""
    machine: str | None = None
    """Name of this machine in the store; None: the host's."""
    session_id: str | None = None
    """The night that the run belongs to."""
    cell: str | None = None
    """Which of the night's comparisons it is."""
    tag: str | None = None
    resume: str | None = None
    """Id of an interrupted run to go on with, or ``LAST``; None begins a new one."""


@dataclass(slots=True, kw_only=True)
class Keeper:
    """Keeps one run's records."""

    folder: Path
    record: str
    """What ``llmfit reproduce`` finds the run by."""
    done: Mapping[str, RunRecord] = field(default_factory=dict)
    """Rows of an interrupted run, by backend."""
    store: Store
    refused: StoreError | None = None
    """What the store said last of a row that it did not take."""

    @property
    def run_id(self) -> str:
        """The run's id, which its folder is named by."""
        return self.folder.name

    def add(self, position: int, record: RunRecord) -> None:
        """Keep a finished row. Raises StoreError where its file cannot be written."""
        self.write(f"{record.backend.replace(':', '-')}.json", record)
        try:
            self.store.add(self.run_id, position, record)
        except StoreError as exc:
            self.refused = exc  # the row is in the folder, and the end adds what is missing

    def conclude(self, comparison: Comparison) -> Comparison:
        """Keep how the run ended; what it returns says where it is stored, or why it is not.

        Raises StoreError where the folder's file cannot be written.
        """
        try:
            self.store.conclude(comparison)
            self.refused = None
        except StoreError as exc:
            self.refused = exc
        return self._written(comparison)

    def interrupt(self, comparison: Comparison) -> Comparison:
        """Keep what an interrupted run has; in the store it stays one to go on with.

        Raises StoreError where the folder's file cannot be written.
        """
        return self._written(comparison)

    def _written(self, comparison: Comparison) -> Comparison:
        if self.refused is not None:
            again = f"llmfit import {self.folder}"
            reason = f"{self.refused.message} The rows are kept: {again} adds them."
            comparison = replace(comparison, store_error=reason)
        self.write(COMPARISON_FILE, comparison)
        return comparison

    def write(self, name: str, record: RunRecord | Comparison) -> None:
        """Write a record to the run's folder. Raises StoreError."""
        path = self.folder / name
        try:
            write_atomically(path, to_json(record))
        except OSError as exc:
            raise StoreError(
                f"cannot write {path}: {exc.strerror}.", hint="--runs-dir DIR on another disk"
            ) from exc

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def keep(
    plans: Sequence[Plan], machine: Environment, keeping: Keeping, *, command: str | None
) -> Keeper:
    """Begin to keep a run of ``plans``, or go on with the one that ``keeping`` names.

    Raises StoreError where folder or store cannot be had, and UsageError for a run that is not
    there, has ended, or is of something else than ``plans``.
    """
    from llmfit.store.store import Store

    store = Store(keeping.store)
    try:
        if keeping.resume is not None:
            return _continued(store, plans, keeping, keeping.resume)
        first = plans[0]
        _sweep(_runs_dir(keeping.runs_dir))
        folder = _make_run_folder(first.model, keeping.runs_dir)
        record = folder.name if keeping.runs_dir is None else str(folder.absolute())
        store.begin(
            RunHead(
                run_id=folder.name,
                model=first.model,
                workload=first.workload,
                environment=machine,
                backends=tuple(plan.backend for plan in plans),
                started_at=utc_now(),
                budget_bytes=first.budget_bytes,
                ram_budget_bytes=first.ram_budget_bytes,
                command=command,
                record=record,
                machine=keeping.machine,
                session_id=keeping.session_id,
                cell=keeping.cell,
                tag=keeping.tag,
            )
        )
    except BaseException:
        store.close()
        raise
    return Keeper(folder=folder, record=record, store=store)


def _continued(store: Store, plans: Sequence[Plan], keeping: Keeping, resume: str) -> Keeper:
    first = plans[0]
    machine = keeping.machine or machine_name()
    line = store.unfinished(machine, first.model.name) if resume == LAST else store.line(resume)
    if line is None:
        raise UsageError(
            f"there is no interrupted run of {first.model.name} on {machine} in {store.name}.",
            hint="llmfit history",
        )
    if line.ended:
        raise UsageError(f"the run {line.run_id} has ended: there is nothing to continue.")
    run_id, head = line.run_id, store.head(line.run_id)
    asked = (first.model.name, first.workload, tuple(plan.backend for plan in plans))
    if asked != (head.model.name, head.workload, head.backends):
        raise UsageError(
            f"the run {run_id} is of other rows, another model or workload than is asked for.",
            hint=head.command or "the arguments of that run",
        )
    folder = _runs_dir(keeping.runs_dir) / run_id
    folder.mkdir(parents=True, exist_ok=True)
    rows = store.comparison(run_id).rows
    return Keeper(
        folder=folder,
        record=head.record or run_id,
        done={row.backend: row for row in rows},
        store=store,
    )


def _sweep(runs: Path) -> None:
    """Remove old logits of runs that were interrupted or killed, and that nobody went on with."""
    for file in runs.glob(f"*/{REFERENCE_FILE}*"):
        with suppress(OSError):  # another process sweeps too, or the folder is read-only
            if time.time() - file.stat().st_mtime > _RESUMABLE_S:
                file.unlink()


def _runs_dir(runs_dir: str | None) -> Path:
    return Path(runs_dir).expanduser() if runs_dir else default_runs_dir()


def _make_run_folder(spec: ModelSpec, runs_dir: str | None) -> Path:
    """A new folder for this run's records. Raises StoreError where it cannot be made."""
    slug = re.sub(r"[^\w.-]+", "-", spec.name).strip("-.") or "model"
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = _runs_dir(runs_dir) / f"{moment}-{slug}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True)
    except OSError as exc:
        raise StoreError(
            f"cannot make the records' folder {folder}: {exc.strerror}.", hint="--runs-dir DIR"
        ) from exc
    return folder
