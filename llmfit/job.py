"""Plans in, a comparison out: every row in a process of its own, on disk as soon as it is done.

    plans ─► in waves ─► Site.run ─► row, kept ─► verdict ─► comparison, kept

The reference row runs first, whatever its place in the table: the others read its logits. Where
nothing fits, a row with offloaded weights is added.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from llmfit.errors import LlmfitError
from llmfit.evaluate.divergence import remove_reference
from llmfit.executors.base import Limits, RowTask, Site, Watch
from llmfit.keeping import REFERENCE_FILE, Keeper, Keeping, keep
from llmfit.planning.advice.remedy import OFFLOAD
from llmfit.planning.comparing.differences import REFERENCE
from llmfit.planning.verdict.constraints import Constraints
from llmfit.planning.verdict.judge import Judge
from llmfit.records import NOT_FINISHED, Comparison, ModelSpec, Plan, RunRecord
from llmfit.redaction import known_secrets
from llmfit.row import not_run
from llmfit.runner.worker import blank_record

_LOGITS_GONE = "the reference's logits of the interrupted run are not there any more"
_OFFLOAD_NEW_TOKENS = 8
"""Timed of an added offload row: each may take as long as reading the whole model from disk."""


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
    site: Site,
    *,
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    limits: Limits = Limits(),  # noqa: B008 - frozen
    observer: Observer | None = None,
    command: str | None = None,
    judge: Judge | None = None,
    last_resort: bool = True,
    started: float | None = None,
) -> Comparison:
    """Run ``plans`` at ``site``, one row each, all of one model and workload, and judge the rows.

    ``started`` is the monotonic time from which the whole is timed; None is now. Records go where
    ``keeping`` says; rows of an interrupted run that it names are not run again.

    ``judge`` makes the verdict; by default the fastest row within the plans' budgets. With
    ``last_resort`` a row with offloaded weights is added where nothing fits. Raises
    StoreError where records cannot be kept, UsageError for a run that cannot be continued,
    ModelNotFound for a model that cannot be downloaded, and ComparisonInterrupted.
    """
    begun = time.monotonic() if started is None else started
    ready = site.fetch(plans)  # a download that fails is no run
    judge = judge or Judge(constraints=budgets(plans[0]))
    keeper = keep(plans, site.environment, keeping, judge=judge, command=command)
    job = _Job(
        model=plans[0].model,
        plans=tuple(ready),
        site=site,
        keeper=keeper,
        limits=limits,
        observer=observer or Observer(),
        command=command,
        judge=judge,
        last_resort=last_resort,
        started=begun,
    )
    with closing(keeper):
        return job.run()


def budgets(plan: Plan) -> Constraints:
    """The bounds of a verdict on rows with this plan's budgets."""
    return Constraints(memory_bytes=plan.budget_bytes, ram_bytes=plan.ram_budget_bytes)


class _Told(Watch):
    """Tells an observer of tasks by their rows."""

    def __init__(self, observer: Observer, total: int) -> None:
        self._observer = observer
        self._total = total

    def started(self, task: RowTask) -> None:
        """See ``Watch``."""
        label = blank_record(task.plan).label
        self._observer.row_started(task.plan.backend, label, task.place, self._total)

    def progress(self, task: RowTask, stage: str, done: int, total: int) -> None:
        """See ``Watch``."""
        self._observer.progress(task.plan.backend, stage, done, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The plans of one comparison, and where their records go."""

    model: ModelSpec
    """As it was asked for; the plans' one has its files."""
    plans: tuple[Plan, ...]
    site: Site
    keeper: Keeper
    limits: Limits
    observer: Observer
    command: str | None
    judge: Judge
    last_resort: bool
    started: float

    def run(self) -> Comparison:
        """Run every row; an interrupt keeps the finished ones."""
        rows = dict(self.keeper.done)
        try:
            for wave in self._waves():
                self._run(wave, rows)
            if self.last_resort and nothing_fits(list(rows.values())):
                self._run([self._offloaded()], rows)
            judged = self._judged(rows)
            remove_reference(self._reference_file)  # large, and of no use beyond this run
            return self.keeper.conclude(judged)
        except KeyboardInterrupt as exc:
            for plan in self.plans:
                if plan.backend not in rows:
                    rows[plan.backend] = not_run(
                        plan, self.site.environment, "skipped", NOT_FINISHED
                    )
            raise ComparisonInterrupted(self.keeper.interrupt(self._judged(rows))) from exc
        except LlmfitError:
            remove_reference(self._reference_file)
            raise

    @property
    def _reference_file(self) -> Path:
        return self.keeper.folder / REFERENCE_FILE

    def _waves(self) -> Iterator[list[Plan]]:
        """The plans in the order of running: what a wave needs, those before it have made."""
        plans = self._with_reference()
        first = [plan for plan in plans if plan.reference_file and plan.backend == REFERENCE]
        if first:
            yield first
        yield [plan for plan in plans if plan not in first]

    def _with_reference(self) -> list[Plan]:
        """The plans with the place of the reference's logits, or why there are none."""
        if not any(_measures_divergence(plan) for plan in self.plans):
            return list(self.plans)
        if not any(plan.backend == REFERENCE for plan in self.plans):
            return [_with_note(plan, f"no divergence: no {REFERENCE} row") for plan in self.plans]
        if REFERENCE in self.keeper.done and not self._reference_file.is_file():
            return [_with_note(plan, f"no divergence: {_LOGITS_GONE}") for plan in self.plans]
        return [replace(plan, reference_file=str(self._reference_file)) for plan in self.plans]

    def _run(self, plans: Sequence[Plan], rows: dict[str, RunRecord]) -> None:
        """Add the rows of ``plans`` that are not there; each is on disk before the next is."""
        tasks = [self._task(plan) for plan in plans if plan.backend not in rows]
        total = max([len(self.plans), *(task.place + 1 for task in tasks)])
        with closing(
            self.site.run(tasks, limits=self.limits, watch=_Told(self.observer, total))
        ) as finished:
            for task, made in finished:
                record = known_secrets().hide_in(made)
                self.keeper.add(task.place, record)
                rows[task.plan.backend] = record
                self.observer.row_done(record)

    def _task(self, plan: Plan) -> RowTask:
        """The row with its place in the table; an added one comes last."""
        names = self._backends()
        return RowTask(
            plan=plan,
            place=names.index(plan.backend) if plan.backend in names else len(names),
            log_path=self.keeper.folder / f"{plan.backend.replace(':', '-')}.log",
        )

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
            predicted_tokens_per_s=None,
            kv_cache_dtype=None,
            reference_file=None,
            notes=(*first.notes, *notes),
        )

    def _judged(self, rows: dict[str, RunRecord]) -> Comparison:
        """The rows in the order that was asked for, with their verdict."""
        first = self.plans[0]
        added = [row for backend, row in rows.items() if backend not in self._backends()]
        judged, verdict = self.judge.judged([*(rows[name] for name in self._backends()), *added])
        comparison = Comparison(
            run_id=self.keeper.run_id,
            model=self.model,
            workload=first.workload,
            budget_bytes=first.budget_bytes,
            ram_budget_bytes=first.ram_budget_bytes,
            rows=judged,
            verdict=verdict,
            environment=self.site.environment,
            command=self.command,
            record=self.keeper.record,
            total_s=time.monotonic() - self.started,
        )
        return known_secrets().hide_in(comparison)

    def _backends(self) -> list[str]:
        return [plan.backend for plan in self.plans]


def nothing_fits(rows: Sequence[RunRecord]) -> bool:
    """True where rows do not fit and none runs, offloaded ones among them."""
    statuses = {row.status for row in rows}
    offloaded = any(row.backend == OFFLOAD for row in rows)
    return "does_not_fit" in statuses and "ok" not in statuses and not offloaded


def _measures_divergence(plan: Plan) -> bool:
    return plan.evaluation is not None and "wikitext" in plan.evaluation.tasks


def _with_note(plan: Plan, note: str) -> Plan:
    return replace(plan, notes=(*plan.notes, note))
