"""Tables and lines for a terminal of a given width, by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from llmfit.report._column import Column, Detail

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


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


def widest(
    columns: Callable[[Detail], Sequence[Column]],
    *,
    width: int,
    styles: Sequence[str] = (),
    marks: Sequence[str] = (),
) -> tuple[Table, Detail, int | None]:
    """The most detailed table that fits; and, where columns had to go, the width for all.

    ``columns`` gives the columns of each detail; ``styles`` and ``marks``, one a row, are rich's
    style and a footnote's sign.
    """
    from rich.measure import Measurement

    console = _console(width, color=False)
    unlimited = console.options.update(width=10_000)
    full_width = None
    for detail in sorted(Detail, reverse=True):
        table = _table(columns(detail), styles, marks)
        needed = Measurement.get(console, unlimited, table).maximum
        if detail == Detail.FULL and needed > console.width:
            full_width = needed
        if needed <= console.width:
            return table, detail, full_width
    return table, Detail.LEAST, full_width


def hanging(mark: str, text: str) -> Table:
    """A footnote whose further lines stand below its text, not below its number."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark), Text(text))
    return grid


def _table(columns: Sequence[Column], styles: Sequence[str], marks: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    with_units = any(column.unit for column in columns)
    for column in columns:
        head = f"{column.head}\n{column.unit}" if with_units else column.head
        table.add_column(Text(head), justify=column.align, overflow="fold")
    for index in range(len(columns[0].cells)):
        cells = [Text(column.cells[index]) for column in columns]
        if marks and marks[index]:
            cells[0].append(f" {marks[index]}")
        table.add_row(*cells, style=styles[index] if styles else "")
    return table
