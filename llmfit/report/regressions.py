"""Regressions in words, the same in every output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfit.report._text import plain
from llmfit.trend_records import CellResult, Regression
from llmfit.units import (
    format_bytes,
    format_number,
    format_percent,
    format_rate,
    format_seconds,
    format_signed,
)

_METRIC_NAMES = {
    "decode.tokens_per_s": "decode tokens/s",
    "prefill.tokens_per_s": "prefill tokens/s",
    "ttft_s": "time to first token",
    "memory.peak_bytes": "peak memory",
    "memory.peak_ram_bytes": "peak RAM",
    "energy.joules_per_token": "joules per token",
    "hellaswag.acc": "HellaSwag acc",
    "hellaswag.acc_norm": "HellaSwag acc_norm",
    "perplexity.token": "perplexity (token)",
    "perplexity.word": "perplexity (word)",
    "perplexity.byte": "perplexity (byte)",
    "kl_divergence": "KL divergence",
    "top1_agreement": "top-1 agreement",
    "status": "runs",
}


def metric_name(metric: str) -> str:
    """A metric's name for people; of a task's the task and its metric."""
    return _METRIC_NAMES.get(metric, plain(metric.removeprefix("tasks.")))


def format_value(metric: str, value: float | None) -> str:
    """A metric's value with its unit."""
    if value is None:
        return "–"
    if metric.endswith("_bytes"):
        return format_bytes(value)
    if metric.endswith("_s") and not metric.endswith("_per_s"):
        return format_seconds(value)
    if metric.endswith("tokens_per_s"):
        return format_rate(value)
    if metric.startswith(("hellaswag.", "top1")):
        return format_percent(value)
    return format_number(value) if abs(value) >= 1 else f"{value:.4g}"


def size_text(found: Regression) -> str:
    """How much worse: ``40.0 → 32.0 (−20.0 %)``, or why the row does not run."""
    if found.change is None:
        return f"{found.status}: {plain(found.reason or 'no reason recorded')}"
    metric = found.key.metric
    values = f"{format_value(metric, found.before)} → {format_value(metric, found.after)}"
    return f"{values} ({format_signed(100 * found.change, decimals=1)} %)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionGroup:
    """Regressions of one model that began with the same run, and have the same likely cause."""

    head: str
    """Since which record, and the cause."""
    lines: tuple[str, ...]
    """Figure, row and size of each."""


def grouped(found: Sequence[Regression]) -> tuple[RegressionGroup, ...]:
    """The regressions in groups, in the order of the first of each."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Regression]] = {}
    for each in found:
        groups.setdefault((each.key.model, each.since_run, each.causes), []).append(each)
    return tuple(
        RegressionGroup(
            head=f"{plain(model)} since {plain(run_id)}: {cause_text(causes)}",
            lines=tuple(
                f"{metric_name(each.key.metric)}, {plain(each.label)}: {size_text(each)}"
                for each in members
            ),
        )
        for (model, run_id, causes), members in groups.items()
    )


def cause_text(causes: Sequence[str]) -> str:
    """The likely causes in one line."""
    told = "; ".join(plain(cause).rstrip(".") for cause in causes)
    return f"likely cause: {told}" if told else "cause not known, a record is missing"


def cell_line(cell: CellResult) -> str:
    """A comparison of a night that was not done, and why."""
    return f"{plain(cell.name)}: {cell.status}: {plain(cell.reason or 'no reason recorded')}"
