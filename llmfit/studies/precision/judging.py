"""What is judged: groups and FP16's limits ─► checks, findings and notes."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, nan

from llmfit.benchmark import speedup
from llmfit.device.cpu import cpu_flags
from llmfit.device.execution import TorchDevice
from llmfit.studies.precision.limits import LargeActivation, SmallGradients
from llmfit.studies.precision.measuring import Group, Outcome
from llmfit.studies.precision.serving import SERVED
from llmfit.studies.precision.tasks import Task
from llmfit.studies.words import listed, takes
from llmfit.study_records import BenchmarkResult, StudyCheck
from llmfit.units import format_number, format_percent

LOSS_TOLERANCE = 0.02
"""Of FP32's first loss: how far losses after as many updates may be apart. A choice: BF16's three
digits moved them by less than 0.003 on a CPU."""
LOGIT_ERRORS = {"float16": 0.02, "bfloat16": 0.16}
"""Largest relative error (Euclidean norm) of logits: 20 steps between numbers of the format. A
choice, as errors of layers add like a random walk and not one by one."""
_ALLOWED = {
    way.name: LOGIT_ERRORS[way.precision.dtype] for way in SERVED if way.precision.dtype is not None
}

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
    return tuple(_logit_check(group.task, outcome) for outcome in group.outcomes[1:])


def _logit_check(task: Task, outcome: Outcome) -> StudyCheck:
    name = f"{task.name}: logits of {outcome.name} agree with FP32's"
    if outcome.error is None:
        return StudyCheck(name=name, holds=None, detail=outcome.reason or "not run")
    allowed = _ALLOWED[outcome.name]
    return StudyCheck(
        name=name,
        holds=outcome.error <= allowed,
        detail=f"relative error {format_percent(outcome.error, decimals=2)} "
        f"({format_percent(allowed)} allowed)",
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
        f"Training the {group.task.name} in {outcome.name} {_against(group.first, outcome.result)}."
        for outcome in group.outcomes[1:]
        if group.first is not None and outcome.result is not None
    )


def inference_findings(group: Group) -> tuple[str, ...]:
    """Speed and memory of 16-bit inference against FP32's."""
    return tuple(
        f"The {group.task.name} with {outcome.name} {_against(group.first, outcome.result)}."
        for outcome in group.outcomes[1:]
        if group.first is not None and outcome.result is not None
    )


def _against(first: BenchmarkResult, other: BenchmarkResult) -> str:
    """What ``other`` does in time and peak memory against ``first``, in words."""
    text = takes(speedup(first, other), "FP32")
    if first.peak_bytes and other.peak_bytes is not None:
        share = other.peak_bytes / first.peak_bytes
        text += f" and needs {format_percent(share, decimals=0)} of FP32's peak memory"
    return text


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
            f"Where gradients are small, {listed(stuck)} learns nothing; {listed(learned)} learn."
        )
    if ruined:
        found.append(f"Where activations exceed 65,504, {listed(ruined)} ends in NaN weights.")
    if skipped:
        found.append(
            f"Where activations exceed 65,504, the scaler of {listed(skipped)} saves the weights, "
            "and learns nothing from that batch."
        )
    return tuple(found)


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
