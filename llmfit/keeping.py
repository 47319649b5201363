"""A run's records, kept twice: in a folder as they come, and in the store.

    Keeping ─► Keeper ─► RUNS/RUN_ID/ROW.json, ROW.log, comparison.json
                    └──► store: begin, a row as it ends, how it ended

The folder is what a running comparison works in. A store that fails while rows run costs none of
them: they are in the folder, and what is missing is added at the end, or by ``llmfit import``.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmfit.errors import RunChanged, StoreError, UsageError
from llmfit.files import expanded, remove_half_written, write_atomically
from llmfit.folder_lock import FolderInUse, FolderLock
from llmfit.history import default_runs_dir
from llmfit.planning.comparing.comparable import difference_in, difference_in_what_was_asked
from llmfit.planning.verdict.judge import Judge
from llmfit.records import Comparison, Environment, ModelSpec, Plan, RunRecord, to_json
from llmfit.redaction import known_secrets
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
_ROOM_BYTES = 2**20
"""That have to be free for records before anything runs; a row's is some 100 kB."""
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
    lock: FolderLock
    """Keeps others from going on with the run while it is under way."""
    refused: StoreError | None = None
    """What the store said last of a row that it did not take."""

    @property
    def run_id(self) -> str:
        """The run's id, which its folder is named by."""
        return self.folder.name

    def add(self, position: int, record: RunRecord) -> None:
        """Keep a finished row; where folder or store refuses it, the end tells."""
        with suppress(StoreError):  # the end writes all rows, or says why it cannot
            self._write(f"{record.backend.replace(':', '-')}.json", record)
        try:
            self.store.add(self.run_id, position, record)
        except StoreError as exc:
            self.refused = exc  # the row is in the folder, and the end adds what is missing

    def conclude(self, comparison: Comparison) -> Comparison:
        """Keep how the run ended; what it returns says where it could not be kept, and why."""
        try:
            self.store.conclude(comparison)
            self.refused = None
        except StoreError as exc:
            self.refused = exc
        return self._written(comparison)

    def interrupt(self, comparison: Comparison) -> Comparison:
        """Keep what an interrupted run has; in the store it stays one to go on with."""
        return self._written(comparison)

    def _written(self, comparison: Comparison) -> Comparison:
        told = comparison
        if self.refused is not None:
            again = f"llmfit import {self.folder}"
            reason = f"{_sentence(self.refused)} The rows are kept: {again} adds them."
            told = replace(comparison, store_error=reason)
        try:
            self._write(COMPARISON_FILE, told)
        except StoreError as exc:
            kept = f"The rows are in the store: llmfit show {self.run_id}."
            if self.refused is not None:
                kept = f"{_sentence(self.refused)} The rows are kept nowhere."
            reason = f"{_sentence(exc)} {kept}"
            told = replace(comparison, store_error=reason)
        return told

    def _write(self, name: str, record: RunRecord | Comparison) -> None:
        """Write a record to the run's folder. Raises StoreError."""
        path = self.folder / name
        try:
            write_atomically(path, to_json(record))
        except OSError as exc:
            raise _unwritable(path, exc) from exc

    def close(self) -> None:
        """Close the store, and give back the folder."""
        self.store.close()
        self.lock.release()


def keep(
    plans: Sequence[Plan],
    machine: Environment,
    keeping: Keeping,
    *,
    command: str | None,
    judge: Judge | None = None,
) -> Keeper:
    """Begin to keep a run of ``plans``, or go on with the one that ``keeping`` names.

    ``judge`` is what its verdict goes by, kept for a run that comes to no end.

    Raises StoreError where folder or store cannot be had, and UsageError for a run that is not
    there, is under way, has ended, or is of something else than ``plans``: RunChanged where its
    rows were measured with other settings, or on another machine.
    """
    from llmfit.store.store import Store

    store = Store(keeping.store)
    folder: Path | None = None
    try:
        if keeping.resume is not None:
            return _continued(store, plans, machine, keeping, keeping.resume)
        first = plans[0]
        _sweep(_runs_dir(keeping.runs_dir))
        folder = _make_run_folder(first.model, keeping.runs_dir)
        record = folder.name if keeping.runs_dir is None else str(folder.absolute())
        head = RunHead(
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
            judge=judge,
        )
        store.begin(known_secrets().hide_in(head))
        lock = _taken(folder)
    except BaseException:
        store.close()
        if folder is not None:
            folder.rmdir()  # nothing is in it yet
        raise
    return Keeper(folder=folder, record=record, store=store, lock=lock)


def _continued(
    store: Store, plans: Sequence[Plan], machine: Environment, keeping: Keeping, resume: str
) -> Keeper:
    first = plans[0]
    name = keeping.machine or machine_name()
    line = store.unfinished(name, first.model.name) if resume == LAST else store.line(resume)
    if line is None:
        raise UsageError(
            f"there is no interrupted run of {first.model.name} on {name} in {store.name}.",
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
    _make_folder(folder)
    lock = _taken(folder)
    try:
        remove_half_written(folder)
        rows = store.comparison(run_id).rows  # after the lock: nobody adds any more
        _check_as_before(rows, plans, machine, head)
    except BaseException:
        lock.release()
        raise
    return Keeper(
        folder=folder,
        record=head.record or run_id,
        done={row.backend: row for row in rows},
        store=store,
        lock=lock,
    )


def _check_as_before(
    rows: Sequence[RunRecord], plans: Sequence[Plan], machine: Environment, head: RunHead
) -> None:
    """Raise RunChanged where rows that are there could not stand beside those still to come."""
    now = {plan.backend: known_secrets().hide_in(plan) for plan in plans}
    for row in rows:
        plan = now.get(row.backend)
        if plan is not None and row.plan is not None:
            different = difference_in_what_was_asked(row.plan, plan)
            if different is not None:
                raise RunChanged(
                    f"the run {head.run_id} has a row {row.backend} of other settings than are "
                    f"asked for: {different}.",
                    hint=head.command or "the arguments of that run",
                )
        if row.status == "ok" and row.environment is not None:
            different = difference_in(row.environment, machine)
            if different is not None:
                raise RunChanged(
                    f"the run {head.run_id} was begun on another machine or with other versions: "
                    f"{different}.",
                    hint="the same without --resume, which measures all rows anew",
                )


def _taken(folder: Path) -> FolderLock:
    """The run's folder, for this process alone. Raises UsageError and StoreError."""
    try:
        return FolderLock(folder)
    except FolderInUse as exc:
        raise UsageError(
            f"the run {folder.name} is under way in another process.",
            hint="wait for it, or --resume RUN with another one of `llmfit history`",
        ) from exc
    except OSError as exc:
        raise StoreError(
            f"cannot use the records' folder {folder}: {exc.strerror}.", hint="--runs-dir DIR"
        ) from exc


def _sweep(runs: Path) -> None:
    """Remove old logits of runs that were interrupted or killed, and that nobody went on with.

    Half-written ones have a dot before the name.
    """
    for file in runs.glob(f"*/*{REFERENCE_FILE}*"):
        with suppress(OSError):  # another process sweeps too, or the folder is read-only
            if time.time() - file.stat().st_mtime > _RESUMABLE_S:
                file.unlink()


def _runs_dir(runs_dir: str | None) -> Path:
    return expanded(runs_dir) if runs_dir else default_runs_dir()


def _make_run_folder(spec: ModelSpec, runs_dir: str | None) -> Path:
    """A new folder for this run's records. Raises StoreError where it cannot be made."""
    slug = re.sub(r"[^\w.-]+", "-", spec.name).strip("-.") or "model"
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = _runs_dir(runs_dir) / f"{moment}-{slug}-{secrets.token_hex(3)}"
    _make_folder(folder)
    return folder


def _make_folder(folder: Path) -> None:
    """Make the folder where it is missing, with room for records. Raises StoreError."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_room(folder / ".room")
    except OSError as exc:
        if made and folder.exists():
            folder.rmdir()
        raise _unwritable(folder, exc) from exc


def _try_room(file: Path) -> None:
    """Write as much as records take, and remove it. Raises OSError."""
    try:
        with file.open("wb") as stream:
            stream.write(secrets.token_bytes(_ROOM_BYTES))  # what no file system can compress
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        file.unlink(missing_ok=True)


def _sentence(error: StoreError) -> str:
    return f"{error.message.rstrip('.')}."


def _unwritable(path: Path, exc: OSError) -> StoreError:
    return StoreError(
        f"cannot write {path}: {exc.strerror}.", hint="--runs-dir DIR on another disk"
    )
