"""A study as tables for a terminal or in Markdown, with its checks and findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmfit.report._column import UNKNOWN, Column, Detail
from llmfit.report._layout import hanging, styled, widest
from llmfit.report._text import in_markdown, markdown_code, plain
from llmfit.report.markdown import table_line
from llmfit.study_records import (
    Cell,
    StudyCheck,
    StudyColumn,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import (
    format_bytes,
    format_number,
    format_percent,
    format_rate,
    format_ratio,
    format_seconds,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

StudyFormat = Literal["table", "md", "json"]

_SIGNS = {True: "✓", False: "✗", None: "–"}


def render_study(
    result: StudyResult, fmt: StudyFormat, *, width: int = 120, color: bool = False
) -> str:
    """The study as text that ends in a newline; ``width`` and ``color`` are of the tables."""
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(result) + "\n"
    return _markdown(result) if fmt == "md" else _terminal(result, width, color)


def checks_held(result: StudyResult) -> str:
    """How many of the checks that could be tried held: ``7 of 7``."""
    tried = [check for check in result.checks if check.holds is not None]
    return f"{sum(bool(check.holds) for check in tried)} of {len(tried)}"


def heading(result: StudyResult) -> str:
    """Title, hardware, sizes and time in one line."""
    parts = [result.title, _hardware(result)]
    if result.preset != "default":
        parts.append(f"{result.preset} sizes")
    if result.seconds is not None:
        parts.append(format_seconds(result.seconds))
    return " · ".join(plain(part) for part in parts)


def _hardware(result: StudyResult) -> str:
    there = result.environment
    if there is None:
        return result.device
    if result.device == "cuda" and there.gpu is not None:
        return there.gpu
    return f"{there.cpu}, {result.settings.get('threads', there.cpu_cores)} threads"


# ---------------------------------------------------------------- terminal


def _terminal(result: StudyResult, width: int, color: bool) -> str:
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(heading(result), style="bold"),
        Text(plain(result.question)),
    ]
    hidden = 0
    for table in result.tables:
        shown, full = _table(table, width)
        hidden = max(hidden, full or 0)
        parts += [Text(), Text(plain(table.title), style="bold"), shown]
        parts += [hanging(f"{mark} ", text) for mark, text in _reasons(table)]
        parts += [Text(plain(note)) for note in table.notes]
    if result.checks:
        parts += [Text(), Text("must hold", style="bold")]
        parts += [hanging(f"{_SIGNS[check.holds]} ", _check(check)) for check in result.checks]
    if result.findings:
        parts += [Text(), Text("found", style="bold")]
        parts += [hanging("- ", plain(finding)) for finding in result.findings]
    around = _around(result)
    if hidden:
        around.append(f"All columns: a terminal {hidden} wide")
    if around:
        parts.append(Text())
        parts += [Text(line) for line in around]
    return styled(parts, width=width, color=color)


def _table(table: StudyTable, width: int) -> tuple[RenderableType, int | None]:
    marks = dict(_reasons_by_row(table))
    shown, _, full = widest(
        lambda detail: _columns(table, detail),
        width=width,
        styles=["dim" if row.status != "ok" else "" for row in table.rows],
        marks=[marks.get(index, "") for index in range(len(table.rows))],
    )
    return shown, full


def _columns(table: StudyTable, detail: Detail) -> tuple[Column, ...]:
    """The first column names the rows; the least detail drops intervals and what may go."""
    names = Column(
        head=plain(table.head),
        unit="",
        cells=tuple(plain(row.name) for row in table.rows),
        align="left",
    )
    wide = detail >= Detail.LEAN
    return (
        names,
        *(
            Column(
                head=plain(column.head),
                unit=plain(column.under),
                cells=tuple(_cell(row, column, interval=wide) for row in table.rows),
                align="left" if column.unit == "text" else "right",
            )
            for column in table.columns
            if column.needed or detail >= Detail.FULL
        ),
    )


def _reasons_by_row(table: StudyTable) -> list[tuple[int, str]]:
    """Row and footnote sign of each row with a reason; equal reasons share a sign."""
    signs: dict[str, str] = {}
    found = []
    for index, row in enumerate(table.rows):
        if row.reason is not None:
            found.append((index, signs.setdefault(plain(row.reason), _sign(len(signs) + 1))))
    return found


def _reasons(table: StudyTable) -> list[tuple[str, str]]:
    """Sign and text of each different reason."""
    reasons = {
        sign: plain(table.rows[index].reason or "") for index, sign in _reasons_by_row(table)
    }
    return list(reasons.items())


def _sign(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _check(check: StudyCheck) -> str:
    return plain(f"{check.name}: {check.detail}")


def _around(result: StudyResult) -> list[str]:
    lines = [plain(note) for note in result.notes]
    if result.reference is not None:
        lines.append(f"Published figures: {plain(result.reference)}")
    return lines


# ---------------------------------------------------------------- cells


def _cell(row: StudyRow, column: StudyColumn, *, interval: bool) -> str:
    cell = row.cells.get(column.key)
    if cell is None or cell.value is None:
        return UNKNOWN
    text = format_value(cell, column)
    if not interval or cell.low is None or cell.high is None or isinstance(cell.value, str):
        return text
    half = (cell.high - cell.low) / 2 / abs(cell.value) if cell.value else 0.0
    return f"{text} ±{'>100 %' if half > 1 else format_percent(half, decimals=0)}"


def format_value(cell: Cell, column: StudyColumn) -> str:
    """A cell's value in its column's unit, without its interval."""
    value = cell.value
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return plain(value)
    if column.unit == "count":
        return f"{value:,.0f}"
    if column.unit == "share":
        return format_percent(value)
    if column.unit in ("number", "text"):
        return _number(value)
    formats = {"s": format_seconds, "bytes": _bytes, "ratio": format_ratio, "per_s": format_rate}
    return formats[column.unit](value)


def _number(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e+")
    return format_number(value)


def _bytes(value: float) -> str:
    return format_bytes(value) if value >= 0 else f"−{format_bytes(-value)}"


# ---------------------------------------------------------------- Markdown


def _markdown(result: StudyResult) -> str:
    lines = [f"# {in_markdown(heading(result))}", "", in_markdown(plain(result.question)), ""]
    for table in result.tables:
        lines += [f"## {in_markdown(plain(table.title))}", "", *_markdown_table(table), ""]
        lines += [f"{mark} {in_markdown(text)}  " for mark, text in _reasons(table)]
        lines += [f"{in_markdown(plain(note))}  " for note in table.notes]
        lines.append("")
    if result.checks:
        lines += ["## Must hold", ""]
        lines += [
            f"- {_SIGNS[check.holds]} {in_markdown(_check(check))}" for check in result.checks
        ]
        lines.append("")
    if result.findings:
        lines += [
            "## Found",
            "",
            *(f"- {in_markdown(plain(text))}" for text in result.findings),
            "",
        ]
    lines += [f"{in_markdown(line)}  " for line in _around(result)]
    if result.command is not None:
        lines += ["", *markdown_code([plain(result.command)])]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(table: StudyTable) -> list[str]:
    shown = _columns(table, Detail.ALL)
    marks = dict(_reasons_by_row(table))
    heads = (in_markdown(f"{c.head}, {c.unit}" if c.unit else c.head) for c in shown)
    rules = ("---" if column.align == "left" else "---:" for column in shown)
    lines = [table_line(heads), table_line(rules)]
    for index in range(len(table.rows)):
        cells = [in_markdown(column.cells[index]) for column in shown]
        if index in marks:
            cells[0] += f" {marks[index]}"
        lines.append(table_line(cells))
    return lines
