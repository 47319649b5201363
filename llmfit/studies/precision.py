"""FP32, FP16 and BF16: what each costs in training and inference, and where FP16 fails.

    same weights, same batches ─► steps of each precision in turns ─► time, memory, losses
    trained model ─► autocast, or weights cast once ─► time, memory, error of the logits
    precision_limits.py ─► gradients that vanish, activations that overflow

ResNet-50 learns images made of a pattern a class and noise; the embedded language model learns the
calibration text. Losses are those of the very steps that are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, isfinite, nan
from typing import TYPE_CHECKING

from llmfit.benchmark import Case, speedup
from llmfit.device.allocations import module_bytes
from llmfit.device.cpu import cpu_flags
from llmfit.device.execution import TorchDevice, is_out_of_memory
from llmfit.device.memory import free_bytes
from llmfit.models import data_path
from llmfit.records import Status
from llmfit.studies.amp import BF16, FP16, FP32, Batch, Precision, Trainer
from llmfit.studies.base import StudyContext, cell, ratio_cell, sampled_cell, share_of, time_cell
from llmfit.studies.precision_limits import (
    FORMATS,
    LIMIT_PRECISIONS,
    LargeActivation,
    SmallGradients,
    format_range,
    large_activation,
    small_gradients,
)
from llmfit.studies.reference import RESNET_TRAINING, RESNET_TRAINING_OF
from llmfit.studies.steps import saved_bytes
from llmfit.studies.tuning import load_model
from llmfit.study_records import (
    BenchmarkResult,
    Cell,
    Ratio,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_bytes, format_number, format_percent, format_ratio

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TITLE = "Precision: FP32, FP16 and BF16"
QUESTION = "What do 16-bit formats save in training and inference, and where does FP16 fail?"

PRECISIONS = (FP32, FP16, BF16)
CLASSES, LEARNT_CLASSES = 1000, 10
"""Classes that the network tells apart, as on ImageNet, and those that the images are of."""
LOSS_TOLERANCE = 0.02
"""Of FP32's first loss: how far losses after as many updates may be apart. A choice: BF16's three
digits moved them by less than 0.003 on a CPU."""
LOGIT_ERRORS = {"float16": 0.02, "bfloat16": 0.16}
"""Largest relative error (Euclidean norm) of logits: 20 steps between numbers of the format. A
choice, as errors of layers add like a random walk and not one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSizes:
    """What is trained, and how often."""

    image_batch: int
    image_pixels: int
    """Of a side."""
    text_batch: int
    text_tokens: int
    """Of a sequence."""
    batches: int
    """Different ones, in turn."""
    warmup: int
    runs: int
    limit_steps: int
    """Updates of the network whose gradients are small."""


DEFAULT = PrecisionSizes(
    image_batch=4,
    image_pixels=64,
    text_batch=2,
    text_tokens=64,
    batches=2,
    warmup=1,
    runs=6,
    limit_steps=40,
)
REFERENCE = PrecisionSizes(
    image_batch=32,
    image_pixels=224,
    text_batch=32,
    text_tokens=512,
    batches=4,
    warmup=3,
    runs=14,
    limit_steps=40,
)


def run(context: StudyContext) -> StudyResult:
    """Both models trained and run in each precision, then FP16's limits."""
    return run_sizes(context, REFERENCE if context.preset == "reference" else DEFAULT)


def run_sizes(context: StudyContext, sizes: PrecisionSizes) -> StudyResult:
    """The study with these sizes."""
    tasks = (image_task(sizes, context), text_task(sizes, context))
    trainings, inferences = [], []
    for task in tasks:
        training = train(context, task, sizes)
        trainings.append(training)
        inferences.append(infer(context, task, training, sizes))
    context.progress("FP16's limits", 0, 0)
    device = context.device
    small = [
        small_gradients(p, steps=sizes.limit_steps, seed=context.seed, device=device)
        for p in LIMIT_PRECISIONS
    ]
    large = [large_activation(p, device=device) for p in LIMIT_PRECISIONS]
    measured = [outcome for group in (*trainings, *inferences) for outcome in group.outcomes]
    return StudyResult(
        study="precision",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=device,
        settings={"seed": context.seed, **asdict(sizes)},
        tables=(
            formats_table(),
            *map(training_table, trainings),
            *map(inference_table, inferences),
            small_table(small),
            large_table(large),
        ),
        plots=(*map(loss_plot, trainings), small_plot(small)),
        checks=(
            *(check for training in trainings for check in loss_checks(training)),
            *(check for inference in inferences for check in logit_checks(inference)),
            *limit_checks(small, large),
        ),
        findings=(
            *(line for training in trainings for line in training_findings(training)),
            *(line for inference in inferences for line in inference_findings(inference)),
            *limit_findings(small, large),
        ),
        reference=RESNET_TRAINING_OF,
        notes=notes(device, trainings),
        benchmarks=tuple(o.result for o in measured if o.result is not None),
    )


# ---------------------------------------------------------------- what is trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model, its data, and how it learns."""

    name: str
    items: str
    """What its throughput counts."""
    items_per_step: int
    build: Callable[[], torch.nn.Module]
    """The same weights each time."""
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    state_copies: int
    """Tensors that the optimizer keeps of each weight."""
    batches: tuple[Batch, ...]


def image_task(sizes: PrecisionSizes, context: StudyContext) -> Task:
    """ResNet-50 by SGD with momentum."""
    import torch

    return Task(
        name="ResNet-50",
        items="images",
        items_per_step=sizes.image_batch,
        build=partial(resnet50, context.seed),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        state_copies=1,
        batches=image_batches(sizes, context.seed, context.device),
    )


def text_task(sizes: PrecisionSizes, context: StudyContext) -> Task:
    """The embedded language model by AdamW."""
    import torch

    return Task(
        name="language model",
        items="tokens",
        items_per_step=sizes.text_batch * sizes.text_tokens,
        build=partial(load_model, "cpu", in_float32=True),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=5e-4),
        state_copies=2,
        batches=text_batches(sizes, context.device),
    )


def resnet50(seed: int) -> torch.nn.Module:
    """ResNet-50 with random weights, the last scale of each block 0.

    Without that its gradients have a norm beyond 1,000 at first, which FP16 does not hold at the
    scaler's usual scale. Source: Goyal et al. 2017, arXiv:1706.02677, section 5.1.
    """
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer

    torch.manual_seed(seed)
    model: torch.nn.Module = ResNetForImageClassification(ResNetConfig(num_labels=CLASSES))
    for module in model.modules():
        if isinstance(module, ResNetBottleNeckLayer):
            torch.nn.init.zeros_(module.layer[-1].normalization.weight)
    return model


def image_batches(sizes: PrecisionSizes, seed: int, device: TorchDevice) -> tuple[Batch, ...]:
    """``pixel_values: float32[B, 3, P, P]``, ``labels: int64[B]``: a pattern a class, and noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(LEARNT_CLASSES, 3, 8, 8, generator=generator)
    shape = sizes.image_batch, 3, sizes.image_pixels, sizes.image_pixels
    batches = []
    for _ in range(sizes.batches):
        labels = torch.randint(LEARNT_CLASSES, shape[:1], generator=generator)
        clean = torch.nn.functional.interpolate(patterns[labels], size=shape[2:])
        pixels = clean + torch.randn(shape, generator=generator)
        batches.append({"pixel_values": pixels.to(device), "labels": labels.to(device)})
    return tuple(batches)


def text_batches(sizes: PrecisionSizes, device: TorchDevice) -> tuple[Batch, ...]:
    """``input_ids`` and ``labels``, int64[B, T]: the calibration text from its begin on.

    The text begins anew where the batches ask for more than it has.
    """
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data_path("embedded") / "tokenizer.json"))
    text = data_path("calibration.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer.encode(text).ids)
    wanted = sizes.batches * sizes.text_batch * sizes.text_tokens
    tokens = tokens.repeat(-(-wanted // len(tokens)))[:wanted].to(device)
    ids = tokens.view(sizes.batches, sizes.text_batch, sizes.text_tokens)
    return tuple({"input_ids": each, "labels": each, "use_cache": False} for each in ids)


# ---------------------------------------------------------------- training


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
    tolerance: float | None = None
    """Of that error."""
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
        return Group(task=task, outcomes=_none_ran(PRECISIONS, "does_not_fit", str(exc)))
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
    weights = module_bytes(model)
    lasting = len(PRECISIONS) * (2 + task.state_copies) * weights + weights // 2
    batch = task.batches[0]
    two = {
        key: value[:2].cpu().clone() if _is_tensor(value) else value for key, value in batch.items()
    }
    items, tried = (
        next(len(value) for value in each.values() if _is_tensor(value)) for each in (batch, two)
    )
    kept = saved_bytes(model, lambda: model_loss(model.train(), two))
    return lasting + kept * items // tried


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _refusal(trainer: Trainer) -> Outcome | None:
    """Make the first step; what a device without kernels for it says."""
    try:
        trainer.step(trainer.next_batch())
    except RuntimeError as exc:  # NotImplementedError is one
        return _no_kernel(trainer.precision.name, exc)
    return None


def _no_kernel(name: str, exc: RuntimeError) -> Outcome:
    status: Status = "does_not_fit" if is_out_of_memory(exc) else "unavailable"
    return Outcome(name=name, status=status, reason=str(exc).strip().split("\n")[0])


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A way to run a trained model."""

    name: str
    precision: Precision
    cast: bool = False
    """Weights are cast once, instead of by autocast in each call."""


SERVED = (
    Served(name="FP32", precision=FP32),
    Served(name="FP16 autocast", precision=FP16),
    Served(name="BF16 autocast", precision=BF16),
    Served(name="FP16 weights", precision=FP16, cast=True),
    Served(name="BF16 weights", precision=BF16, cast=True),
)


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
            or Outcome(
                name=way.name,
                result=results[way.name],
                error=errors[way.name],
                tolerance=LOGIT_ERRORS.get(way.precision.dtype or ""),
            )
            for way in SERVED
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A model ready to give logits."""

    model: torch.nn.Module
    way: Served
    device: TorchDevice

    def logits(self, batch: Batch) -> Tensor:
        """The model's logits; float inputs in the type of its weights."""
        import torch

        dtype = next(self.model.parameters()).dtype
        inputs = {
            key: value.to(dtype) if _is_tensor(value) and value.is_floating_point() else value
            for key, value in batch.items()
        }
        precision = FP32 if self.way.cast else self.way.precision
        # no_grad: the counter of FLOPs does not see inference mode.
        with torch.no_grad(), precision.autocast(self.device):
            found: Tensor = self.model(**inputs).logits
        return found


def logits_fn(model: torch.nn.Module, way: Served, device: TorchDevice) -> Server:
    """``model`` served that way; the one with cast weights is a copy."""
    from copy import deepcopy

    import torch

    if way.cast and way.precision.dtype is not None:
        model = deepcopy(model).to(getattr(torch, way.precision.dtype))
    return Server(model=model, way=way, device=device)


# ---------------------------------------------------------------- tables


def formats_table() -> StudyTable:
    """The formats' ranges, by ``torch.finfo``."""
    ranges = [format_range(name) for name in FORMATS]
    return StudyTable(
        title="What the formats can hold (torch.finfo)",
        head="format",
        columns=(
            StudyColumn(key="bits", head="bits", unit="count"),
            StudyColumn(key="largest", head="largest", unit="text"),
            StudyColumn(key="normal", head="smallest", under="normal", unit="text"),
            StudyColumn(key="smallest", head="smallest", under="above 0", unit="text"),
            StudyColumn(key="epsilon", head="step", under="at 1", unit="text"),
        ),
        rows=tuple(
            StudyRow(
                name=each.name,
                cells={
                    "bits": cell(each.bits),
                    # As text: these span eighty orders of magnitude.
                    "largest": cell(f"{each.largest:.5g}"),
                    "normal": cell(f"{each.smallest_normal:.3g}"),
                    "smallest": cell(f"{each.smallest:.3g}"),
                    "epsilon": cell(f"{each.epsilon:.3g}"),
                },
            )
            for each in ranges
        ),
    )


def training_table(group: Group) -> StudyTable:
    """Steps of each precision; for ResNet-50 the published ratios beside."""
    published = group.task.name == "ResNet-50"
    theirs = (
        (
            StudyColumn(key="their_speedup", head="speed-up", under="RTX 4090", unit="ratio"),
            StudyColumn(key="their_memory", head="memory", under="RTX 4090", unit="ratio"),
            StudyColumn(
                key="their_rate", head="images/s", under="RTX 4090", unit="per_s", needed=False
            ),
        )
        if published
        else ()
    )
    return StudyTable(
        title=f"Training step of the {group.task.name}, {_size(group.task)}",
        head="precision",
        columns=(
            StudyColumn(key="time", head="step", unit="s"),
            StudyColumn(key="speedup", head="speed-up", under="ours", unit="ratio"),
            *theirs[:1],
            StudyColumn(key="peak", head="peak", under="memory", unit="bytes"),
            StudyColumn(key="memory", head="memory", under="ours", unit="ratio"),
            *theirs[1:2],
            StudyColumn(key="rate", head=f"{group.task.items}/s", unit="per_s"),
            *theirs[2:],
            StudyColumn(key="skipped", head="steps", under="skipped", unit="count", needed=False),
        ),
        rows=tuple(
            _row(
                outcome,
                {
                    **_measured(group, outcome),
                    **(_published(outcome.name) if published else {}),
                    "skipped": cell(outcome.skipped),
                },
            )
            for outcome in group.outcomes
        ),
        notes=(
            "peak memory: weights, optimizer state, and what a step allocates; gradients are in it",
        ),
    )


def inference_table(group: Group) -> StudyTable:
    """Forward passes, by autocast and with weights cast once."""
    return StudyTable(
        title=f"Inference of the {group.task.name}, {_size(group.task)}",
        head="precision",
        columns=(
            StudyColumn(key="time", head="time", unit="s"),
            StudyColumn(key="speedup", head="speed-up", unit="ratio"),
            StudyColumn(key="peak", head="peak", under="memory", unit="bytes"),
            StudyColumn(key="memory", head="memory", under="ratio", unit="ratio"),
            StudyColumn(key="rate", head=f"{group.task.items}/s", unit="per_s"),
            StudyColumn(key="error", head="error of", under="logits", unit="share"),
        ),
        rows=tuple(
            _row(outcome, {**_measured(group, outcome), "error": cell(outcome.error)})
            for outcome in group.outcomes
        ),
        notes=("error: Euclidean norm of the logits' difference to FP32's ÷ that of FP32's",),
    )


def _size(task: Task) -> str:
    return f"{task.items_per_step:,} {task.items}"


def _row(outcome: Outcome, cells: dict[str, Cell]) -> StudyRow:
    ran = outcome.status == "ok"
    return StudyRow(
        name=outcome.name,
        status=outcome.status,
        reason=outcome.reason,
        cells=cells if ran else {},
    )


def _measured(group: Group, outcome: Outcome) -> dict[str, Cell]:
    result, first = outcome.result, group.first
    if result is None:
        return {}
    return {
        "time": time_cell(result),
        "speedup": cell(None) if first is None else ratio_cell(speedup(first, result)),
        "peak": cell(result.peak_bytes),
        "memory": share_of(result.peak_bytes, first.peak_bytes if first else None),
        "rate": sampled_cell(result.throughput_per_s),
    }


def _published(name: str) -> dict[str, Cell]:
    theirs, first = RESNET_TRAINING[name], RESNET_TRAINING["FP32"]
    return {
        "their_speedup": share_of(first.seconds, theirs.seconds),
        "their_memory": share_of(theirs.memory_bytes, first.memory_bytes),
        "their_rate": cell(theirs.items_per_s),
    }


def small_table(cases: Sequence[SmallGradients]) -> StudyTable:
    """Who learns from gradients below FP16's smallest number."""
    return StudyTable(
        title="Gradients too small for FP16: a network whose loss is multiplied by 2⁻²⁴",
        head="precision",
        columns=(
            StudyColumn(key="zero", head="gradients", under="that are 0", unit="share"),
            StudyColumn(key="before", head="loss", under="at first", unit="number"),
            StudyColumn(key="after", head="loss", under="at last", unit="number"),
            StudyColumn(key="learned", head="learned", unit="text"),
        ),
        rows=tuple(
            StudyRow(
                name=case.precision,
                cells={
                    "zero": cell(case.zero_share),
                    "before": cell(case.losses[0]),
                    "after": cell(case.losses[-1]),
                    "learned": cell("yes" if case.learned else "no"),
                },
            )
            for case in cases
        ),
        notes=("FP16 has a GradScaler, FP16 unscaled and BF16 have none",),
    )


def large_table(cases: Sequence[LargeActivation]) -> StudyTable:
    """Who survives activations of 80,000."""
    return StudyTable(
        title="Activations too large for FP16: one training step",
        head="precision",
        columns=(
            StudyColumn(key="activation", head="largest", under="activation", unit="text"),
            StudyColumn(key="loss", head="loss", unit="text"),
            StudyColumn(key="step", head="step", unit="text"),
            StudyColumn(key="weights", head="weights", under="after it", unit="text"),
            StudyColumn(key="before", head="scale", under="before", unit="number"),
            StudyColumn(key="after", head="scale", under="after", unit="number"),
        ),
        rows=tuple(
            StudyRow(
                name=case.precision,
                cells={
                    # As text: JSON has no infinity.
                    "activation": cell(format_number(case.activation)),
                    "loss": cell(format_number(case.loss)),
                    "step": cell("made" if case.stepped else "skipped"),
                    "weights": cell("finite" if case.finite else "not finite"),
                    "before": cell(case.scale_before),
                    "after": cell(case.scale_after),
                },
            )
            for case in cases
        ),
    )


# ---------------------------------------------------------------- plots


def loss_plot(group: Group) -> StudyPlot:
    """Loss by update, a line a precision."""
    return StudyPlot(
        title=f"{group.task.name}: loss in training",
        kind="lines",
        x_label="update",
        y_label="loss",
        series=tuple(
            Series(name=each.name, x=tuple(map(float, range(len(each.losses)))), y=each.losses)
            for each in group.outcomes
            if each.losses
        ),
    )


def small_plot(cases: Sequence[SmallGradients]) -> StudyPlot:
    """Loss by update where gradients are small."""
    return StudyPlot(
        title="Gradients below FP16's smallest number",
        kind="lines",
        x_label="update",
        y_label="loss",
        log_y=True,
        series=tuple(
            Series(name=each.precision, x=tuple(map(float, range(len(each.losses)))), y=each.losses)
            for each in cases
        ),
    )


# ---------------------------------------------------------------- checks


def loss_checks(group: Group) -> tuple[StudyCheck, ...]:
    """Losses of 16-bit training are FP32's within ``LOSS_TOLERANCE``."""
    exact = group.outcomes[0].losses
    return tuple(_loss_check(group.task, exact, outcome) for outcome in group.outcomes[1:])


def _loss_check(task: Task, exact: Sequence[float], outcome: Outcome) -> StudyCheck:
    name = f"{task.name}: losses of {outcome.name} agree with FP32's"
    pairs = list(zip(exact, outcome.losses, strict=False))  # of as many updates as both have made
    if len(pairs) < 2:
        why = outcome.reason or ("FP32 did not run" if not exact else "too few updates")
        return StudyCheck(name=name, holds=None, detail=why)
    apart = [abs(a - b) / exact[0] for a, b in pairs]
    # max() would pass over a loss that is no number.
    most = max(apart) if all(map(isfinite, apart)) else nan
    return StudyCheck(
        name=name,
        holds=most <= LOSS_TOLERANCE,
        detail=(
            f"at most {format_percent(most, decimals=2)} of the first loss apart over "
            f"{len(pairs)} updates ({format_percent(LOSS_TOLERANCE)} allowed), while FP32's fell "
            f"from {format_number(exact[0])} to {format_number(pairs[-1][0])}"
        ),
    )


def logit_checks(group: Group) -> tuple[StudyCheck, ...]:
    """Logits of 16-bit inference are FP32's within the format's tolerance."""
    return tuple(
        StudyCheck(
            name=f"{group.task.name}: logits of {outcome.name} agree with FP32's",
            holds=None
            if outcome.error is None or outcome.tolerance is None
            else outcome.error <= outcome.tolerance,
            detail=outcome.reason or "not run"
            if outcome.error is None or outcome.tolerance is None
            else f"relative error {format_percent(outcome.error, decimals=2)} "
            f"({format_percent(outcome.tolerance)} allowed)",
        )
        for outcome in group.outcomes[1:]
    )


def limit_checks(
    small: Sequence[SmallGradients], large: Sequence[LargeActivation]
) -> tuple[StudyCheck, ...]:
    """FP16 without a scaler fails where BF16, and FP16 with one, do not."""
    tiny = {case.precision: case for case in small}
    huge = {case.precision: case for case in large}
    plain, scaled, bf16 = tiny["FP16 unscaled"], tiny["FP16"], tiny["BF16"]
    lost, kept, safe = huge["FP16 unscaled"], huge["FP16"], huge["BF16"]
    return (
        StudyCheck(
            name="small gradients are 0 in FP16 without a scaler, and nothing is learned",
            holds=plain.zero_share == 1 and plain.losses[0] == plain.losses[-1],
            detail=f"{format_percent(plain.zero_share)} of gradients are 0; {_fall(plain)}",
        ),
        StudyCheck(
            name="with a GradScaler FP16 learns from them",
            holds=scaled.learned,
            detail=_fall(scaled),
        ),
        StudyCheck(
            name="BF16 learns from them without a scaler", holds=bf16.learned, detail=_fall(bf16)
        ),
        StudyCheck(
            name="large activations are infinite in FP16 and finite in BF16",
            holds=lost.activation == inf and safe.activation < inf,
            detail=f"{format_number(lost.activation)} in FP16, {format_number(safe.activation)} "
            "in BF16",
        ),
        StudyCheck(
            name="the GradScaler leaves that step out and halves its scale",
            holds=not kept.stepped
            and kept.unchanged
            and kept.scale_before is not None
            and kept.scale_after == kept.scale_before / 2,
            detail=f"step {'made' if kept.stepped else 'skipped'}, weights "
            f"{'unchanged' if kept.unchanged else 'changed'}, scale "
            f"{_scale(kept.scale_before)} → {_scale(kept.scale_after)}",
        ),
    )


def _fall(case: SmallGradients) -> str:
    return f"loss {format_number(case.losses[0])} → {format_number(case.losses[-1])}"


def _scale(value: float | None) -> str:
    return "none" if value is None else format_number(value)


# ---------------------------------------------------------------- findings


def training_findings(group: Group) -> tuple[str, ...]:
    """Speed and memory of 16-bit steps against FP32's."""
    return tuple(
        f"Training the {group.task.name} in {outcome.name}: {against(group.first, outcome.result)}."
        for outcome in group.outcomes[1:]
        if group.first is not None and outcome.result is not None
    )


def inference_findings(group: Group) -> tuple[str, ...]:
    """Speed and memory of 16-bit inference against FP32's."""
    return tuple(
        f"The {group.task.name} with {outcome.name}: {against(group.first, outcome.result)}."
        for outcome in group.outcomes[1:]
        if group.first is not None and outcome.result is not None
    )


def against(first: BenchmarkResult, other: BenchmarkResult) -> str:
    """Speed and peak memory of ``other`` against ``first``, in words."""
    text = speed_words(speedup(first, other))
    if first.peak_bytes and other.peak_bytes is not None:
        share = other.peak_bytes / first.peak_bytes
        text += f", {format_percent(share, decimals=0)} of FP32's peak memory"
    return text


def speed_words(ratio: Ratio) -> str:
    """A speed-up in words; one within the noise is called none."""
    if not ratio.real:
        return "no difference in speed beyond the noise"
    if ratio.value > 1:
        return f"{format_ratio(ratio.value)} as fast as FP32"
    return f"takes {format_ratio(1 / ratio.value)} as long as FP32"


def limit_findings(
    small: Sequence[SmallGradients], large: Sequence[LargeActivation]
) -> tuple[str, ...]:
    """Who learned and who lost weights."""
    learned = [case.precision for case in small if case.learned]
    stuck = [case.precision for case in small if not case.learned]
    ruined = [case.precision for case in large if not case.finite]
    skipped = [case.precision for case in large if not case.stepped]
    found = []
    if stuck:
        found.append(
            f"Where gradients are small, {_names(stuck)} learns nothing; {_names(learned)} learn."
        )
    if ruined:
        found.append(f"Where activations exceed 65,504, {_names(ruined)} ends in NaN weights.")
    if skipped:
        found.append(
            f"Where activations exceed 65,504, the scaler of {_names(skipped)} saves the weights, "
            "and learns nothing from that batch."
        )
    return tuple(found)


def _names(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)


def notes(device: TorchDevice, trainings: Sequence[Group]) -> tuple[str, ...]:
    """What the device and the data mean for the figures."""
    import torch

    found = [
        "Images are patterns with noise, made here; ResNet-50 begins with random weights, the "
        "last scale of each block 0. The language model begins as trained.",
        "Weights, gradients and optimizer state stay in FP32 under autocast: only activations "
        "shrink, so memory halves only where they are most of it.",
    ]
    flags = cpu_flags()
    if device == "cpu" and flags and not {"avx512_fp16", "amx_fp16", "fphp"} & flags:
        found.append("This CPU has no FP16 arithmetic: it computes in FP32 and converts.")
    if device == "cuda" and torch.backends.cudnn.allow_tf32:
        found.append("FP32 convolutions use TF32, torch's default on this GPU.")
    skipped = sum(outcome.skipped or 0 for group in trainings for outcome in group.outcomes)
    if skipped:
        found.append(
            f"The GradScaler left {skipped} steps out while its scale settled; losses are compared "
            "after as many updates."
        )
    return tuple(found)
