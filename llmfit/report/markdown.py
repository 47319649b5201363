"""The comparison as GitHub-flavoured markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmfit.records import Comparison
from llmfit.report.columns import columns
from llmfit.report.lines import (
    footnotes,
    heading,
    legend,
    reproduction,
    verdict_lines,
    warnings,
)

# An underscore inside a word is no markup.
_SPECIAL = re.compile(r"([\\`*{}\[\]<>|#~$]|(?<![^\W_])_|_(?![^\W_]))")


def render_markdown(comparison: Comparison) -> str:
    """Head line, table, footnotes, verdict, warnings, legend; outside text stays text."""
    shown = columns(comparison)
    notes = footnotes(comparison)
    lines = [f"**{escape(heading(comparison))}**", ""]
    lines.append(table_line(escape(f"{c.head}, {c.unit}" if c.unit else c.head) for c in shown))
    lines.append(table_line(["---", *["---:"] * (len(shown) - 2), "---"]))
    for index in range(len(comparison.rows)):
        cells = [escape(" ".join(column.cells[index].split())) for column in shown]
        marks = ",".join(str(note.number) for note in notes if index in note.rows)
        if marks:
            cells[0] += f" <sup>{marks}</sup>"
        lines.append(table_line(cells))
    lines.append("")
    lines += [f"<sup>{note.number}</sup> {escape(note.text)}  " for note in notes]
    if notes:
        lines.append("")
    lines += [f"- {escape(line)}" for line in verdict_lines(comparison)]
    lines.append("")
    if seen := warnings(comparison):
        lines += [*(f"- {escape(line)}" for line in seen), ""]
    if explained := legend(comparison):
        lines += [escape(" · ".join(explained)), ""]
    lines += [*(f"    {line}" for line in reproduction(comparison)), ""]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """``text`` with the characters that mean something in markdown or HTML made literal."""
    return _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;"))


def table_line(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"
