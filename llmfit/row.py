"""One row, from its plan to its record, on the machine where this is called.

    Plan ─► can it run here? ─► model on disk ─► hashed ─► run_isolated ─► RunRecord
                 └► no ─► a RunRecord with the reason

It neither knows the other rows nor keeps anything: the same code makes a row beside its comparison
and on a node of a fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from llmfit.backends.base import Progress
from llmfit.backends.registry import get_backend
from llmfit.errors import LlmfitError, StoreError
from llmfit.inputs import hashed
from llmfit.models import local_folder
from llmfit.planning.advice.remedy import OFFLOAD, first_change
from llmfit.planning.memory.split import predict_plan
from llmfit.planning.speed.roofline import attach_roofline
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Device, Environment, Plan, RunRecord, Status
from llmfit.runner.forkserver import ForkServer
from llmfit.runner.isolate import run_isolated
from llmfit.runner.worker import blank_record
from llmfit.units import format_bytes

_PREDICTION_ERROR = 0.05
"""Share by which a prediction may exceed a budget and the row is tried all the same: predictions
are within that of nearly all measured peaks, and the budget is kept while it runs."""


def run_row(
    plan: Plan,
    machine: Environment,
    *,
    time_limit_s: float | None,
    progress: Progress,
    log_path: Path | None,
    server: ForkServer | None = None,
) -> RunRecord:
    """Run one row on ``machine``, this one; its process is forked from ``server`` if there is one.

    A row that cannot run, or whose files are not to be had, is a record with the reason.
    """
    known = ruled_out(plan, machine)
    if known is not None:
        return not_run(plan, machine, *known)
    try:
        if plan.weights == "real":
            plan = fetched(plan)
        progress("hash model", 0, 0)
        plan = hashed(plan)
    except LlmfitError as exc:
        return not_run(plan, machine, "failed", str(exc))
    record = _run(plan, time_limit_s, progress, log_path, server)
    # Not asked in the worker: that would open a CUDA context beside a row on the CPU.
    return attach_roofline(replace(record, environment=machine), machine)


def not_run(plan: Plan, machine: Environment, status: Status, reason: str) -> RunRecord:
    """The record of a row that was not run, and why."""
    return replace(blank_record(plan), status=status, reason=reason, environment=machine)


def fetched(plan: Plan) -> Plan:
    """``plan`` with its model's files on disk, downloaded if need be. Raises ModelNotFound."""
    spec = local_folder(
        plan.model, allow_pickle=plan.allow_pickle, trust_remote_code=plan.trust_remote_code
    )
    return replace(plan, model=spec)


def fetched_for(plans: Sequence[Plan], machine: Environment) -> list[Plan]:
    """``plans``, of one model, with its files on disk where a row will need them.

    Raises ModelNotFound.
    """
    if plans[0].weights != "real" or all(ruled_out(plan, machine) for plan in plans):
        return list(plans)
    spec = fetched(plans[0]).model
    return [replace(plan, model=spec) for plan in plans]


def ruled_out(plan: Plan, machine: Environment) -> tuple[Status, str] | None:
    """The status of a row that is known not to run on ``machine``, and why; None for others."""
    backend = get_backend(plan.backend)
    outcome = backend.check(plan)
    if outcome.unavailable is not None:
        return "unavailable", outcome.unavailable
    if outcome.skipped is not None:
        return "skipped", outcome.skipped
    too_large = _too_large(plan, machine, on_gpu="cuda" in backend.devices)
    return ("does_not_fit", too_large) if too_large else None


def _run(
    plan: Plan,
    time_limit_s: float | None,
    progress: Progress,
    log_path: Path | None,
    server: ForkServer | None,
) -> RunRecord:
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
                time_limit_s=time_limit_s,
                progress=progress,
                log_path=log_path,
                server=server,
            )
    finally:
        with suppress(StoreError):  # then nothing can have been left there either
            cache.sweep()
    if record.status != "does_not_fit":
        return record
    return replace(record, reason=_with_remedy(str(record.reason), plan))


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
        need = predict_plan(plan, device)
        asked = limit in (plan.budget_bytes, plan.ram_budget_bytes)
        tried = limit * (1 + _PREDICTION_ERROR) if asked and device == plan.device else limit
        if need is not None and need.total_bytes > tried:
            which = "the budget is" if asked else "this machine has"
            each = f" on each of {plan.gpus} GPUs" if device == "cuda" and plan.gpus > 1 else ""
            reason = (
                f"needs {format_bytes(need.total_bytes)}{what}{each}, {which} {format_bytes(limit)}"
            )
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
    if place == "cuda" and plan.gpus > 1:
        return (
            f"{reason}. Try: llmfit plan {plan.model.name} --gpus 64, which tells how many hold it"
        )
    change = first_change(
        plan.model,
        plan.backend,
        plan.workload,
        place,
        budget_bytes=limit,
        kv_cache_dtype=plan.kv_cache_dtype,
    )
    return reason if change is None else f"{reason}. Try: {change}"
