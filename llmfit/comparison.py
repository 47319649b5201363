"""The whole job: one model, a row per deploy format, a verdict.

model ─► ModelSpec ─► Plan per backend ─► run_isolated ─► RunRecord ─► file, at once
                                                              └► recommend ─► Comparison
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from llmfit.backends.registry import backend_ids, get_backend, split_id
from llmfit.errors import StoreError, UsageError
from llmfit.evaluate.score import evaluation_files
from llmfit.files import write_atomically
from llmfit.measure import check_workload, fit_workload
from llmfit.models import hub_reachable, local_folder, resolve
from llmfit.planning.memory import predict_memory
from llmfit.planning.recommend import recommend
from llmfit.records import (
    Comparison,
    Device,
    Environment,
    EvaluationSettings,
    ModelSpec,
    Plan,
    RunRecord,
    Status,
    Workload,
    to_json,
)
from llmfit.runner.isolate import probe_environment, run_isolated
from llmfit.runner.worker import blank_record
from llmfit.units import format_bytes

DEFAULT_TIME_LIMIT_S = 3600.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The plans of one comparison, and where their records go."""

    plans: tuple[Plan, ...]
    machine: Environment
    folder: Path
    time_limit_s: float | None
    observer: Observer
    command: str | None

    def run(self) -> Comparison:
        """Run every row in turn; an interrupt keeps the finished ones."""
        rows: list[RunRecord] = []
        try:
            for index, plan in enumerate(self.plans):
                rows.append(self._row(plan, index))
        except KeyboardInterrupt as exc:
            left = self.plans[len(rows) :]
            rows += [_not_run(plan, "skipped", "interrupted") for plan in left]
            raise ComparisonInterrupted(self._conclude(rows)) from exc
        return self._conclude(rows)

    def _row(self, plan: Plan, index: int) -> RunRecord:
        """Run one row, or say why not; its record is on disk before this returns."""
        record = _reason_not_to_run(plan, self.machine)
        if record is None:
            # Before the row's own bar: the hub client draws bars too.
            plan = replace(plan, model=local_folder(plan.model))
        self.observer.row_started(plan.backend, blank_record(plan).label, index, len(self.plans))
        name = plan.backend.replace(":", "-")
        if record is None:
            record = run_isolated(
                plan,
                time_limit_s=self.time_limit_s,
                progress=partial(self.observer.progress, plan.backend),
                log_path=self.folder / f"{name}.log",
            )
        _store(self.folder / f"{name}.json", record)
        self.observer.row_done(record)
        return record

    def _conclude(self, rows: Sequence[RunRecord]) -> Comparison:
        """The rows with their verdict, on disk."""
        first = self.plans[0]
        comparison = Comparison(
            run_id=self.folder.name,
            model=first.model,
            workload=first.workload,
            budget_bytes=first.budget_bytes,
            rows=tuple(rows),
            verdict=recommend(rows, budget_bytes=first.budget_bytes),
            environment=self.machine,
            command=self.command,
        )
        _store(self.folder / "comparison.json", comparison)
        return comparison


def default_runs_dir() -> Path:
    """Where records are kept unless told otherwise: the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("llmfit") / "runs"


def compare(
    model: str | None = None,
    *,
    backends: Sequence[str] | None = None,
    workload: Workload | None = None,
    shorten: bool | None = None,
    evaluation: EvaluationSettings | None = EvaluationSettings(),  # noqa: B008 - frozen
    checkpoints: Mapping[str, str] | None = None,
    calibration_file: str | None = None,
    gpu_gb: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
    runs_dir: str | None = None,
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S,
    observer: Observer | None = None,
    command: str | None = None,
) -> Comparison:
    """Measure ``model`` in every format of ``backends`` and give a verdict.

    ``model`` is a folder, a hub id, or None for the embedded model; ``evaluation`` of None
    leaves quality out; ``checkpoints`` maps backend ids to ready artifacts; ``gpu_gb`` is a GPU
    memory budget in GB (10⁹ bytes). ``shorten`` cuts a workload beyond the model's context to fit
    it, with a note, where it would be refused otherwise; by default only when no ``workload`` is
    given. A row that fails is a row with its reason. Raises UsageError, ModelNotFound or
    StoreError before anything runs, and ComparisonInterrupted.
    """
    chosen = _check_backends(backends, checkpoints or {})
    spec = resolve(model)
    asked = workload or Workload()
    may_shorten = workload is None if shorten is None else shorten
    work = fit_workload(asked, spec.max_position_embeddings) if may_shorten else asked
    check_workload(work, spec.max_position_embeddings)
    machine = probe_environment()
    folder = _make_run_folder(spec, runs_dir)
    base = Plan(
        backend="",
        model=spec,
        device=_device(device, machine),
        workload=work,
        evaluation=evaluation,
        calibration_file=calibration_file,
        budget_bytes=None if gpu_gb is None else int(gpu_gb * 1e9),
        threads=threads,
        seed=seed,
        cache_dir=cache_dir,
        notes=() if work == asked else (_shortened(asked, work, spec),),
        offline=_must_do_without_hub(spec, evaluation),
    )
    plans = [
        _plan(base, backend, (checkpoints or {}).get(split_id(backend)[0])) for backend in chosen
    ]
    job = _Job(
        plans=tuple(plans),
        machine=machine,
        folder=folder,
        time_limit_s=time_limit_s,
        observer=observer or Observer(),
        command=command,
    )
    return job.run()


def _check_backends(
    backends: Sequence[str] | None, checkpoints: Mapping[str, str]
) -> tuple[str, ...]:
    """The ids to run, in the order given. Raises UsageError for unknown, repeated or none."""
    chosen = tuple(backends) if backends is not None else backend_ids()
    if not chosen:
        raise UsageError("no backend is named.", hint="llmfit backends")
    for backend in chosen:
        get_backend(backend)
        if chosen.count(backend) > 1:
            raise UsageError(f"backend {backend!r} is named twice.")
    for backend in checkpoints:
        if not get_backend(backend).takes_checkpoint:
            raise UsageError(f"{backend} takes no checkpoint: it loads the model itself.")
        if backend not in {split_id(name)[0] for name in chosen}:
            raise UsageError(f"a checkpoint is given for {backend}, which is not among the rows.")
    return chosen


def _device(asked: str | None, machine: Environment) -> Device:
    if asked not in (None, "auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {asked!r}; known are auto, cpu, cuda.")
    if asked == "cuda" and machine.gpu is None:
        raise UsageError("no CUDA device is visible to torch.", hint="--device cpu")
    return "cpu" if asked == "cpu" or machine.gpu is None else "cuda"


def _shortened(asked: Workload, work: Workload, spec: ModelSpec) -> str:
    return (
        f"timed with {work.prompt_tokens} prompt + {work.new_tokens} new tokens instead of "
        f"{asked.prompt_tokens} + {asked.new_tokens}: the model's context is "
        f"{spec.max_position_embeddings}"
    )


def _must_do_without_hub(spec: ModelSpec, evaluation: EvaluationSettings | None) -> bool:
    """True when an evaluation set would come from the hub and the hub does not answer.

    Asked once here, so that not every row waits for it in vain.
    """
    if evaluation is None or None not in evaluation_files(spec, evaluation):
        return False
    return not hub_reachable()


def _make_run_folder(spec: ModelSpec, runs_dir: str | None) -> Path:
    """A new folder for this run's records. Raises StoreError where it cannot be made."""
    slug = re.sub(r"[^\w.-]+", "-", spec.name).strip("-.") or "model"
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_id = f"{moment}-{slug}-{secrets.token_hex(3)}"
    folder = (Path(runs_dir).expanduser() if runs_dir else default_runs_dir()) / run_id
    try:
        folder.mkdir(parents=True)
    except OSError as exc:
        raise StoreError(
            f"cannot make the records' folder {folder}: {exc.strerror}.", hint="--runs-dir DIR"
        ) from exc
    return folder


def _plan(base: Plan, backend: str, checkpoint: str | None) -> Plan:
    device: Device = base.device if base.device in get_backend(backend).devices else "cpu"
    return replace(
        base,
        backend=backend,
        device=device,
        checkpoint=checkpoint,
        predicted=predict_memory(base.model, backend, base.workload, device),
    )


def _store(path: Path, record: RunRecord | Comparison) -> None:
    try:
        write_atomically(path, to_json(record))
    except OSError as exc:
        raise StoreError(
            f"cannot write {path}: {exc.strerror}.", hint="--runs-dir DIR on another disk"
        ) from exc


def _reason_not_to_run(plan: Plan, machine: Environment) -> RunRecord | None:
    """The record of a row that is known not to run here; None for one to be tried."""
    backend = get_backend(plan.backend)
    outcome = backend.check(plan)
    if outcome.unavailable is not None:
        return _not_run(plan, "unavailable", outcome.unavailable)
    if outcome.skipped is not None:
        return _not_run(plan, "skipped", outcome.skipped)
    too_large = _too_large(plan, machine, on_gpu="cuda" in backend.devices)
    return _not_run(plan, "does_not_fit", too_large) if too_large else None


def _too_large(plan: Plan, machine: Environment, *, on_gpu: bool) -> str | None:
    """Why the predicted memory rules this row out: the GPU budget, the GPU, or the machine's RAM.

    A budget without a GPU is judged by what the row would need on one.
    """
    budget = plan.budget_bytes or (machine.gpu_memory_bytes if plan.device == "cuda" else None)
    if on_gpu and budget is not None:
        need = predict_memory(plan.model, plan.backend, plan.workload, "cuda")
        if need is not None and need.total_bytes > budget:
            return f"needs {format_bytes(need.total_bytes)}, the budget is {format_bytes(budget)}"
    if plan.device == "cpu" and plan.predicted is not None and machine.ram_bytes is not None:
        need_bytes = plan.predicted.total_bytes
        if need_bytes > machine.ram_bytes:
            return (
                f"needs {format_bytes(need_bytes)} of RAM, this machine has "
                f"{format_bytes(machine.ram_bytes)}"
            )
    return None


def _not_run(plan: Plan, status: Status, reason: str) -> RunRecord:
    return replace(blank_record(plan), status=status, reason=reason)
