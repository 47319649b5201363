"""What is shown: groups and FP16's limits ─► tables and plots."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.benchmark import speedup
from llmfit.studies.base import cell, ratio_cell, sampled_cell, share_of, time_cell
from llmfit.studies.precision.limits import FormatRange, LargeActivation, SmallGradients
from llmfit.studies.precision.measuring import Group, Outcome
from llmfit.studies.precision.tasks import Task
from llmfit.studies.reference import RESNET_TRAINING
from llmfit.study_records import Cell, Series, StudyColumn, StudyPlot, StudyRow, StudyTable
from llmfit.units import format_number

# ---------------------------------------------------------------- tables


def formats_table(ranges: Sequence[FormatRange]) -> StudyTable:
    """The formats' ranges, by ``torch.finfo``."""
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
