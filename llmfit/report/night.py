"""A report as Markdown, and what it found in one sentence."""

from __future__ import annotations

from llmfit.report._text import in_markdown, plain
from llmfit.report.fleet import LEGEND as FLEET_LEGEND
from llmfit.report.fleet import fleet_columns, title_of
from llmfit.report.markdown import markdown_table, render_markdown, table_line
from llmfit.report.regressions import cause_text, cell_line, metric_name, size_text
from llmfit.report.server import LEGEND, served_columns
from llmfit.trend_records import CellResult, Regression, Report


def summary(report: Report) -> str:
    """What was found, in one sentence."""
    worse, missing = len(report.regressions), len(not_done(report))
    text = f"{worse} figure{'s' * (worse > 1)} became worse" if worse else "Nothing became worse"
    if report.night is not None and missing:
        text += f"; {missing} of {len(report.night.cells)} comparisons were not done"
    return f"{text}."


def not_done(report: Report) -> tuple[CellResult, ...]:
    """The night's comparisons that failed or did not run."""
    cells = () if report.night is None else report.night.cells
    return tuple(cell for cell in cells if cell.status != "done")


def render_report_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    night = report.night
    facts = [f"{report.made_at[:16].replace('T', ' ')} UTC", f"held against: {report.baseline}"]
    if night is not None:
        facts.insert(1, f"machine {night.machine}")
    lines = [
        f"# {in_markdown(plain(report.title))}",
        "",
        in_markdown(plain(" · ".join(facts))),
        "",
        f"**{in_markdown(summary(report))}**",
        "",
    ]
    if report.regressions:
        lines += ["## What became worse", "", *_table(report.regressions), ""]
    if missing := [f"- {in_markdown(cell_line(cell))}" for cell in not_done(report)]:
        lines += ["## What was not measured", "", *missing, ""]
    if fleet := fleet_columns(report.comparisons):
        lines += ["## By kind of node", "", *markdown_table(fleet), "", FLEET_LEGEND, ""]
    for comparison in report.comparisons:
        lines += [
            f"## {in_markdown(title_of(comparison))}",
            "",
            render_markdown(comparison),
        ]
    if report.servers:
        shown = served_columns(report)
        lines += ["## Served", "", *markdown_table(shown), "", in_markdown(LEGEND)]
    return "\n".join(lines).rstrip() + "\n"


def _table(found: tuple[Regression, ...]) -> list[str]:
    heads = ("figure", "model", "format", "change", "since", "likely cause")
    lines = [table_line(heads), table_line(["---"] * len(heads))]
    for each in found:
        cells = (
            metric_name(each.key.metric),
            plain(each.key.model),
            plain(each.label),
            size_text(each),
            plain(f"{each.since_run} (good: {each.good_run})"),
            cause_text(each.causes).removeprefix("likely cause: "),
        )
        lines.append(table_line(in_markdown(cell) for cell in cells))
    return lines
