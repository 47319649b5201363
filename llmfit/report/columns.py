"""What the tables say: cells, footnotes, head and foot lines, as plain text.

The terminal table and the markdown table only lay these out, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmfit.planning.quality import compare_quality, reference_row
from llmfit.planning.recommend import REFERENCE, STATUS_WORDS, fits, needed_bytes
from llmfit.records import Comparison, Memory, RunRecord
from llmfit.report._text import plain
from llmfit.units import (
    GB,
    MB,
    format_bytes,
    format_count,
    format_gib,
    format_number,
    format_percent,
    format_plus_minus,
    format_rate,
    format_signed,
)

Detail = Literal["reasons", "full", "compact"]
"""All columns with short reasons, all columns, or those that decide."""

UNKNOWN = "–"
PICK = "★"
_SHORT_REASON_CHARS = 40
_UNSTEADY = 0.2
"""Runs whose interval is wider than this share of the median are called unsteady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its head, the second line of the head, and a cell per row."""

    head: str
    unit: str
    cells: tuple[str, ...]
    align: Literal["left", "right"] = "right"
    known: bool = True
    """False when no row has a value: such a column is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footnote:
    """A note or reason below the table, and the rows (by index) that it belongs to."""

    number: int
    text: str
    rows: tuple[int, ...]


def columns(comparison: Comparison, *, detail: Detail = "reasons") -> tuple[Column, ...]:
    """The columns to show, those without any value left out."""
    rows = comparison.rows
    compact = detail == "compact"
    labels = tuple(plain(row.label) for row in rows)
    verdicts = tuple(_verdict(comparison, row, detail == "reasons") for row in rows)
    format_ = Column(head="format", unit="", cells=labels, align="left")
    verdict = Column(head="verdict", unit="", cells=verdicts, align="left")
    chosen = [_memory(comparison, compact), _speed(rows)]
    if not compact:
        chosen.append(_limit(rows))
    chosen += [_hellaswag(rows, compact), _perplexity(rows, compact)]
    if not compact:
        chosen.append(_divergence(rows))
    return (format_, *(column for column in chosen if column.known), verdict)


def footnotes(comparison: Comparison) -> tuple[Footnote, ...]:
    """Each different reason and note once, numbered in the order of the rows."""
    owners: dict[str, list[int]] = {}
    for index, row in enumerate(comparison.rows):
        texts = list(row.notes)
        if row.status != "ok":
            texts.insert(0, f"{STATUS_WORDS[row.status]}: {row.reason or 'no reason recorded'}")
        for text in dict.fromkeys(plain(text) for text in texts):
            owners.setdefault(text, []).append(index)
    return tuple(
        Footnote(number=number, text=text, rows=tuple(indexes))
        for number, (text, indexes) in enumerate(owners.items(), start=1)
    )


def heading(comparison: Comparison) -> str:
    """Model, machine, budget and workload in one line."""
    model, work, machine = comparison.model, comparison.workload, comparison.environment
    parts = [plain(model.name)]
    if model.parameters is not None:
        parts.append(f"{format_count(model.parameters)} parameters")
    if machine.gpu is not None:
        memory = machine.gpu_memory_bytes
        size = "" if memory is None else f" ({format_gib(memory)})"
        parts.append(plain(machine.gpu) + size)
    else:
        ram = "" if machine.ram_bytes is None else f", {format_gib(machine.ram_bytes)} RAM"
        cores = f"{machine.cpu_cores} core{'' if machine.cpu_cores == 1 else 's'}"
        parts.append(f"{plain(machine.cpu)} ({cores}{ram})")
    if comparison.budget_bytes is not None:
        parts.append(f"budget {format_bytes(comparison.budget_bytes)}")
    parts.append(f"batch {work.batch}")
    parts.append(f"prompt {work.prompt_tokens} + {work.new_tokens} new tokens")
    return " · ".join(parts)


def verdict_lines(comparison: Comparison) -> tuple[str, ...]:
    """The pick first, then its other reasons."""
    reasons = tuple(plain(reason) for reason in comparison.verdict.reasons)
    if comparison.verdict.backend is None or not reasons:
        return reasons
    return (f"{PICK} Pick {reasons[0]}", *reasons[1:])


def legend(comparison: Comparison) -> tuple[str, ...]:
    """What the signs in the cells mean, for the signs that can occur."""
    rows = comparison.rows
    parts = []
    if any(row.decode is not None for row in rows):
        repeats = max(len(row.decode.tokens_per_s.samples) for row in rows if row.decode)
        spread = "± to the farthest of them" if repeats < 6 else "± 95 % interval of the median"
        parts.append(f"tokens/s: median of {repeats} runs, {spread}")
    if any(row.hellaswag is not None for row in rows):
        standard = reference_row(rows, REFERENCE)
        name = standard.backend if standard is not None else REFERENCE
        equal = f", = inside the paired interval of {name}" if len(rows) > 1 else ""
        counts = sorted({row.hellaswag.n for row in rows if row.hellaswag is not None})
        items = " or ".join(f"{count:,}" for count in counts)
        parts.append(f"HellaSwag: {items} questions, ± standard error{equal}")
    texts = {
        f"perplexity: {row.perplexity.n_tokens:,} tokens, {plain(row.perplexity.protocol)}": None
        for row in rows
        if row.perplexity is not None
    }
    return (*parts, *texts)


def unsteady(comparison: Comparison) -> str | None:
    """A warning that names the rows whose runs differ so much that their speed is in doubt."""
    names = []
    for row in comparison.rows:
        rate = row.decode.tokens_per_s if row.decode is not None else None
        if rate is not None and rate.high - rate.low > _UNSTEADY * rate.median:
            names.append(plain(row.backend))
    if not names:
        return None
    much = format_percent(_UNSTEADY, decimals=0)
    return (
        f"Unsteady: the runs of {', '.join(names)} differ by more than {much}. "
        "Close other programs, or raise --repeats or --new-tokens."
    )


# ---------------------------------------------------------------- cells


def _memory(comparison: Comparison, compact: bool) -> Column:
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
    predicted = not compact and any(row.memory and row.memory.predicted_bytes for row in rows)
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
    )


def _memory_cell(memory: Memory | None, unit: int, predicted: bool, on_gpu: bool) -> str:
    if memory is None:
        return UNKNOWN
    parts = []
    if memory.peak_bytes is not None:
        parts.append(format_number(memory.peak_bytes / unit))
    if memory.predicted_bytes is not None and (predicted or not parts):
        parts.append(f"({format_number(memory.predicted_bytes / unit)})")
    text = " ".join(parts) or UNKNOWN
    return f"0 + {parts[0]} RAM" if on_gpu and memory.device == "cpu" and parts else text


def _fit_mark(comparison: Comparison, row: RunRecord) -> str:
    if comparison.budget_bytes is None or row.memory is None or row.memory.device != "cuda":
        return ""
    if needed_bytes(row) is None:
        return ""
    inside = row.status != "does_not_fit" and fits(row, comparison.budget_bytes)
    return " ✓" if inside else " ✗"


def _speed(rows: tuple[RunRecord, ...]) -> Column:
    def cell(row: RunRecord) -> str:
        if row.decode is None:
            return UNKNOWN
        rate = row.decode.tokens_per_s
        if len(rate.samples) < 2:
            return format_rate(rate.median)
        return format_plus_minus(rate.median, max(rate.high - rate.median, rate.median - rate.low))

    return Column(head="tokens/s", unit="median ±", cells=tuple(map(cell, rows)))


def _limit(rows: tuple[RunRecord, ...]) -> Column:
    shares = [row.roofline.fraction for row in rows]
    return Column(
        head="of limit",
        unit="",
        cells=tuple(UNKNOWN if s is None else format_percent(s, decimals=0) for s in shares),
        known=any(share is not None for share in shares),
    )


def _hellaswag(rows: tuple[RunRecord, ...], compact: bool) -> Column:
    standard = reference_row(rows, REFERENCE)

    def figure(row: RunRecord) -> str:
        score = row.hellaswag
        if score is None:
            return UNKNOWN
        spread = "" if compact else f" ± {100 * score.stderr:.1f}"
        return f"{100 * score.acc_norm:.1f}{spread} %"

    def tie(row: RunRecord) -> str:
        change = compare_quality(row, standard).acc_norm
        return " =" if row is not standard and change is not None and change.tie else ""

    figures = [figure(row) for row in rows]
    width = max(map(len, figures), default=0)
    return Column(
        head="HellaSwag",
        unit="acc_norm" if compact else "acc_norm ±",
        cells=tuple(f.rjust(width) + tie(row) for f, row in zip(figures, rows, strict=True)),
        align="left",  # padded here, so that the figures stand below each other beside the signs
        known=any(row.hellaswag is not None for row in rows),
    )


def _perplexity(rows: tuple[RunRecord, ...], compact: bool) -> Column:
    standard = reference_row(rows, REFERENCE)

    def cell(row: RunRecord) -> str:
        if row.perplexity is None:
            return UNKNOWN
        # A 4-bit format moves the third decimal of a small perplexity.
        decimals = 3 if row.perplexity.token < 10 else 1
        text = f"{row.perplexity.token:,.{decimals}f}"
        share = compare_quality(row, standard).perplexity_change
        if compact or share is None or row is standard or standard is None:
            return text
        change = row.perplexity.token - (standard.perplexity or row.perplexity).token
        return f"{text} ({format_signed(change, decimals=decimals)})"

    name = standard.backend if standard is not None else REFERENCE
    return Column(
        head="perplexity",
        unit="token" if compact else f"token (− {name})",
        cells=tuple(map(cell, rows)),
        known=any(row.perplexity is not None for row in rows),
    )


def _divergence(rows: tuple[RunRecord, ...]) -> Column:
    values = [row.kl_divergence for row in rows]
    return Column(
        head="KL",
        unit="",
        cells=tuple(UNKNOWN if value is None else format_number(value) for value in values),
        known=any(value is not None for value in values),
    )


def _verdict(comparison: Comparison, row: RunRecord, reasons: bool) -> str:
    if row.status != "ok":
        word = STATUS_WORDS[row.status]
        return f"{word}: {_short(row.reason)}" if reasons and row.reason else word
    if row.backend == comparison.verdict.backend:
        return f"{PICK} pick"
    if not fits(row, comparison.budget_bytes):
        return "does not fit"
    if not compare_quality(row, reference_row(comparison.rows, REFERENCE)).kept:
        return "loses quality"
    if row.device == "cpu" and any(other.device == "cuda" for other in comparison.rows):
        return "no GPU needed"
    return "fits" if comparison.budget_bytes is not None and row.device == "cuda" else "ok"


def _short(reason: str) -> str:
    """The reason's first words; the whole of it stands below the table."""
    text = plain(reason).rstrip(".")
    if len(text) <= _SHORT_REASON_CHARS:
        return text
    return text[:_SHORT_REASON_CHARS].rpartition(" ")[0].rstrip(" ,:;(") + " …"
