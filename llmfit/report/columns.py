"""What the tables say, column by column, as plain text.

The terminal table and the markdown table only lay these out, so that they cannot disagree.
"""

from __future__ import annotations

from llmfit.planning.verdict.recommend import STATUS_WORDS, needed_bytes
from llmfit.records import Comparison, Memory, RunRecord, SpeedPrediction
from llmfit.report._column import UNKNOWN, Column, Detail
from llmfit.report._quality import quality_columns
from llmfit.report._text import plain
from llmfit.units import (
    GB,
    MB,
    format_number,
    format_percent,
    format_plus_minus,
    format_rate,
    format_signed,
)

PICK = "★"
_SHORT_REASON_CHARS = 40
_TURNED_DOWN = {
    "device": "runs elsewhere",
    "memory": "does not fit",
    "rate": "too slow",
    "accuracy": "loses quality",
    "perplexity": "loses quality",
}
"""The verdict's cell for a row that breaks a bound."""


def columns(comparison: Comparison, *, detail: Detail = Detail.ALL) -> tuple[Column, ...]:
    """The columns to show, those without any value left out."""
    rows = comparison.rows
    labels = tuple(plain(row.label) for row in rows)
    verdicts = tuple(_verdict(comparison, row, detail) for row in rows)
    format_ = Column(head="format", unit="", cells=labels, align="left")
    verdict = Column(head="verdict", unit="", cells=verdicts, align="left")
    chosen = [_memory(comparison, detail), _speed(rows, detail)]
    if detail >= Detail.LEAN:
        chosen.append(_limit(rows, detail))
    chosen += quality_columns(rows, detail)
    return (format_, *(column for column in chosen if column.known), verdict)


def _memory(comparison: Comparison, detail: Detail) -> Column:
    rows = comparison.rows
    sizes = [
        size
        for row in rows
        if row.memory is not None
        for size in (row.memory.peak_bytes, row.memory.predicted_bytes)
        if size is not None
    ]
    unit, name = (GB, "GB") if not sizes or max(sizes) >= GB else (MB, "MB")
    on_gpu = any(row.memory is not None and row.memory.device == "cuda" for row in rows)
    predicted = detail >= Detail.LEAN and any(
        row.memory and row.memory.predicted_bytes for row in rows
    )
    only_predicted = any(
        row.memory and row.memory.predicted_bytes and row.memory.peak_bytes is None for row in rows
    )
    return Column(
        head="memory" if on_gpu else "RAM",
        unit=f"peak {name}" + (" (pred.)" if predicted or only_predicted else ""),
        cells=tuple(
            _memory_cell(row.memory, unit, predicted, on_gpu) + _fit_mark(comparison, row)
            for row in rows
        ),
        known=bool(sizes),
        keys=tuple(
            None if row.memory is None else row.memory.peak_bytes or row.memory.predicted_bytes
            for row in rows
        ),
    )


def _memory_cell(memory: Memory | None, unit: int, predicted: bool, on_gpu: bool) -> str:
    if memory is None:
        return UNKNOWN
    parts = []
    if memory.peak_bytes is not None:
        parts.append(format_number(memory.peak_bytes / unit))
    if memory.predicted_bytes is not None and (predicted or not parts):
        error = memory.error_pct if parts else None
        told = "" if error is None else f", {format_signed(error, decimals=0)} %"
        parts.append(f"({format_number(_counterpart(memory) / unit)}{told})")
    text = " ".join(parts) or UNKNOWN
    return f"0 + {parts[0]} RAM" if on_gpu and memory.device == "cpu" and parts else text


def _counterpart(memory: Memory) -> int:
    """The prediction of what was measured, which leaves the runtime out; all of it otherwise."""
    apart = memory.predicted.runtime_bytes if memory.predicted and memory.peak_bytes else 0
    return (memory.predicted_bytes or 0) - apart


def _fit_mark(comparison: Comparison, row: RunRecord) -> str:
    if row.memory is None or needed_bytes(row) is None:
        return ""
    on_gpu = row.memory.device == "cuda"
    budget = comparison.budget_bytes if on_gpu else comparison.ram_budget_bytes
    if budget is None:
        return ""
    return " ✓" if row.status != "does_not_fit" and (needed_bytes(row) or 0) <= budget else " ✗"


def _speed(rows: tuple[RunRecord, ...], detail: Detail) -> Column:
    def cell(row: RunRecord) -> str:
        if row.decode is None:
            return _predicted_speed(row.predicted_tokens_per_s, detail)
        rate = row.decode.tokens_per_s
        if len(rate.samples) < 2:
            return format_rate(rate.median)
        return format_plus_minus(rate.median, max(rate.high - rate.median, rate.median - rate.low))

    measured = any(row.decode is not None for row in rows)
    return Column(
        head="tokens/s",
        unit="median ±" if measured else "(pred.)",
        cells=tuple(map(cell, rows)),
        keys=tuple(_rate(row) for row in rows),
    )


def _rate(row: RunRecord) -> float | None:
    if row.decode is not None:
        return row.decode.tokens_per_s.median
    return None if row.predicted_tokens_per_s is None else row.predicted_tokens_per_s.estimate


def _predicted_speed(rate: SpeedPrediction | None, detail: Detail) -> str:
    if rate is None:
        return UNKNOWN
    if detail < Detail.LEAN:
        return f"({format_rate(rate.estimate)})"
    return f"({format_rate(rate.estimate)}: {format_rate(rate.low)}–{format_rate(rate.high)})"


def _limit(rows: tuple[RunRecord, ...], detail: Detail) -> Column:
    rates = detail >= Detail.FULL
    return Column(
        head="of limit",
        unit="tokens/s" if rates else "",
        cells=tuple(_limit_cell(row, rates=rates) for row in rows),
        known=any(row.roofline.fraction is not None for row in rows),
        keys=tuple(row.roofline.fraction for row in rows),
    )


def _limit_cell(row: RunRecord, *, rates: bool) -> str:
    """``92 %``, or ``92 % of 14.2``: the share reached, and the rate that bandwidth allows."""
    limit, share = row.roofline.limit_tokens_per_s, row.roofline.fraction
    if limit is None or share is None:
        return UNKNOWN
    reached = format_percent(share, decimals=0)
    return f"{reached} of {format_rate(limit)}" if rates else reached


def _verdict(comparison: Comparison, row: RunRecord, detail: Detail) -> str:
    if row.predicted_only and row.status == "skipped" and row.memory and row.memory.predicted:
        return _predicted_verdict(comparison, row)
    if row.status != "ok":
        word = STATUS_WORDS[row.status]
        told = detail >= Detail.ALL and row.reason
        return f"{word}: {_short(row.reason)}" if told and row.reason else word
    if row.backend == comparison.verdict.backend:
        return f"{PICK} pick"
    turned_down = _turned_down(comparison, row)
    if turned_down is not None:
        return turned_down
    if row.device == "cpu" and any(other.device == "cuda" for other in comparison.rows):
        return "no GPU needed"
    return "fits" if comparison.budget_bytes is not None and row.device == "cuda" else "ok"


def _turned_down(comparison: Comparison, row: RunRecord) -> str | None:
    """The word for the bound of the verdict that the row breaks; None where it is within all."""
    bounds = (r.bound for r in comparison.verdict.rejected if r.backend == row.backend)
    return _TURNED_DOWN.get(next(bounds, None) or "")


def _predicted_verdict(comparison: Comparison, row: RunRecord) -> str:
    """Of a row that was not to be run."""
    if row.backend == comparison.verdict.backend:
        return f"{PICK} pick (pred.)"
    if row.device == "cpu" and any(other.device == "cuda" for other in comparison.rows):
        return "no GPU needed"
    return "fits (pred.)"


def _short(reason: str) -> str:
    """The reason's first words; the whole of it stands below the table."""
    text = plain(reason).rstrip(".")
    if len(text) <= _SHORT_REASON_CHARS:
        return text
    return text[:_SHORT_REASON_CHARS].rpartition(" ")[0].rstrip(" ,:;(") + " …"
