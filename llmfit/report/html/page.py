"""A report as one HTML file: style, plots' data and Plotly itself are inside, nothing is fetched.

Every text from outside goes through Jinja's escaping; the plots' data are JSON in which ``<`` is
written as ``\\u003c``, so no name can end the script that holds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmfit.planning.trends.figures import BETTER
from llmfit.records import Comparison
from llmfit.report._column import Column, Detail
from llmfit.report._text import plain
from llmfit.report.columns import columns
from llmfit.report.fleet import LEGEND as FLEET_LEGEND
from llmfit.report.fleet import fleet_columns, title_of
from llmfit.report.html.charts import Chart, comparison_charts, time_chart
from llmfit.report.lines import (
    Footnote,
    footnotes,
    heading,
    legend,
    reproduction,
    verdict_lines,
    warnings,
)
from llmfit.report.regressions import cell_line, metric_name, size_text
from llmfit.report.server import LEGEND, served_columns
from llmfit.trend_records import Report, Series

if TYPE_CHECKING:
    from jinja2 import Template

_OVER_TIME = ("decode.tokens_per_s", "perplexity.token", "hellaswag.acc_norm", "memory.peak_bytes")
"""Figures that are drawn over time."""
_SHOWN_WARNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One comparison on the page."""

    id: str
    comparison: Comparison
    title: str
    heading: str
    columns: tuple[Column, ...]
    notes: tuple[Footnote, ...]
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    legend: str
    commands: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]


def render_page(report: Report) -> str:
    """The page, UTF-8 text."""
    titles = _titles(report.comparisons)
    sections = tuple(
        _section(report, each, n, title)
        for n, (each, title) in enumerate(zip(report.comparisons, titles, strict=True))
    )
    charts = {
        f"{section.id}-chart-{index}": {"data": chart.traces, "layout": chart.layout}
        for section in sections
        for index, chart in enumerate(section.charts)
    }
    night = report.night
    return _template().render(
        report=report,
        night=night,
        not_done=[cell_line(c) for c in night.cells if c.status != "done"] if night else [],
        sections=sections,
        fleet=fleet_columns(report.comparisons),
        fleet_legend=FLEET_LEGEND,
        served=served_columns(report) if report.servers else (),
        served_legend=LEGEND,
        metric_name=metric_name,
        size_text=size_text,
        plain=plain,
        style=_text("page.css"),
        script=_text("page.js"),
        plotly=_plotly(),
        data=_json(charts),
    )


def _titles(comparisons: Sequence[Comparison]) -> list[str]:
    """Of each its model; where several are of one, the workload too, and then when it began."""
    titles = [title_of(each) for each in comparisons]
    for more in (_workload, _start):
        several = {title for title in titles if titles.count(title) > 1}
        titles = [
            f"{title} · {more(each)}" if title in several else title
            for title, each in zip(titles, comparisons, strict=True)
        ]
    return titles


def _workload(comparison: Comparison) -> str:
    asked = comparison.workload
    return f"{asked.prompt_tokens} + {asked.new_tokens} tokens, batch {asked.batch}"


def _start(comparison: Comparison) -> str:
    """To the second, UTC; of a comparison without a time its id."""
    began = min((row.started_at for row in comparison.rows if row.started_at), default=None)
    return plain(comparison.run_id if began is None else began[:19].replace("T", " "))


def _section(report: Report, comparison: Comparison, number: int, title: str) -> Section:
    own = [s for s in report.series if s.points[-1].run_id == comparison.run_id]
    over_time = (
        time_chart(f"{metric_name(metric)} over time", _of(own, metric), report.regressions)
        for metric in _OVER_TIME
    )
    return Section(
        id=f"run-{number}",
        comparison=comparison,
        title=title,
        heading=heading(comparison),
        columns=columns(comparison, detail=Detail.LEAN),
        notes=footnotes(comparison),
        verdict=verdict_lines(comparison),
        warnings=warnings(comparison)[:_SHOWN_WARNINGS],
        legend=" · ".join(legend(comparison, Detail.LEAN)),
        commands=reproduction(comparison),
        environment=_environment(comparison),
        charts=(*comparison_charts(comparison), *(chart for chart in over_time if chart)),
    )


def _of(series: list[Series], metric: str) -> list[Series]:
    assert metric in BETTER  # what is drawn is followed
    return [each for each in series if each.key.metric == metric]


def _environment(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    machine = comparison.environment
    facts = {
        "machine": machine.gpu or machine.cpu,
        "CPU": f"{machine.cpu}, {machine.cpu_cores} cores",
        "platform": machine.platform,
        "Python": machine.python,
        "CUDA": machine.cuda,
        "driver": machine.driver,
        **machine.packages,
    }
    return tuple((plain(name), plain(value)) for name, value in facts.items() if value)


def _json(value: Any) -> str:
    """JSON that can stand in a script element, whatever its texts are."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # A script element would end at this, wherever it stands.
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("page.html.j2"))
