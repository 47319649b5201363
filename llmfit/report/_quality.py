"""The columns of quality: HellaSwag, perplexity, divergence, further tasks."""

from __future__ import annotations

from llmfit.planning.comparing.differences import REFERENCE, reference_row
from llmfit.records import Difference, HellaSwag, Perplexity, RunRecord, TaskMetric, TaskResult
from llmfit.report._column import UNKNOWN, Column, Detail, with_ties
from llmfit.report._text import plain
from llmfit.units import format_number, format_percent, format_plus_minus, format_signed

Rows = tuple[RunRecord, ...]

_MAIN_METRICS = ("acc_norm", "acc", "exact_match")
"""The metric shown of a task is the first of these that it has, else its own first one. These are
shares of the items, and shown in percent."""


def quality_columns(rows: Rows, detail: Detail) -> tuple[Column, ...]:
    """HellaSwag, perplexity, divergence and a column per task, as far as ``detail`` goes."""
    shown = [_hellaswag(rows, detail), _perplexity(rows, detail)]
    if detail >= Detail.COMPACT:
        shown.append(_divergence(rows, detail))
    if detail >= Detail.AGREEMENT:
        shown.append(_agreement(rows))
    if detail >= Detail.LEAN:
        shown += [_task(rows, task) for task in task_names(rows)]
    return tuple(shown)


def task_names(rows: Rows) -> tuple[str, ...]:
    """The tasks beyond HellaSwag and the text that any row was scored on, each once."""
    return tuple(dict.fromkeys(task.task for row in rows for task in row.tasks))


def main_metric(task: TaskResult) -> TaskMetric | None:
    """The metric to show where there is room for one; None for a task without any."""
    for name in _MAIN_METRICS:
        for metric in task.metrics:
            if metric.name == name:
                return metric
    return next(iter(task.metrics), None)


def _hellaswag(rows: Rows, detail: Detail) -> Column:
    spread = detail >= Detail.LEAN

    def figure(score: HellaSwag | None) -> str:
        if score is None:
            return UNKNOWN
        error = f" ± {100 * score.stderr:.1f}" if spread else ""
        return f"{100 * score.acc_norm:.1f}{error} %"

    changes = [row.difference.acc_norm if row.difference else None for row in rows]
    return Column(
        head="HellaSwag",
        unit="acc_norm ±" if spread else "acc_norm",
        cells=with_ties(
            (figure(row.hellaswag) for row in rows),
            map(_tied, changes),
        ),
        align="left",
        known=any(row.hellaswag is not None for row in rows),
        keys=tuple(None if row.hellaswag is None else row.hellaswag.acc_norm for row in rows),
    )


def _perplexity(rows: Rows, detail: Detail) -> Column:
    changed = detail >= Detail.LEAN
    spread = detail >= Detail.FULL and any(
        row.perplexity is not None and row.perplexity.low is not None for row in rows
    )
    changes = [row.difference.perplexity if row.difference else None for row in rows]

    def figure(score: Perplexity | None, change: Difference | None) -> str:
        if score is None:
            return UNKNOWN
        decimals = _decimals(score.token)
        text = f"{score.token:,.{decimals}f}"
        if spread and score.low is not None and score.high is not None:
            half = max(score.high - score.token, score.token - score.low)
            text += f" ± {half:,.{decimals}f}"
        if changed and change is not None:
            text += f" ({format_signed(change.mean, decimals=decimals)})"
        return text

    standard = reference_row(rows)
    name = REFERENCE if standard is None else plain(standard.backend)
    unit = "token ±" if spread else "token"
    return Column(
        head="perplexity",
        unit=f"{unit} (− {name})" if changed and any(changes) else unit,
        cells=with_ties(
            _above_each_other(
                [figure(row.perplexity, c) for row, c in zip(rows, changes, strict=True)]
            ),
            map(_tied, changes),
        ),
        align="left",
        known=any(row.perplexity is not None for row in rows),
        keys=tuple(None if row.perplexity is None else row.perplexity.token for row in rows),
    )


def _tied(change: Difference | None) -> bool:
    return change is not None and change.tie


def _above_each_other(figures: list[str]) -> list[str]:
    """Figures with their changes in brackets, both in columns of their own."""
    parts = [figure.partition(" (") for figure in figures]
    figure_width = max((len(figure) for figure, _, _ in parts), default=0)
    change_width = max((len(opened + change) for _, opened, change in parts), default=0)
    return [
        figure.rjust(figure_width) + (opened + change).rjust(change_width)
        for figure, opened, change in parts
    ]


def _decimals(perplexity: float) -> int:
    """A 4-bit format moves the third decimal of a small perplexity."""
    if perplexity < 10:
        return 3
    return 2 if perplexity < 100 else 1


def _divergence(rows: Rows, detail: Detail) -> Column:
    def cell(row: RunRecord) -> str:
        if row.kl_divergence is None:
            return UNKNOWN
        text = _nats(row.kl_divergence)
        found = row.divergence
        if detail < Detail.ALL or found is None or found.low is None or found.high is None:
            return text
        return f"{text} ({_nats(found.low)}–{_nats(found.high)})"

    return Column(
        head="KL",
        unit="nats",
        cells=tuple(map(cell, rows)),
        known=any(row.kl_divergence is not None for row in rows),
        keys=tuple(row.kl_divergence for row in rows),
    )


def _nats(value: float) -> str:
    """Four decimals: eight bits move the third, other kernels of the same format the fourth."""
    if value == 0 or value >= 1:
        return format_number(value)
    return f"{value:.4f}" if value >= 0.00005 else "<0.0001"


def _agreement(rows: Rows) -> Column:
    shares = [row.top1_agreement for row in rows]
    return Column(
        head="top-1",
        unit="",
        cells=tuple(UNKNOWN if share is None else format_percent(share) for share in shares),
        known=any(share is not None for share in shares),
        keys=tuple(shares),
    )


def _task(rows: Rows, name: str) -> Column:
    metrics = [
        next((main_metric(task) for task in row.tasks if task.task == name), None) for row in rows
    ]
    shown = next((metric for metric in metrics if metric is not None), None)
    unit = "" if shown is None else plain(shown.name)
    spread = any(metric is not None and metric.stderr is not None for metric in metrics)
    return Column(
        head=plain(name),
        unit=f"{unit} ±" if spread else unit,
        cells=tuple(map(_metric_cell, metrics)),
        known=shown is not None,
        keys=tuple(None if metric is None else metric.value for metric in metrics),
    )


def _metric_cell(metric: TaskMetric | None) -> str:
    if metric is None:
        return UNKNOWN
    if metric.name in _MAIN_METRICS:
        error = "" if metric.stderr is None else f" ± {100 * metric.stderr:.1f}"
        return f"{100 * metric.value:.1f}{error} %"
    if metric.stderr is None:
        return format_number(metric.value)
    return format_plus_minus(metric.value, metric.stderr)
