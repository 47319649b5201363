"""The comparison as a table for a terminal of a given width."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING

from llmfit.records import Comparison, RunRecord
from llmfit.report._column import Column, Detail
from llmfit.report.columns import columns
from llmfit.report.lines import (
    Footnote,
    footnotes,
    heading,
    legend,
    reproduction,
    verdict_lines,
    warnings,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_table(comparison: Comparison, width: int, color: bool) -> str:
    """The table with its head line, footnotes and verdict; no line is wider than ``width``.

    Where the whole table is too wide, what decides least is left out first, and a line says how
    to see the rest. ``color`` adds ANSI styles. A ``width`` below 20 is taken as 20.
    """
    from rich.padding import Padding
    from rich.text import Text

    console = _console(width, color)
    notes = footnotes(comparison)
    table, detail, full_width = _widest(console, comparison, notes)
    parts: list[RenderableType] = [Text(heading(comparison), style="bold"), Text(), table, Text()]
    parts += [_hanging(f"{_marks([note])} ", note.text) for note in notes]
    if notes:
        parts.append(Text())
    first, *others = verdict_lines(comparison) or ("",)
    parts.append(Text(first, style="bold"))
    parts += [Padding(Text(line), (0, 0, 0, 2)) for line in others]
    if seen := warnings(comparison):
        parts += [Text(), *(Text(line, style="yellow") for line in seen)]
    parts.append(Text())
    parts += [Text(line, style="dim") for line in _foot(comparison, detail, full_width)]
    return styled(parts, width=width, color=color)


def styled(parts: Iterable[RenderableType], *, width: int, color: bool) -> str:
    """Rich's renderables as text, without the spaces that rich leaves at line ends."""
    console = _console(width, color)
    for part in parts:
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _console(width: int, color: bool) -> Console:
    from rich.console import Console

    return Console(
        file=StringIO(),
        width=max(width, 20),
        height=100,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        _environ={},  # the caller decides on width and colour, not COLUMNS, TERM or NO_COLOR
    )


def _widest(
    console: Console, comparison: Comparison, notes: tuple[Footnote, ...]
) -> tuple[Table, Detail, int | None]:
    """The most detailed table that fits; and, where columns had to go, the width for all."""
    from rich.measure import Measurement

    unlimited = console.options.update(width=10_000)
    full_width = None
    for detail in sorted(Detail, reverse=True):
        table = _table(comparison, columns(comparison, detail=detail), notes)
        width = Measurement.get(console, unlimited, table).maximum
        if detail == Detail.FULL and width > console.width:
            full_width = width
        if width <= console.width:
            return table, detail, full_width
    return table, Detail.LEAST, full_width


def _table(comparison: Comparison, shown: tuple[Column, ...], notes: tuple[Footnote, ...]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        head = Text(f"{column.head}\n{column.unit}")
        table.add_column(head, justify=column.align, overflow="fold")
    for index, row in enumerate(comparison.rows):
        cells = [Text(column.cells[index]) for column in shown]
        marks = _marks([note for note in notes if index in note.rows])
        if marks:
            cells[0].append(f" {marks}")
        table.add_row(*cells, style=_style(comparison, row))
    return table


def _style(comparison: Comparison, row: RunRecord) -> str:
    if row.status != "ok":
        return "dim"
    return "bold green" if row.backend == comparison.verdict.backend else ""


def _marks(notes: list[Footnote]) -> str:
    return "·".join(str(note.number).translate(_SUPERSCRIPT) for note in notes)


def _hanging(mark: str, text: str) -> Table:
    """A footnote whose further lines stand below its text, not below its number."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark), Text(text))
    return grid


def _foot(comparison: Comparison, detail: Detail, full_width: int | None) -> list[str]:
    lines = list(legend(comparison, detail))
    if full_width is not None:
        lines.append(f"All columns: a terminal {full_width} wide, or --format md")
    return [*lines, "Every figure: --format json", *reproduction(comparison)]
