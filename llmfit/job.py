"""Plans in, a comparison out: every row in a process of its own, on disk as soon as it is done.

    plans ─► model on disk ─► can it run here? ─► hashed ─► run_isolated ─► row, kept
                                                                └► verdict ─► comparison, kept

The reference row runs first, whatever its place in the table: the others read its logits. Where
nothing fits, a row with offloaded weights is added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmfit.backends.base import Progress
from llmfit.backends.registry import get_backend
from llmfit.errors import LlmfitError, ModelNotFound, StoreError
from llmfit.evaluate.divergence import remove_reference
from llmfit.inputs import hashed
from llmfit.keeping import REFERENCE_FILE, Keeper, Keeping, keep
from llmfit.models import local_folder
from llmfit.planning.advice.remedy import OFFLOAD, first_change
from llmfit.planning.comparing.differences import REFERENCE, attach_differences
from llmfit.planning.memory.prediction import predict_memory
from llmfit.planning.speed.roofline import attach_roofline
from llmfit.planning.verdict.constraints import Constraints
from llmfit.planning.verdict.recommend import recommend
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import (
    Comparison,
    Device,
    Environment,
    ModelSpec,
    Plan,
    RunRecord,
    Status,
    Verdict,
)
from llmfit.redaction import known_secrets
from llmfit.runner.forkserver import ForkServer
from llmfit.runner.isolate import run_isolated
from llmfit.runner.worker import blank_record
from llmfit.units import format_bytes

NOT_FINISHED = "interrupted"
"""Reason of a row that an interrupt kept from its end."""
OUT_OF_TIME = "the time limit of the whole was reached"
"""Reason of a row that was not begun any more."""
_LOGITS_GONE = "the reference's logits of the interrupted run are not there any more"
_PREDICTION_ERROR = 0.05
"""Share by which a prediction may exceed a budget and the row is tried all the same: predictions
are within that of nearly all measured peaks, and the budget is kept while it runs."""
_OFFLOAD_NEW_TOKENS = 8
"""Timed of an added offload row: each may take as long as reading the whole model from disk."""

Judge = Callable[[Sequence[RunRecord]], Verdict]
"""From finished rows to a verdict."""


class Observer:
    """Told what happens while a comparison runs. Shows nothing itself: override what you need."""

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        """Row ``index`` (from 0) of ``total`` begins."""

    def progress(self, backend: str, stage: str, done: int, total: int) -> None:
        """The running row's stage; ``total`` 0 means not known."""

    def row_done(self, record: RunRecord) -> None:
        """A row is finished and on disk."""


class ComparisonInterrupted(KeyboardInterrupt):
    """Ctrl-C: the running row was stopped, the finished ones are kept in ``comparison``."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__("interrupted")
        self.comparison = comparison


def run_plans(
    plans: Sequence[Plan],
    machine: Environment,
    *,
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    time_limit_s: float | None = None,
    deadline: float | None = None,
    observer: Observer | None = None,
    command: str | None = None,
    judge: Judge | None = None,
    last_resort: bool = True,
    server: ForkServer | None = None,
    started: float | None = None,
) -> Comparison:
    """Run ``plans``, one row each, all of one model and workload, and judge the rows.

    Their processes are forked from ``server`` where there is one. ``started`` is the monotonic
    time from which the whole is timed; None is now. Records go where ``keeping`` says; rows of an
    interrupted run that it names are not run again. ``deadline`` is the monotonic time after which
    no row begins or goes on.

    ``judge`` makes the verdict; by default the fastest row within the plans' budgets. With
    ``last_resort`` a row with offloaded weights is added where nothing fits. Raises
    StoreError where records cannot be kept, UsageError for a run that cannot be continued,
    ModelNotFound for a model that cannot be downloaded, and ComparisonInterrupted.
    """
    on_disk = _on_disk(plans, machine)  # a download that fails is no run
    keeper = keep(plans, machine, keeping, command=command)
    job = _Job(
        plans=tuple(plans),
        machine=machine,
        keeper=keeper,
        time_limit_s=time_limit_s,
        deadline=deadline,
        observer=observer or Observer(),
        command=command,
        judge=judge or partial(recommend, constraints=budgets(plans[0])),
        last_resort=last_resort,
        server=server,
        started=time.monotonic() if started is None else started,
        on_disk=on_disk,
    )
    with closing(keeper):
        return job.run()


def budgets(plan: Plan) -> Constraints:
    """The bounds of a verdict on rows with this plan's budgets."""
    return Constraints(memory_bytes=plan.budget_bytes, ram_bytes=plan.ram_budget_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The plans of one comparison, and where their records go."""

    plans: tuple[Plan, ...]
    machine: Environment
    keeper: Keeper
    time_limit_s: float | None
    deadline: float | None
    observer: Observer
    command: str | None
    judge: Judge
    last_resort: bool
    server: ForkServer | None
    """Forks the rows' processes; None where each starts anew."""
    started: float
    on_disk: ModelSpec | None
    """The rows' model with its files; None where no row was known to need them."""

    def run(self) -> Comparison:
        """Run every row in turn; an interrupt keeps the finished ones."""
        rows = dict(self.keeper.done)
        try:
            for index, plan in enumerate(self._in_order()):
                if plan.backend not in rows:
                    rows[plan.backend] = self._row(plan, index)
            if self.last_resort and nothing_fits(list(rows.values())):
                rows[OFFLOAD] = self._offload_row()
            judged = self._judged(rows)
            remove_reference(self._reference_file)  # large, and of no use beyond this run
            return self.keeper.conclude(judged)
        except KeyboardInterrupt as exc:
            for plan in self.plans:
                if plan.backend not in rows:
                    rows[plan.backend] = self._not_run(plan, "skipped", NOT_FINISHED)
            raise ComparisonInterrupted(self.keeper.interrupt(self._judged(rows))) from exc
        except LlmfitError:
            remove_reference(self._reference_file)
            raise

    @property
    def _reference_file(self) -> Path:
        return self.keeper.folder / REFERENCE_FILE

    def _in_order(self) -> list[Plan]:
        """The plans in the order of running, with the place of the reference's logits."""
        if not any(_measures_divergence(plan) for plan in self.plans):
            return list(self.plans)
        if not any(plan.backend == REFERENCE for plan in self.plans):
            return [_with_note(plan, f"no divergence: no {REFERENCE} row") for plan in self.plans]
        if REFERENCE in self.keeper.done and not self._reference_file.is_file():
            return [_with_note(plan, f"no divergence: {_LOGITS_GONE}") for plan in self.plans]
        place = str(self._reference_file)
        plans = [replace(plan, reference_file=place) for plan in self.plans]
        return sorted(plans, key=lambda plan: plan.backend != REFERENCE)

    def _row(self, plan: Plan, index: int) -> RunRecord:
        """Run one row, or say why not; its record is on disk before this returns."""
        record = self._reason_not_to_run(plan)
        if record is None and plan.weights == "real":
            plan = replace(plan, model=self.on_disk or _fetched(plan))
        total = max(index + 1, len(self.plans))
        self.observer.row_started(plan.backend, blank_record(plan).label, index, total)
        progress = partial(self.observer.progress, plan.backend)
        if record is None:
            record = self._measured(plan, progress)
        record = known_secrets().hide_in(record)
        self.keeper.add(self._place(plan), record)
        self.observer.row_done(record)
        return record

    def _measured(self, plan: Plan, progress: Progress) -> RunRecord:
        """A row that runs; one whose files are not there any more fails by itself."""
        progress("hash model", 0, 0)
        try:
            plan = hashed(plan)
        except LlmfitError as exc:
            return self._not_run(plan, "failed", str(exc))
        log = self.keeper.folder / f"{plan.backend.replace(':', '-')}.log"
        record = self._run(plan, progress, log)
        # Not asked in the worker: that would open a CUDA context beside a row on the CPU.
        return attach_roofline(replace(record, environment=self.machine), self.machine)

    def _run(self, plan: Plan, progress: Progress, log_path: Path) -> RunRecord:
        """The row's own process; what it may leave behind goes, and too large gets its remedy."""
        cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
        try:
            with ExitStack() as stack:
                if plan.backend == OFFLOAD:
                    with suppress(StoreError):  # then the row finds a place for them itself
                        scratch = stack.enter_context(cache.scratch(OFFLOAD, 0))
                        plan = replace(plan, offload_dir=str(scratch))
                record = run_isolated(
                    plan,
                    time_limit_s=self._row_limit_s(),
                    progress=progress,
                    log_path=log_path,
                    server=self.server,
                )
        finally:
            with suppress(StoreError):  # then nothing can have been left there either
                cache.sweep()
        if record.status != "does_not_fit":
            return record
        return replace(record, reason=_with_remedy(str(record.reason), plan))

    def _row_limit_s(self) -> float | None:
        """Seconds that a row that begins now may take; None for no limit."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        return min((each for each in (self.time_limit_s, left) if each is not None), default=None)

    def _offload_row(self) -> RunRecord:
        """The row that is added where nothing fits; its weights may not be had, unlike a plan."""
        plan = self._offloaded()
        try:
            return self._row(plan, len(self.plans))
        except ModelNotFound as exc:
            return self._not_run(plan, "failed", str(exc))

    def _offloaded(self) -> Plan:
        """The plan of the row that is added where nothing fits: bf16, its weights anywhere."""
        first = self.plans[0]
        shorter = min(_OFFLOAD_NEW_TOKENS, first.workload.new_tokens)
        notes = [
            "added as nothing else fits; quality is not scored: its weights are those of bf16",
            f"timed with {shorter} new tokens, as each may read the weights from disk",
        ]
        if first.kv_cache_dtype is not None:
            notes.append("KV cache in 16 bits")
        return replace(
            first,
            backend=OFFLOAD,
            device="cuda" if any(plan.device == "cuda" for plan in self.plans) else "cpu",
            workload=replace(first.workload, new_tokens=shorter),
            evaluation=None,
            checkpoint=None,
            predicted=None,
            kv_cache_dtype=None,
            reference_file=None,
            notes=(*first.notes, *notes),
        )

    def _reason_not_to_run(self, plan: Plan) -> RunRecord | None:
        """The record of a row that is known not to run here; None for one to be tried."""
        left = self._row_limit_s()
        if left is not None and left <= 0:
            return self._not_run(plan, "skipped", OUT_OF_TIME)
        known = _ruled_out(plan, self.machine)
        return None if known is None else self._not_run(plan, *known)

    def _not_run(self, plan: Plan, status: Status, reason: str) -> RunRecord:
        return replace(blank_record(plan), status=status, reason=reason, environment=self.machine)

    def _judged(self, rows: dict[str, RunRecord]) -> Comparison:
        """The rows in the order that was asked for, with their verdict."""
        first = self.plans[0]
        added = [row for backend, row in rows.items() if backend not in self._backends()]
        judged = attach_differences([*(rows[name] for name in self._backends()), *added])
        comparison = Comparison(
            run_id=self.keeper.run_id,
            model=first.model,
            workload=first.workload,
            budget_bytes=first.budget_bytes,
            ram_budget_bytes=first.ram_budget_bytes,
            rows=judged,
            verdict=self.judge(judged),
            environment=self.machine,
            command=self.command,
            record=self.keeper.record,
            total_s=time.monotonic() - self.started,
        )
        return known_secrets().hide_in(comparison)

    def _place(self, plan: Plan) -> int:
        """The row's place in the table; an added one comes last."""
        names = self._backends()
        return names.index(plan.backend) if plan.backend in names else len(names)

    def _backends(self) -> list[str]:
        return [plan.backend for plan in self.plans]


def nothing_fits(rows: Sequence[RunRecord]) -> bool:
    """True where rows do not fit and none runs, offloaded ones among them."""
    statuses = {row.status for row in rows}
    offloaded = any(row.backend == OFFLOAD for row in rows)
    return "does_not_fit" in statuses and "ok" not in statuses and not offloaded


def _on_disk(plans: Sequence[Plan], machine: Environment) -> ModelSpec | None:
    """The plans' model with its files, downloaded where a row will need them; else None."""
    first = plans[0]
    if first.weights != "real" or all(_ruled_out(plan, machine) for plan in plans):
        return None
    return _fetched(first)


def _fetched(plan: Plan) -> ModelSpec:
    return local_folder(
        plan.model, allow_pickle=plan.allow_pickle, trust_remote_code=plan.trust_remote_code
    )


def _ruled_out(plan: Plan, machine: Environment) -> tuple[Status, str] | None:
    """The status of a row that is known not to run on ``machine``, and why; None for others."""
    backend = get_backend(plan.backend)
    outcome = backend.check(plan)
    if outcome.unavailable is not None:
        return "unavailable", outcome.unavailable
    if outcome.skipped is not None:
        return "skipped", outcome.skipped
    too_large = _too_large(plan, machine, on_gpu="cuda" in backend.devices)
    return ("does_not_fit", too_large) if too_large else None


def _measures_divergence(plan: Plan) -> bool:
    return plan.evaluation is not None and "wikitext" in plan.evaluation.tasks


def _with_note(plan: Plan, note: str) -> Plan:
    return replace(plan, notes=(*plan.notes, note))


def _too_large(plan: Plan, machine: Environment, *, on_gpu: bool) -> str | None:
    """Why the predicted memory rules this row out: the GPU budget, the GPU, or the RAM's.

    A budget without a GPU is judged by what the row would need on one. An offloaded row takes
    what its budgets leave.
    """
    if plan.backend == OFFLOAD:
        return None
    limits: list[tuple[Device, int | None, str]] = [("cpu", _ram_limit(plan, machine), " of RAM")]
    if on_gpu:
        has = machine.gpu_memory_bytes if plan.device == "cuda" else None
        limits.insert(0, ("cuda", plan.budget_bytes or has, ""))
    for device, limit, what in limits:
        if limit is None or (device == "cpu" and plan.device != "cpu"):
            continue
        need = predict_memory(
            plan.model,
            plan.backend,
            plan.workload,
            device,
            kv_cache_dtype=plan.kv_cache_dtype,
        )
        asked = limit in (plan.budget_bytes, plan.ram_budget_bytes)
        tried = limit * (1 + _PREDICTION_ERROR) if asked and device == plan.device else limit
        if need is not None and need.total_bytes > tried:
            which = "the budget is" if asked else "this machine has"
            reason = f"needs {format_bytes(need.total_bytes)}{what}, {which} {format_bytes(limit)}"
            return _with_remedy(reason, plan, device=device, limit_bytes=limit)
    return None


def _ram_limit(plan: Plan, machine: Environment) -> int | None:
    """The RAM that a row may take: its budget, at most what the machine has."""
    known = [each for each in (plan.ram_budget_bytes, machine.ram_bytes) if each is not None]
    return min(known, default=None)


def _with_remedy(
    reason: str, plan: Plan, *, device: Device | None = None, limit_bytes: int | None = None
) -> str:
    """``reason`` with the predicted need, where it is not said yet, and what to change first."""
    place = device or plan.device
    limit = limit_bytes or (plan.budget_bytes if place == "cuda" else plan.ram_budget_bytes)
    if plan.backend == OFFLOAD or limit is None:
        return reason
    if limit_bytes is None and plan.predicted is not None:
        need = plan.predicted.total_bytes
        reason += f"; predicted were {format_bytes(need)}"
        limit = min(limit, int(need * (1 - _PREDICTION_ERROR)))  # it took more than was predicted
    change = first_change(
        plan.model,
        plan.backend,
        plan.workload,
        place,
        budget_bytes=limit,
        kv_cache_dtype=plan.kv_cache_dtype,
    )
    return reason if change is None else f"{reason}. Try: {change}"
