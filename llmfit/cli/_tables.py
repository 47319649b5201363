"""A plain listing for the verbs that only list."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.cli._console import results, terminal_width, wants_color
from llmfit.report._text import plain


def simple_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under a line, cells wrapped to the terminal's width."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmfit.report._layout import styled

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return styled([table], width=terminal_width(), color=wants_color(results()))
