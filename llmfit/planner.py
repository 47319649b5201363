"""What a model would need and do in each format, on hardware that need not be here.

    model ─► ModelSpec (config facts) ─┐
    --gpu, --gpu-gb, this machine ─────┼─► PlanRow per format ─► ModelPlan
    own records of this machine ───────┘

Nothing is loaded and nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmfit.backends.registry import chosen_backends, get_backend, split_id
from llmfit.device.detect import detect_cpu, detect_gpu
from llmfit.errors import UsageError
from llmfit.history import own_records
from llmfit.measure import settle_workload
from llmfit.models import resolve
from llmfit.planning.advice.remedy import first_change
from llmfit.planning.memory import MOST_GPUS
from llmfit.planning.memory.context import max_context
from llmfit.planning.memory.prediction import predict_memory
from llmfit.planning.memory.split import SPLITS, fullest, predict_split
from llmfit.planning.memory.weights import unpacked_expert_share
from llmfit.planning.speed.calibration import measured_bandwidth
from llmfit.planning.speed.hardware import assumed_gpu, find_gpu, note_on
from llmfit.planning.speed.roofline import predict_speed
from llmfit.records import (
    Device,
    Environment,
    Hardware,
    KvCacheDtype,
    MemoryPrediction,
    ModelPlan,
    ModelSpec,
    Plan,
    PlanRow,
    RunRecord,
    Split,
    SplitPlan,
    Workload,
)
from llmfit.units import GB, format_bytes, format_percent, gb_bytes

CONTEXT_NEW_TOKENS = 128
"""Of a workload given as a context alone, the tokens that are generated; the prompt is the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is planned for: a GPU or none, a CPU, their budgets, and what was measured here."""

    gpu: Hardware | None
    cpu: Hardware
    gpu_budget_bytes: int | None
    ram_budget_bytes: int | None
    records: tuple[RunRecord, ...] = ()
    notes: tuple[str, ...] = ()

    def place(self, backend: str) -> Device:
        """Where a row of this backend would run."""
        return "cuda" if self.gpu is not None and "cuda" in get_backend(backend).devices else "cpu"

    def hardware(self, device: Device) -> Hardware:
        """The part that a row on ``device`` runs on."""
        return self.gpu if device == "cuda" and self.gpu is not None else self.cpu

    def budget_bytes(self, device: Device) -> int | None:
        """The memory that a row on ``device`` may take, runtime included."""
        return self.gpu_budget_bytes if device == "cuda" else self.ram_budget_bytes


def plan(
    model: str | None = None,
    *,
    backends: Sequence[str] | None = None,
    workload: Workload | None = None,
    shorten: bool | None = None,
    context: int | None = None,
    gpu: str | None = None,
    gpu_gb: float | None = None,
    ram_gb: float | None = None,
    device: str | None = None,
    gpus: int = 1,
    kv_cache_dtype: KvCacheDtype | None = None,
    runs_dir: str | None = None,
    command: str | None = None,
) -> ModelPlan:
    """Predict memory and speed of ``model`` in each format; nothing is loaded or downloaded.

    ``model`` is a folder, a hub id, a name of the catalogue, or None for the embedded model.
    ``shorten`` cuts a workload beyond the model's context, by default only where none is given;
    ``context`` stands for a workload that fills so many tokens. ``gpu`` names a card of the table,
    ``gpu_gb`` and ``ram_gb`` are budgets in GB (10⁹ bytes); ``device`` of "cpu" plans without a
    GPU. With ``gpus`` above 1 each row is also planned over so many such GPUs, and over fewer.
    Own records under ``runs_dir`` calibrate the speeds. Raises UsageError or ModelNotFound.
    """
    check_gpus(gpus)
    check_device(device)
    spec = resolve(model, weights=False)
    chosen = chosen_backends(backends, spec)
    work, notes = (
        settle_workload(workload, shorten, spec)
        if context is None
        else (fill_context(context, workload, spec), ())
    )
    machine = find_machine(gpu=gpu, gpu_gb=gpu_gb, ram_gb=ram_gb, device=device, runs_dir=runs_dir)
    if gpus > 1 and machine.gpu is None:
        raise UsageError(
            f"{gpus} GPUs are to be planned for, and none is named or in this machine.",
            hint='--gpu "RTX 4090" or --gpu-gb 24',
        )
    rows = (
        predict_row(spec, name, work, machine, kv_cache_dtype=kv_cache_dtype) for name in chosen
    )
    return ModelPlan(
        model=spec,
        parameters=spec.parameters,
        active_parameters=None if spec.shape is None else spec.shape.active_parameters,
        workload=work,
        gpu=machine.gpu,
        gpus=gpus,
        cpu=machine.cpu,
        gpu_budget_bytes=machine.gpu_budget_bytes,
        ram_budget_bytes=machine.ram_budget_bytes,
        kv_cache_dtype=kv_cache_dtype,
        rows=tuple(
            with_splits(row, spec, work, machine, gpus, kv_cache_dtype=kv_cache_dtype)
            for row in rows
        ),
        notes=(*notes, *machine.notes, *(spec.shape.notes if spec.shape is not None else ())),
        command=command,
    )


def find_machine(
    *,
    gpu: str | None = None,
    gpu_gb: float | None = None,
    ram_gb: float | None = None,
    device: str | None = None,
    runs_dir: str | None = None,
    site: tuple[Environment, Hardware | None, Hardware] | None = None,
) -> Machine:
    """The hardware to plan for: the GPU that is named, else the one here, else an assumed one.

    A card is assumed where only a size is given and no GPU is here. Here is this machine, or that
    of ``site``: its environment, GPU and CPU. Raises UsageError.
    """
    for option, size in (("gpu_gb", gpu_gb), ("ram_gb", ram_gb)):
        if size is not None and not size > 0:
            raise UsageError(f"{option} must be above 0, not {size:g}.")
    if device == "cpu" and (gpu is not None or gpu_gb is not None):
        raise UsageError("--device cpu plans without a GPU, so --gpu and --gpu-gb mean nothing.")
    if site is None:
        found, processor, records = detect_gpu(), detect_cpu(), own_records(runs_dir)
    else:
        environment, found, processor = site
        records = own_records(runs_dir, machine=(environment.cpu, environment.cpu_cores))
    cpu = measured_bandwidth(processor, records)
    card = None if device == "cpu" else _card(gpu, gpu_gb, found)
    if device == "cuda" and card is None:
        raise UsageError(
            "no GPU is named and none is in this machine.", hint='--gpu "RTX 4060" or --gpu-gb 8'
        )
    notes = (*_size_note(card, gpu_gb), *_rate_note(card))
    return Machine(
        gpu=card,
        cpu=cpu,
        gpu_budget_bytes=_budget(gpu_gb, card),
        ram_budget_bytes=cpu.memory_bytes if ram_gb is None else gb_bytes("ram_gb", ram_gb),
        records=records,
        notes=notes,
    )


def predict_row(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    machine: Machine,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
) -> PlanRow:
    """Memory, largest context and speed of one format, and whether it fits; None where unknown."""
    place = machine.place(backend)
    hardware, budget = machine.hardware(place), machine.budget_bytes(place)
    label = get_backend(backend).describe(split_id(backend)[1])
    memory = predict_memory(
        spec, backend, workload, place, kv_cache_dtype=kv_cache_dtype, gpu=machine.gpu
    )
    if memory is None:
        return PlanRow(
            backend=backend, label=label, device=place, fits=None, memory=None, max_context=None,
            tokens_per_s=None, reason=_why_unknown(spec, backend),
        )  # fmt: skip
    decode, prefill = predict_speed(
        spec, backend, workload, hardware, records=machine.records, kv_cache_dtype=kv_cache_dtype
    )
    fits = None if budget is None else memory.total_bytes <= budget
    reason = None
    if fits is False and budget is not None:
        change = first_change(
            spec,
            backend,
            workload,
            place,
            budget_bytes=budget,
            ram_bytes=machine.ram_budget_bytes,
            kv_cache_dtype=kv_cache_dtype,
        )
        reason = too_large(memory, budget, change)
    return PlanRow(
        backend=backend,
        label=label,
        device=place,
        fits=fits,
        memory=memory,
        max_context=None
        if budget is None
        else max_context(
            spec, backend, workload, place, budget, kv_cache_dtype=kv_cache_dtype, gpu=machine.gpu
        ),
        tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        reason=reason,
        notes=_row_notes(spec, backend, workload, place),
    )


def check_device(asked: str | None) -> None:
    """Raise UsageError for a kind of device that there is not."""
    if asked not in (None, "auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {asked!r}; known are auto, cpu, cuda.")


def check_gpus(gpus: int) -> None:
    """Raise UsageError for a number of GPUs that cannot be meant."""
    if not 1 <= gpus <= MOST_GPUS:
        raise UsageError(
            f"a model is spread over 1 to {MOST_GPUS} GPUs, not {gpus}.", hint="--gpus 2"
        )


def with_splits(
    row: PlanRow,
    spec: ModelSpec,
    workload: Workload,
    machine: Machine,
    gpus: int,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
) -> PlanRow:
    """``row`` with what each of ``gpus`` GPUs would hold, by both ways to split."""
    if gpus == 1:
        return row
    splits = tuple(
        _split(row, spec, workload, machine, gpus, split, kv_cache_dtype) for split in SPLITS
    )
    return replace(row, splits=splits)


def _split(
    row: PlanRow,
    spec: ModelSpec,
    workload: Workload,
    machine: Machine,
    gpus: int,
    split: Split,
    kv_cache_dtype: KvCacheDtype | None,
) -> SplitPlan:
    def why_not(count: int) -> str | None:
        asked = Plan(
            backend=row.backend, model=spec, device=row.device, workload=workload,
            kv_cache_dtype=kv_cache_dtype, gpus=count, split=split,
        )  # fmt: skip
        return get_backend(row.backend).why_not_split(asked)

    def per_gpu(count: int) -> tuple[MemoryPrediction, ...]:
        found = predict_split(
            spec, row.backend, workload, count, split,
            budget_bytes=budget, kv_cache_dtype=kv_cache_dtype, gpu=machine.gpu,
        )  # fmt: skip
        return found or ()

    budget = machine.gpu_budget_bytes
    fewest = None
    if row.device == "cuda" and budget is not None and row.memory is not None:
        # Fewer than these do not even hold the weights.
        least = min(gpus + 1, max(1, row.memory.weights_bytes // budget))
        fewest = next(
            (
                count
                for count in range(least, gpus + 1)
                if why_not(count) is None and _fits(per_gpu(count), budget)
            ),
            None,
        )
    reason = why_not(gpus)
    if reason is not None:
        return SplitPlan(split=split, gpus=gpus, fits=False, fewest_gpus=fewest, reason=reason)
    memory = per_gpu(gpus)
    if not memory:
        return SplitPlan(split=split, gpus=gpus, reason=_why_unknown(spec, row.backend))
    return SplitPlan(
        split=split,
        gpus=gpus,
        per_gpu=memory,
        fullest_bytes=fullest(memory).total_bytes,
        fits=None if budget is None else _fits(memory, budget),
        fewest_gpus=fewest,
    )


def _fits(per_gpu: Sequence[MemoryPrediction], budget_bytes: int) -> bool:
    """Whether every GPU's budget holds what lies there; False where that is not known."""
    return bool(per_gpu) and fullest(per_gpu).total_bytes <= budget_bytes


def _row_notes(spec: ModelSpec, backend: str, workload: Workload, place: Device) -> tuple[str, ...]:
    """What a reader of a row's prediction has to know."""
    notes = []
    share = 0.0 if spec.shape is None else unpacked_expert_share(spec.shape, backend)
    if share > 0:
        notes.append(
            f"experts, {format_percent(share, decimals=0)} of the parameters, stay in 16 bits: "
            "transformers holds them in one fused parameter, which this format does not replace"
        )
    plan = Plan(backend=backend, model=spec, device=place, workload=workload)
    skipped = get_backend(backend).check(plan).skipped
    if skipped is not None:
        notes.append(f"compare leaves this row out: {skipped}")
    return tuple(notes)


def too_large(memory: MemoryPrediction, budget_bytes: int, change: str | None) -> str:
    """Predicted need against the budget, and the first thing to change."""
    need = f"needs {format_bytes(memory.total_bytes)}, the budget is {format_bytes(budget_bytes)}"
    return need if change is None else f"{need}. Try: {change}"


def fill_context(context: int, workload: Workload | None, spec: ModelSpec) -> Workload:
    """``workload`` with a prompt and new tokens that fill ``context``. Raises UsageError."""
    limit = spec.max_position_embeddings
    if context > limit:
        raise UsageError(
            f"a context of {context} tokens exceeds {spec.name}'s of {limit}.",
            hint=f"--context {limit} or less",
        )
    if context < 3:
        raise UsageError(f"a context of {context} tokens holds no prompt and two new tokens.")
    new = max(2, min(CONTEXT_NEW_TOKENS, context // 4))
    return replace(workload or Workload(), prompt_tokens=context - new, new_tokens=new)


def _card(gpu: str | None, gpu_gb: float | None, found: Hardware | None) -> Hardware | None:
    if gpu is not None:
        return find_gpu(gpu)
    return found or (assumed_gpu(gpu_gb) if gpu_gb is not None else None)


def _budget(asked_gb: float | None, hardware: Hardware | None) -> int | None:
    """Bytes that may be taken: what is asked, at most what the hardware has."""
    has = None if hardware is None else hardware.memory_bytes
    if asked_gb is None:
        return has
    asked = gb_bytes("gpu_gb", asked_gb)
    return asked if has is None else min(asked, has)


def _size_note(card: Hardware | None, gpu_gb: float | None) -> tuple[str, ...]:
    if card is None or gpu_gb is None or card.memory_bytes is None:
        return ()
    if int(gpu_gb * GB) <= card.memory_bytes:
        return ()
    has = format_bytes(card.memory_bytes)
    return (f"planned within the {has} that the {card.name} has: --gpu-gb {gpu_gb:g} is more",)


def _rate_note(card: Hardware | None) -> tuple[str, ...]:
    """Why no prefill speed can be told on a card without a bf16 rate."""
    why = None if card is None or card.flops is not None else note_on(card.name)
    return () if card is None or why is None else (f"{card.name}: {why}",)


def _why_unknown(spec: ModelSpec, backend: str) -> str:
    if spec.shape is None:
        return f"the shape of a {spec.architecture} ({spec.model_type}) is not known"
    return f"the layout of {backend} is not known for a {spec.model_type} model"
