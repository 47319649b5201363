"""Regressions in words, the same in every output."""

from __future__ import annotations

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


def regression_line(found: Regression) -> str:
    """Metric, row, size, since which record, and the likely cause, in one sentence."""
    where = f"{plain(found.key.model)}, {plain(found.label)}"
    cause = "; ".join(map(plain, found.causes)) or "not known, a record is missing"
    return (
        f"{metric_name(found.key.metric)} of {where}: {size_text(found)} since "
        f"{found.since_run}/{found.key.backend}. Likely cause: {cause}."
    )


def cell_line(cell: CellResult) -> str:
    """A comparison of a night that was not done, and why."""
    return f"{plain(cell.name)}: {cell.status}: {plain(cell.reason or 'no reason recorded')}"
