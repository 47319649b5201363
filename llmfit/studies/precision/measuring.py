"""What is timed: tasks ─► ``Group``, training steps and forward passes of every precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmfit.benchmark import Case
from llmfit.device.allocations import module_bytes
from llmfit.device.execution import TorchDevice, is_out_of_memory
from llmfit.device.memory import free_bytes
from llmfit.errors import first_line
from llmfit.records import Status
from llmfit.studies.base import StudyContext
from llmfit.studies.precision.amp import BF16, FP16, FP32, Batch, Precision, Trainer
from llmfit.studies.precision.serving import SERVED, logits_fn
from llmfit.studies.precision.sizes import PrecisionSizes
from llmfit.studies.precision.tasks import Task
from llmfit.studies.steps import saved_bytes
from llmfit.study_records import BenchmarkResult
from llmfit.units import format_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PRECISIONS = (FP32, FP16, BF16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a precision gave; one that did not run has its reason and no result."""

    name: str
    result: BenchmarkResult | None = None
    losses: tuple[float, ...] = ()
    """Before each update."""
    skipped: int | None = None
    """Steps that the scaler left out."""
    error: float | None = None
    """Of the logits, relative to FP32's."""
    status: Status = "ok"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All precisions of a task, FP32 first."""

    task: Task
    outcomes: tuple[Outcome, ...]
    trained: torch.nn.Module | None = None
    """FP32's model after its training."""

    @property
    def first(self) -> BenchmarkResult | None:
        """FP32's, against which the others stand."""
        return self.outcomes[0].result


# ---------------------------------------------------------------- training


def train(context: StudyContext, task: Task, sizes: PrecisionSizes) -> Group:
    """Time training steps of ``task`` in turns, the precisions beginning alike."""
    device = context.device
    model = task.build()
    need = training_need(task, model)
    free = free_bytes("cuda" if device == "cuda" else "cpu")
    if need > free:
        reason = f"needs about {format_bytes(need)}, and {format_bytes(free)} are free."
        return Group(task=task, outcomes=_none_ran(PRECISIONS, "does_not_fit", reason))
    trainers = [trainer_of(task, precision, device) for precision in PRECISIONS]
    refused = {t.precision.name: _refusal(t) for t in trainers}
    able = [t for t in trainers if refused[t.precision.name] is None]
    cases = [
        Case(
            name=f"{task.name} training, {trainer.precision.name}",
            call=trainer.step,
            prepare=trainer.next_batch,
            batch_size=task.items_per_step,
            model=trainer.model,
            optimizer=trainer.optimizer,
            kind="training step",
            count_flops=False,  # its extra step would put one precision's losses ahead
        )
        for trainer in able
    ]
    try:
        results = _in_turns(context, f"{task.name}: training", cases, sizes)
    except RuntimeError as exc:
        if not is_out_of_memory(exc):
            raise
        return Group(task=task, outcomes=_none_ran(PRECISIONS, "does_not_fit", first_line(exc)))
    found = dict(zip((t.precision.name for t in able), results, strict=True))
    return Group(
        task=task,
        outcomes=tuple(
            refused[t.precision.name] or _trained(t, found[t.precision.name]) for t in trainers
        ),
        trained=trainers[0].model,
    )


def trainer_of(task: Task, precision: Precision, device: TorchDevice) -> Trainer:
    """A trainer of ``task`` before its first step."""
    model = task.build().to(device)
    return Trainer(precision, model, task.optimizer(model), task.batches, model_loss, device)


def model_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The loss that a Hugging Face model returns."""
    loss: Tensor = model(**batch).loss
    return loss


def training_need(task: Task, model: torch.nn.Module) -> int:
    """Bytes of a training step in FP32 while all precisions' models are held.

    What autograd keeps is found by a forward pass of two items on the CPU, and grows with the
    batch. 16-bit steps need less beyond a copy of the weights.
    """
    import torch

    weights = module_bytes(model)
    lasting = len(PRECISIONS) * (2 + task.state_copies) * weights + weights // 2
    batch = task.batches[0]
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    two = batch | {key: value[:2].cpu().clone() for key, value in tensors.items()}
    items = len(next(iter(tensors.values())))
    kept = saved_bytes(model, lambda: model_loss(model.train(), two))
    return lasting + kept * items // min(items, 2)


def _refusal(trainer: Trainer) -> Outcome | None:
    """Make the first step; what a device without kernels for it says."""
    try:
        trainer.step(trainer.next_batch())
    except RuntimeError as exc:  # NotImplementedError is one
        return _no_kernel(trainer.precision.name, exc)
    return None


def _no_kernel(name: str, exc: RuntimeError) -> Outcome:
    status: Status = "does_not_fit" if is_out_of_memory(exc) else "unavailable"
    return Outcome(name=name, status=status, reason=first_line(exc))


def _none_ran(precisions: Sequence[Precision], status: Status, reason: str) -> tuple[Outcome, ...]:
    return tuple(Outcome(name=p.name, status=status, reason=reason) for p in precisions)


def _trained(trainer: Trainer, result: BenchmarkResult) -> Outcome:
    return Outcome(
        name=trainer.precision.name,
        result=result,
        losses=trainer.losses(),
        skipped=trainer.skipped if trainer.precision.scaled else None,
    )


def _in_turns(
    context: StudyContext, stage: str, cases: Sequence[Case], sizes: PrecisionSizes
) -> tuple[BenchmarkResult, ...]:
    if not cases:
        return ()
    return context.bench.run_in_turns(
        cases, n_warmup=sizes.warmup, n_runs=sizes.runs, progress=partial(context.progress, stage)
    )


# ---------------------------------------------------------------- inference


def infer(context: StudyContext, task: Task, training: Group, sizes: PrecisionSizes) -> Group:
    """Time forward passes of the trained model, or of a new one where none was trained."""
    import torch

    device = context.device
    model = (training.trained or task.build()).to(device).eval()
    calls = {way.name: logits_fn(model, way, device) for way in SERVED}
    batch = {key: value for key, value in task.batches[0].items() if key != "labels"}
    exact = calls["FP32"].logits(batch).double()
    errors: dict[str, float] = {}
    refused: dict[str, Outcome] = {}
    for way in SERVED:
        try:
            found = calls[way.name].logits(batch).double()
        except RuntimeError as exc:
            refused[way.name] = _no_kernel(way.name, exc)
        else:
            errors[way.name] = (torch.linalg.norm(found - exact) / torch.linalg.norm(exact)).item()
    cases = [
        Case(
            name=f"{task.name} inference, {name}",
            call=calls[name].logits,
            prepare=lambda: batch,
            batch_size=task.items_per_step,
            model=calls[name].model,
            kind="inference",
            count_flops=name == "FP32",  # they are the same in all
        )
        for name in errors
    ]
    results = dict(
        zip(errors, _in_turns(context, f"{task.name}: inference", cases, sizes), strict=True)
    )
    return Group(
        task=task,
        outcomes=tuple(
            refused.get(way.name)
            or Outcome(name=way.name, result=results[way.name], error=errors[way.name])
            for way in SERVED
        ),
    )
