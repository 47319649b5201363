"""From a model and a memory target to the ladder that leads there, predicted and measured.

    model ─► ModelSpec ─► planning/advice/ladder ─► rung by rung: comparison.compare ─► MemoryPath

Each rung is measured by a comparison of one row, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmfit.device.detect import detect_cpu, detect_gpu
from llmfit.errors import UsageError
from llmfit.keeping import Keeping
from llmfit.measure import settle_workload
from llmfit.models import resolve, why_no_weights
from llmfit.planner import fill_context
from llmfit.planning.advice.ladder import MemoryPath, Rung, ladder, needed
from llmfit.planning.verdict.candidate import footprint_bytes
from llmfit.records import Device, Hardware, ModelSpec, RunRecord, Weights, Workload
from llmfit.units import GB, format_bytes, gb_bytes

if TYPE_CHECKING:
    from llmfit.job import Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How the rungs are run, where they are measured."""

    weights: Weights = "real"
    threads: int | None = None
    cache_dir: str | None = None
    keeping: Keeping = Keeping()  # noqa: RUF009 - frozen
    time_limit_s: float = 3600.0
    observer: Observer | None = None


def find_path(
    model: str | None = None,
    *,
    to_gb: float,
    workload: Workload | None = None,
    shorten: bool | None = None,
    context: int | None = None,
    device: Device | None = None,
    measuring: Measuring | None = None,
    command: str | None = None,
) -> MemoryPath:
    """The rungs from FP32 down to the first that takes at most ``to_gb`` GB (10⁹ bytes).

    ``workload``, ``shorten`` and ``context`` are those of ``planner.plan``. ``device`` is where
    the PyTorch rungs run, by default a GPU where one is here; GGUF's rungs take RAM. With
    ``measuring`` each rung is run, within the target where it is predicted to fit, and the path
    goes by what was measured. Raises UsageError, ModelNotFound, or what ``compare`` raises.
    """
    synthetic = measuring is not None and measuring.weights == "synthetic"
    spec = resolve(model, weights=measuring is not None and not synthetic)
    place, hardware = _place(device, must_be_here=measuring is not None)
    work, notes = (
        settle_workload(workload, shorten, spec)
        if context is None
        else (fill_context(context, workload, spec), ())
    )
    target = gb_bytes("to_gb", to_gb)
    rungs = ladder(spec, work, place, target)
    if all(rung.predicted is None for rung in rungs):
        raise UsageError(
            f"the memory of a {spec.architecture} ({spec.model_type}) cannot be predicted: its "
            "shape is not known.",
            hint=f"llmfit compare {spec.name}",
        )
    if measuring is None:
        rungs = needed(rungs)
    else:
        _check_weights(spec, measuring)
        rungs = _climb(model, rungs, target, measuring)
    reached = bool(rungs[-1].fits)
    return MemoryPath(
        model=spec,
        target_bytes=target,
        device=place,
        hardware=hardware,
        measured=measuring is not None,
        rungs=rungs,
        reached=reached,
        notes=notes if reached else (*notes, _too_far(rungs, target)),
        command=command,
    )


def _place(device: Device | None, *, must_be_here: bool) -> tuple[Device, Hardware | None]:
    """Where the PyTorch rungs run, and the part of this machine, if it is here."""
    gpu = None if device == "cpu" else detect_gpu()
    if device == "cpu" or (device is None and gpu is None):
        return "cpu", detect_cpu()
    if gpu is None and must_be_here:
        raise UsageError("no GPU is in this machine to measure on.", hint="--device cpu")
    return "cuda", gpu


def _check_weights(spec: ModelSpec, measuring: Measuring) -> None:
    """Raise UsageError where the real weights cannot be had."""
    absent = why_no_weights(spec) if measuring.weights == "real" else None
    if absent is not None:
        raise UsageError(
            f"{spec.name} cannot be measured: {absent.rstrip('.')}.",
            hint="--weights synthetic measures memory with random weights",
        )


# ---------------------------------------------------------------- measuring


def _climb(
    model: str | None, rungs: Sequence[Rung], target_bytes: int, measuring: Measuring
) -> tuple[Rung, ...]:
    """Measure rung after rung until one that ran fits; FP32, which none runs, ends nothing."""
    ram = detect_cpu().memory_bytes
    gpu = detect_gpu()
    done = []
    for rung in rungs:
        has = ram if rung.device == "cpu" else gpu.memory_bytes if gpu is not None else None
        done.append(_measured(model, rung, target_bytes, has, measuring))
        if done[-1].fits and rung.backend is not None:
            break
    return tuple(done)


def _measured(
    model: str | None,
    rung: Rung,
    target_bytes: int,
    memory_bytes: int | None,
    measuring: Measuring,
) -> Rung:
    """The rung with what running it showed; one beyond this machine is not run."""
    if rung.backend is None:
        return rung
    need = None if rung.predicted is None else rung.predicted.total_bytes
    if need is not None and memory_bytes is not None and need > memory_bytes:
        has = format_bytes(memory_bytes)
        return replace(rung, measured_reason=f"needs {format_bytes(need)}, this machine has {has}")
    row = _run(model, rung, target_bytes if rung.fits else None, measuring)
    if row.status != "ok":
        reason = row.reason or f"{row.status}, no reason was recorded"
        fits = False if row.status == "does_not_fit" else None
        return replace(rung, status=row.status, fits=fits, measured_reason=reason)
    total = footprint_bytes(row)
    return replace(
        rung,
        status=row.status,
        fits=None if total is None else total <= target_bytes,
        measured_bytes=None if row.memory is None else row.memory.peak_bytes,
        measured_total_bytes=total,
    )


def _run(
    model: str | None, rung: Rung, budget_bytes: int | None, measuring: Measuring
) -> RunRecord:
    """The one row of a comparison; ``budget_bytes`` bounds the memory of its device."""
    from llmfit.comparison import compare

    assert rung.backend is not None  # FP32 is not run
    budget_gb = None if budget_bytes is None else budget_bytes / GB
    comparison = compare(
        model,
        backends=(rung.backend,),
        workload=rung.workload,
        evaluation=None,
        gpu_gb=budget_gb if rung.device == "cuda" else None,
        ram_gb=budget_gb if rung.device == "cpu" else None,
        weights=measuring.weights,
        device=rung.device,
        threads=measuring.threads,
        cache_dir=measuring.cache_dir,
        keeping=measuring.keeping,
        time_limit_s=measuring.time_limit_s,
        observer=measuring.observer,
        kv_cache_dtype=rung.kv_cache_dtype,
        last_resort=False,
    )
    return next(row for row in comparison.rows if row.backend == rung.backend)


def _too_far(rungs: Sequence[Rung], target_bytes: int) -> str:
    """What the lowest rung still needs, and what is left to do."""
    target = format_bytes(target_bytes)
    needs = [(need, rung) for rung in rungs if (need := _need_bytes(rung)) is not None]
    beyond = [(need, rung.label) for need, rung in needs if need > target_bytes]
    smallest = ""
    if beyond and len(beyond) == len(needs):
        need, label = min(beyond)
        smallest = f": the smallest, {label}, needs {format_bytes(need)}"
    unknown = [rung.label for rung in rungs if rung.status not in (None, "ok", "does_not_fit")]
    untried = f"; {', '.join(unknown)} did not run" if unknown else ""
    what = "nothing that ran here" if unknown else "nothing here"
    return (
        f"{what} fits {target}{smallest}{untried}. What is left is a smaller model, or weights "
        "kept partly in RAM or on disk (llmfit compare --backends offload)"
    )


def _need_bytes(rung: Rung) -> int | None:
    if rung.measured_total_bytes is not None:
        return rung.measured_total_bytes
    return None if rung.predicted is None else rung.predicted.total_bytes
