"""``Found`` ─► the table and plots of it: each size of micro-batches against the whole batch."""

from __future__ import annotations

from llmfit.benchmark import speedup
from llmfit.studies.accumulation.measuring import Found, Measured, Sizes
from llmfit.studies.base import cell, ratio_cell, share_of, time_cell
from llmfit.study_records import (
    BenchmarkResult,
    Series,
    StudyColumn,
    StudyPlot,
    StudyRow,
    StudyTable,
)


def table(found: Found) -> StudyTable:
    """A row for each size of micro-batches, against the whole batch."""
    first = next((m.result for m in found.measured if m.steps == 1), None)
    return StudyTable(
        title="A training step of one effective batch",
        head="micro-batches",
        columns=(
            StudyColumn(key="time", head="step", unit="s"),
            StudyColumn(key="speed", head="speed", under="÷ whole", unit="ratio"),
            StudyColumn(key="peak", head="peak", unit="bytes"),
            StudyColumn(key="memory", head="memory", under="÷ whole", unit="ratio"),
            StudyColumn(key="loss", head="loss", unit="number"),
            StudyColumn(key="difference", head="gradients", under="apart by", unit="number"),
            StudyColumn(key="naive", head="mean of", under="means", unit="number"),
            StudyColumn(
                key="naive_loss", head="loss, mean", under="of means", unit="number", needed=False
            ),
            StudyColumn(
                key="working", head="beyond model", under="and state", unit="bytes", needed=False
            ),
        ),
        rows=tuple(_row(m, first) for m in found.measured),
        notes=(
            "Gradients apart by: ‖difference‖ ÷ ‖whole batch's‖, weighted by tokens; mean of "
            "means: the same where every micro-batch weighs the same.",
        ),
    )


def _row(measured: Measured, first: BenchmarkResult | None) -> StudyRow:
    result = measured.result
    if result is None:
        return StudyRow(name=measured.name, status="does_not_fit", reason=measured.reason)
    cells = {
        "time": time_cell(result),
        "peak": cell(result.peak_bytes),
        "working": cell(result.working_bytes),
        "loss": cell(measured.loss),
        "difference": cell(measured.difference),
        "naive": cell(measured.naive_difference),
        "naive_loss": cell(measured.mean_of_means),
    }
    if first is not None:
        cells |= {
            "speed": ratio_cell(speedup(first, result)),
            "memory": share_of(result.peak_bytes, first.peak_bytes),
        }
    return StudyRow(name=measured.name, cells=cells)


def plots(found: Found) -> tuple[StudyPlot, ...]:
    """Memory, time and the gradients' error against the number of steps."""
    ran = [m for m in found.measured if m.result is not None]
    steps = tuple(float(m.steps) for m in ran)
    results = [m.result for m in ran if m.result is not None]
    lasting = tuple(
        None if r.held_bytes is None else r.held_bytes + 4 * (r.trainable_parameters or 0)
        for r in results
    )
    compared = found.compared
    accumulated = tuple(float(m.steps) for m in compared)
    return (
        StudyPlot(
            title="Memory of a step",
            kind="lines",
            x_label="micro-batches",
            y_label="bytes",
            series=(
                Series(name="peak", x=steps, y=tuple(r.peak_bytes for r in results)),
                Series(name="model, gradients, optimizer", x=steps, y=lasting),
            ),
            log_x=True,
        ),
        StudyPlot(
            title="Time of a step",
            kind="lines",
            x_label="micro-batches",
            y_label="s",
            series=(Series(name="step", x=steps, y=tuple(r.latency_s.median for r in results)),),
            log_x=True,
        ),
        StudyPlot(
            title="Gradients against the whole batch's",
            kind="lines",
            x_label="micro-batches",
            y_label="relative difference",
            series=(
                Series(name="by tokens", x=accumulated, y=tuple(m.difference for m in compared)),
                Series(
                    name="mean of means",
                    x=accumulated,
                    y=tuple(m.naive_difference for m in compared),
                ),
            ),
            log_x=True,
            log_y=True,
        ),
    )


def notes(sizes: Sizes) -> tuple[str, ...]:
    """What was run, and what the columns count."""
    return (
        "The embedded model on its own training text; sequences of "
        f"{sizes.shortest} to {sizes.tokens:,} tokens, padded. No published figures stand "
        "beside: none of accumulation are known.",
        "Peak: model, gradients, AdamW's state and all that a step allocates beyond them.",
    )
