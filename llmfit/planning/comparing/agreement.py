"""Does a second run agree with a record? Figure by figure, by the record's own intervals.

tokens/s, time to first token   the two intervals of the median share a point
accuracies, perplexity,         the new value lies in the recorded interval; scoring has no
divergence, tasks               chance in it, so the same run gives the same value
what has no interval            within a stated tolerance of the recorded value
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmfit.records import (
    SCHEMA_VERSION,
    MeasurementWarning,
    RunRecord,
    Sampled,
    Status,
    TaskMetric,
    TaskResult,
)
from llmfit.stats import overlap, unpaired_difference
from llmfit.units import MB

MEMORY_TOLERANCE = 0.1
"""Share by which peak memory may differ, where that is more than ``MEMORY_LEAST_BYTES``."""

MEMORY_LEAST_BYTES = 16 * MB
"""What peak memory may always differ by: libraries' working sets and allocators move it by some
10 MB from run to run, which is much of a very small model's."""

QUALITY_TOLERANCE = 0.01
"""Share by which a quality figure without an interval may differ. A choice: another order of
additions moves the fifth digit."""

SPEED_TOLERANCE = 0.1
"""Share by which the speed of a single repeat, which has no interval, may differ. A choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A recorded value, its interval, and the value of the second run."""

    name: str
    """Place in the record, e.g. ``decode.tokens_per_s``; its unit is in the name."""
    recorded: float
    low: float | None = None
    high: float | None = None
    """95 % interval of ``recorded``; None where it has none."""
    tolerance: float | None = None
    """How far from ``recorded`` the value may lie, in its own unit, where there is no interval."""
    again: float | None = None
    """The second run's value; None where it gave none, which counts as outside."""
    again_low: float | None = None
    again_high: float | None = None
    inside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAgreement:
    """One row, run again."""

    backend: str
    label: str
    status: Status
    """Of the second run."""
    reason: str | None
    """Why the second run's row is not ok."""
    figures: tuple[Figure, ...]
    inside: bool
    """True when the row ran and every figure agrees with the record."""
    warnings: tuple[MeasurementWarning, ...] = ()
    """Of the second run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A record, run again on the same machine."""

    schema_version: int = SCHEMA_VERSION
    record: str
    """What was run again: a path, or a run's id."""
    run_id: str
    """Id of the second run, whose records are kept as any run's."""
    rows: tuple[RowAgreement, ...]
    inside: bool
    """True when every figure of every row agrees with the record."""
    left_out: tuple[str, ...] = ()
    """Rows of the record that were not run again, each with why."""


def agreement(recorded: RunRecord, again: RunRecord) -> RowAgreement:
    """Judge each figure of ``recorded``, an ok row, by the row of the second run."""
    figures = (
        *_speed(recorded, again),
        *_memory(recorded, again),
        *_hellaswag(recorded, again),
        *_text(recorded, again),
        *_divergence(recorded, again),
        *_tasks(recorded, again),
    )
    return RowAgreement(
        backend=recorded.backend,
        label=recorded.label,
        status=again.status,
        reason=again.reason,
        figures=figures,
        inside=again.status == "ok" and all(figure.inside for figure in figures),
        warnings=again.warnings,
    )


# ---------------------------------------------------------------- the figures of a row


def _speed(a: RunRecord, b: RunRecord) -> Iterator[Figure]:
    pairs = {
        "decode.tokens_per_s": (
            a.decode.tokens_per_s if a.decode else None,
            b.decode.tokens_per_s if b.decode else None,
        ),
        "prefill.tokens_per_s": (
            a.prefill.tokens_per_s if a.prefill else None,
            b.prefill.tokens_per_s if b.prefill else None,
        ),
        "ttft_s": (a.ttft_s, b.ttft_s),
    }
    for name, (recorded, again) in pairs.items():
        if recorded is not None:
            yield _sampled(name, recorded, again)


def _memory(a: RunRecord, b: RunRecord) -> Iterator[Figure]:
    if a.memory is not None and a.memory.peak_bytes is not None:
        again = b.memory.peak_bytes if b.memory else None
        recorded = a.memory.peak_bytes
        tolerance = max(MEMORY_TOLERANCE * recorded, MEMORY_LEAST_BYTES)
        yield _tolerated("memory.peak_bytes", recorded, again, tolerance)


def _hellaswag(a: RunRecord, b: RunRecord) -> Iterator[Figure]:
    if a.hellaswag is None:
        return
    x, y = a.hellaswag, b.hellaswag
    yield _with_stderr("hellaswag.acc", x.acc, x.acc_stderr, y.acc if y else None)
    yield _with_stderr("hellaswag.acc_norm", x.acc_norm, x.stderr, y.acc_norm if y else None)


def _text(a: RunRecord, b: RunRecord) -> Iterator[Figure]:
    if a.perplexity is None:
        return
    x, y = a.perplexity, b.perplexity
    yield _in_interval("perplexity.token", x.token, x.low, x.high, y.token if y else None)
    for name, recorded, again in (
        ("perplexity.word", x.word, y.word if y else None),
        ("perplexity.byte", x.byte, y.byte if y else None),
    ):
        if recorded is not None:
            yield _tolerated(name, recorded, again, QUALITY_TOLERANCE * abs(recorded))


def _divergence(a: RunRecord, b: RunRecord) -> Iterator[Figure]:
    if a.divergence is None:
        return
    x, y = a.divergence, b.divergence
    yield _in_interval("kl_divergence", x.mean, x.low, x.high, y.mean if y else None)
    yield _in_interval(
        "top1_agreement",
        x.top1_agreement,
        x.top1_low,
        x.top1_high,
        y.top1_agreement if y else None,
    )


def _tasks(a: RunRecord, b: RunRecord) -> Iterator[Figure]:
    again = {
        (task.task, metric.name, metric.filter): metric.value
        for task in b.tasks
        for metric in task.metrics
    }
    for task in a.tasks:
        for metric in task.metrics:
            yield _with_stderr(
                _metric_name(task, metric),
                metric.value,
                metric.stderr,
                again.get((task.task, metric.name, metric.filter)),
            )


def _metric_name(task: TaskResult, metric: TaskMetric) -> str:
    suffix = "" if metric.filter == "none" else f",{metric.filter}"
    return f"tasks.{task.task}.{metric.name}{suffix}"


# ---------------------------------------------------------------- ways of judging


def _sampled(name: str, recorded: Sampled, again: Sampled | None) -> Figure:
    if len(recorded.samples) < 2:
        median = None if again is None else again.median
        return _tolerated(name, recorded.median, median, SPEED_TOLERANCE * recorded.median)
    figure = Figure(
        name=name, recorded=recorded.median, low=recorded.low, high=recorded.high, inside=False
    )
    if again is None:
        return figure
    return replace(
        figure,
        again=again.median,
        again_low=again.low,
        again_high=again.high,
        inside=overlap(recorded, again),
    )


def _in_interval(
    name: str, recorded: float, low: float | None, high: float | None, again: float | None
) -> Figure:
    if low is None or high is None:
        return _tolerated(name, recorded, again, QUALITY_TOLERANCE * abs(recorded))
    # The recorded value itself agrees, though a percentile interval need not hold it.
    inside = again is not None and (low <= again <= high or again == recorded)
    return Figure(name=name, recorded=recorded, low=low, high=high, again=again, inside=inside)


def _with_stderr(name: str, recorded: float, stderr: float | None, again: float | None) -> Figure:
    if stderr is None:
        return _tolerated(name, recorded, again, QUALITY_TOLERANCE * abs(recorded))
    around = unpaired_difference(recorded, stderr, 0.0, 0.0)
    return _in_interval(name, recorded, around.low, around.high, again)


def _tolerated(name: str, recorded: float, again: float | None, tolerance: float) -> Figure:
    inside = again is not None and abs(again - recorded) <= tolerance
    return Figure(name=name, recorded=recorded, tolerance=tolerance, again=again, inside=inside)
