"""Turns a comparison into text for people and machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from llmfit.records import Comparison

Format = Literal["table", "md", "json", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(comparison: Comparison, fmt: Format, *, width: int = 120, color: bool = False) -> str:
    """The comparison as text that ends in a newline; ``width`` and ``color`` are of the table.

    ``json`` is the record itself, ``schema_version`` first.
    """
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(comparison) + "\n"
    if fmt == "csv":
        from llmfit.report.csv_ import render_csv

        return render_csv(comparison)
    if fmt == "md":
        from llmfit.report.markdown import render_markdown

        return render_markdown(comparison)
    from llmfit.report.table import render_table

    return render_table(comparison, width=width, color=color)
