"""A published table beside ours: each figure, the table's below it, and the ratio."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from llmfit.planning.comparing.reference import (
    METRICS,
    Beside,
    Metric,
    ReferenceComparison,
    ReferenceLine,
)
from llmfit.report._column import UNKNOWN, Column
from llmfit.report._layout import hanging, styled, widest
from llmfit.report._text import in_markdown, plain
from llmfit.units import GB, format_number, format_percent, format_rate

if TYPE_CHECKING:
    from rich.console import RenderableType

ReferenceFormat = Literal["table", "md", "json"]

_HEADS: dict[Metric, tuple[str, str]] = {
    "memory_bytes": ("memory", "GB"),
    "tokens_per_s": ("decode", "tokens/s"),
    "hellaswag": ("HellaSwag", "acc_norm"),
    "perplexity": ("perplexity", "token"),
}
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_reference(
    found: ReferenceComparison, fmt: ReferenceFormat, *, width: int = 80, color: bool = False
) -> str:
    """The comparison with the table as text that ends in a newline; ``width`` is the table's.

    On a terminal a format has two lines: ours, and below it the table's with our ratio to it.
    """
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(found) + "\n"
    return _markdown(found) if fmt == "md" else _table(found, width, color)


# ---------------------------------------------------------------- terminal


def _table(found: ReferenceComparison, width: int, color: bool) -> str:
    from rich.text import Text

    reasons = _reasons(found)
    table, _, _ = widest(
        lambda _: _columns(found.rows),
        width=width,
        styles=["", "dim"] * len(found.rows),
        marks=[mark for line in found.rows for mark in (_marks(reasons, line), "")],
    )
    parts: list[RenderableType] = [Text(_heading(found), style="bold"), Text(), table, Text()]
    parts += [hanging(f"{_sign(number)} ", text) for number, text in enumerate(reasons, start=1)]
    parts += [Text(line, style="dim") for line in _legend(found)]
    return styled(parts, width=width, color=color)


def _columns(lines: Iterable[ReferenceLine]) -> tuple[Column, ...]:
    """A line of ours and one of the table's for each format."""
    lines = tuple(lines)
    labels = [text for line in lines for text in (plain(line.label), "  the table's, ratio")]
    columns = [Column(head="format", unit="ours", cells=tuple(labels), align="left")]
    for metric in METRICS:
        head, unit = _HEADS[metric]
        figures = [line.figure(metric) for line in lines]
        cells = [text for figure in figures for text in _cells(metric, figure)]
        columns.append(Column(head=head, unit=unit, cells=tuple(cells)))
    return tuple(columns)


def _cells(metric: Metric, figure: Beside) -> tuple[str, str]:
    return _ours(metric, figure), f"{_text(metric, figure.reference)} {_ratio(figure)}"


# ---------------------------------------------------------------- markdown


def _markdown(found: ReferenceComparison) -> str:
    reasons = _reasons(found)
    heads = ["format"]
    for metric in METRICS:
        head, unit = _HEADS[metric]
        heads += [f"{head}, {unit}: ours", "table", "ratio"]
    lines = [f"**{in_markdown(_heading(found))}**", "", _line(heads)]
    lines.append(_line(["---", *["---:"] * (len(heads) - 1)]))
    for row in found.rows:
        marks = ",".join(str(n) for n, owners in enumerate(reasons.values(), 1) if row in owners)
        cells = [in_markdown(plain(row.label)) + (f" <sup>{marks}</sup>" if marks else "")]
        for metric in METRICS:
            figure = row.figure(metric)
            cells += [_ours(metric, figure), _text(metric, figure.reference), _ratio(figure)]
        lines.append(_line(cells))
    lines.append("")
    lines += [
        f"<sup>{number}</sup> {in_markdown(text)}  " for number, text in enumerate(reasons, 1)
    ]
    if reasons:
        lines.append("")
    lines += [f"- {in_markdown(line)}" for line in _legend(found)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------- both


def _heading(found: ReferenceComparison) -> str:
    work = found.ours_workload
    return " · ".join(
        (
            f"{plain(found.model)} on {plain(found.hardware)}, as published",
            f"ours: {plain(found.ours_model)} on {plain(found.ours_gpu or found.ours_cpu)}",
            f"batch {work.batch}",
            f"prompt {work.prompt_tokens:,} + {work.new_tokens:,} new tokens",
        )
    )


def _reasons(found: ReferenceComparison) -> dict[str, list[ReferenceLine]]:
    """Why figures of ours are missing, each different reason with its lines, in their order."""
    owners: dict[str, list[ReferenceLine]] = {}
    for line in found.rows:
        missing: dict[str, list[Metric]] = {}
        for metric in METRICS:
            reason = line.figure(metric).missing
            if reason is not None:
                missing.setdefault(plain(reason), []).append(metric)
        for reason, metrics in missing.items():
            heads = ", ".join(_HEADS[metric][0] for metric in metrics)
            text = reason if len(metrics) == len(METRICS) else f"{heads}: {reason}"
            owners.setdefault(text, []).append(line)
    return owners


def _marks(reasons: dict[str, list[ReferenceLine]], line: ReferenceLine) -> str:
    return "·".join(
        _sign(number) for number, owners in enumerate(reasons.values(), start=1) if line in owners
    )


def _sign(number: int) -> str:
    return str(number).translate(_SUPERSCRIPT)


def _legend(found: ReferenceComparison) -> list[str]:
    lines = [plain(note) for note in found.notes]
    lines.append("ratio: ours ÷ the table's")
    if any(line.figure(metric).predicted for line in found.rows for metric in METRICS):
        lines[-1] += "; ~ predicted, not run"
    lines.append(f"The table: {plain(found.source)}")
    return lines


def _ours(metric: Metric, figure: Beside) -> str:
    if figure.ours is None:
        return UNKNOWN
    return ("~" if figure.predicted else "") + _text(metric, figure.ours)


def _text(metric: Metric, value: float) -> str:
    if metric == "memory_bytes":
        return format_number(value / GB)
    if metric == "tokens_per_s":
        return format_rate(value)
    return format_percent(value) if metric == "hellaswag" else format_number(value)


def _ratio(figure: Beside) -> str:
    return UNKNOWN if figure.ratio is None else f"{format_number(figure.ratio)}×"
