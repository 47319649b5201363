"""The comparison as GitHub-flavoured markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmfit.records import Comparison
from llmfit.report._column import Column
from llmfit.report._text import in_markdown, markdown_code
from llmfit.report.columns import columns
from llmfit.report.lines import (
    footnotes,
    heading,
    legend,
    reproduction,
    verdict_lines,
    warnings,
)


def render_markdown(comparison: Comparison) -> str:
    """Head line, table, footnotes, verdict, warnings, legend; outside text stays text."""
    shown = columns(comparison)
    notes = footnotes(comparison)
    lines = [f"**{in_markdown(heading(comparison))}**", ""]
    lines.append(
        table_line(in_markdown(f"{c.head}, {c.unit}" if c.unit else c.head) for c in shown)
    )
    lines.append(table_line(["---", *["---:"] * (len(shown) - 2), "---"]))
    for index in range(len(comparison.rows)):
        cells = [in_markdown(" ".join(column.cells[index].split())) for column in shown]
        marks = ",".join(str(note.number) for note in notes if index in note.rows)
        if marks:
            cells[0] += f" <sup>{marks}</sup>"
        lines.append(table_line(cells))
    lines.append("")
    lines += [f"<sup>{note.number}</sup> {in_markdown(note.text)}  " for note in notes]
    if notes:
        lines.append("")
    lines += [f"- {in_markdown(line)}" for line in verdict_lines(comparison)]
    lines.append("")
    if seen := warnings(comparison):
        lines += [*(f"- {in_markdown(line)}" for line in seen), ""]
    if explained := legend(comparison):
        lines += [in_markdown(" · ".join(explained)), ""]
    lines += [*markdown_code(reproduction(comparison)), ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(shown: Sequence[Column]) -> list[str]:
    """The lines of a table in Markdown."""
    heads = (in_markdown(f"{c.head}, {c.unit}" if c.unit else c.head) for c in shown)
    rules = ("---" if column.align == "left" else "---:" for column in shown)
    cells = zip(*(column.cells for column in shown), strict=True)
    return [
        table_line(heads),
        table_line(rules),
        *(table_line(map(in_markdown, row)) for row in cells),
    ]


def table_line(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"
