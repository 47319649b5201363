"""Plots of the page, as Plotly's own JSON: traces and layout, no pixel and no colour scheme.

Comparison ─► speed against quality · predicted against measured · share of the limit
Series     ─► figures over time, steps for the worse marked

Texts from outside are escaped: Plotly reads a little HTML in names and hovers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmfit.planning.trends.steps import OF_TIME, steps
from llmfit.records import Comparison, RunRecord
from llmfit.report._colours import OKABE_ITO
from llmfit.report._text import in_plotly, plain
from llmfit.trend_records import Regression, Series
from llmfit.units import format_bytes, format_number, format_percent, format_rate

COLOURS = (*OKABE_ITO, "#8C6D31", "#7F7F7F")
"""Seen on a light ground and on a dark one."""
_LEAST_MARK, _LARGEST_MARK = 12, 44
_LABELS = ("top center", "bottom center", "middle right", "middle left")
"""Where labels of neighbours stand, so that fewer lie upon each other."""
_BYTES = {"tickformat": "~s", "ticksuffix": "B"}
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "hexagon", "x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A plot, and its figures as a table for those who do not see it."""

    title: str
    about: str
    """What is to be seen, one sentence."""
    traces: tuple[dict[str, Any], ...]
    layout: dict[str, Any] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def comparison_charts(comparison: Comparison) -> tuple[Chart, ...]:
    """The plots of one comparison; those without figures are left out."""
    made = (
        _speed_and_quality(comparison),
        _memory(comparison),
        _limit(comparison),
    )
    return tuple(chart for chart in made if chart is not None)


def _name(row: RunRecord) -> str:
    return in_plotly(row.label)


# ---------------------------------------------------------------- speed against quality


def _quality(rows: Sequence[RunRecord]) -> tuple[str, str, Callable[[RunRecord], float | None]]:
    """The axis of quality: perplexity where two rows have it, else HellaSwag, else divergence."""

    def perplexity(row: RunRecord) -> float | None:
        return None if row.perplexity is None else row.perplexity.token

    def accuracy(row: RunRecord) -> float | None:
        return None if row.hellaswag is None else 100 * row.hellaswag.acc_norm

    if any(perplexity(row) is not None for row in rows):
        return "perplexity (token, less is better)", "perplexity", perplexity
    return "HellaSwag acc_norm, % (more is better)", "HellaSwag", accuracy


def _speed_and_quality(comparison: Comparison) -> Chart | None:
    """Each row that ran: tokens/s across, quality upwards, memory as the mark's area."""
    axis, word, quality = _quality(comparison.rows)
    shown = [
        (row, row.decode.tokens_per_s.median, value, _size(row))
        for row in comparison.rows
        if row.status == "ok" and row.decode is not None and (value := quality(row)) is not None
    ]
    if not shown:
        return None
    largest = max((size or 0 for _, _, _, size in shown), default=0)
    traces = [
        _mark_of(row, rate, value, size, word, largest, place)
        for place, (row, rate, value, size) in enumerate(shown)
    ]
    front = sorted(
        (rate, value) for row, rate, value, _ in shown if row.backend in comparison.verdict.pareto
    )
    if len(front) > 1:
        traces.append(_front_of(front))
    lower_is_better = word == "perplexity"
    return Chart(
        title="Speed against quality",
        about="Further right is faster, further up is better; a mark's area is its memory.",
        traces=tuple(traces),
        layout={
            "xaxis": {"title": {"text": "tokens/s"}, "rangemode": "tozero"},
            "yaxis": {
                "title": {"text": axis},
                **({"autorange": "reversed"} if lower_is_better else {}),
            },
        },
        head=("format", "tokens/s", word, "memory", "Pareto front"),
        rows=tuple(
            (
                plain(row.label),
                format_rate(rate),
                format_number(value),
                "–" if size is None else format_bytes(size),
                "yes" if row.backend in comparison.verdict.pareto else "no",
            )
            for row, rate, value, size in shown
        ),
    )


def _mark_of(
    row: RunRecord,
    rate: float,
    value: float,
    size: int | None,
    word: str,
    largest: int,
    place: int,
) -> dict[str, Any]:
    """A row's mark, its label, and what a hover tells."""
    told = "not known" if size is None else format_bytes(size)
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": _name(row),
        "x": [rate],
        "y": [value],
        "text": [_name(row)],
        "textposition": _LABELS[place % len(_LABELS)],
        "cliponaxis": False,
        "marker": {
            "size": _mark(size, largest),
            "color": COLOURS[place % len(COLOURS)],
            "opacity": 0.8,
        },
        "hovertemplate": (
            f"{_name(row)}<br>{format_rate(rate)} tokens/s<br>{word} {format_number(value)}<br>"
            f"memory {told}<extra></extra>"
        ),
        "showlegend": False,
    }


def _front_of(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The Pareto front through those points."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [rate for rate, _ in points],
        "y": [value for _, value in points],
        "line": {"dash": "dot", "width": 1.5, "color": "#7F7F7F"},
        "hoverinfo": "skip",
        "showlegend": True,
    }


def _size(row: RunRecord) -> int | None:
    return None if row.memory is None else row.memory.peak_bytes


def _mark(size: int | None, largest: int) -> float:
    """Diameter: the area is in proportion to the bytes, down to what can still be seen."""
    if not size or not largest:
        return _LEAST_MARK
    return max(_LEAST_MARK, _LARGEST_MARK * math.sqrt(size / largest))


# ---------------------------------------------------------------- memory, limit


def _memory(comparison: Comparison) -> Chart | None:
    """Predicted beside measured peak of every row that has both."""
    shown = [
        (row, row.memory.predicted_bytes - runtime, row.memory.peak_bytes)
        for row in comparison.rows
        if row.memory is not None
        and row.memory.predicted_bytes is not None
        and row.memory.peak_bytes is not None
        for runtime in (row.memory.predicted.runtime_bytes if row.memory.predicted else 0,)
    ]
    if not shown:
        return None
    names = [_name(row) for row, _, _ in shown]
    return Chart(
        title="Memory: predicted and measured",
        about="Peak memory of each format, before it ran and as it was.",
        traces=tuple(
            {
                "type": "bar",
                "name": name,
                "x": names,
                "y": sizes,
                "marker": {"color": COLOURS[index], "opacity": 0.55 if index == 0 else 0.95},
                "customdata": [format_bytes(size) for size in sizes],
                "hovertemplate": f"%{{x}}<br>{name} %{{customdata}}<extra></extra>",
            }
            for index, (name, sizes) in enumerate(
                (
                    ("predicted", [predicted for _, predicted, _ in shown]),
                    ("measured", [peak for _, _, peak in shown]),
                )
            )
        ),
        layout={"barmode": "group", "yaxis": _BYTES},
        head=("format", "predicted", "measured", "error"),
        rows=tuple(
            (
                plain(row.label),
                format_bytes(predicted),
                format_bytes(peak),
                format_percent(predicted / peak - 1, decimals=0) if peak else "–",
            )
            for row, predicted, peak in shown
        ),
    )


def _limit(comparison: Comparison) -> Chart | None:
    """The share of the bandwidth limit that each row's decode reaches."""
    shown = [
        (row, share) for row in comparison.rows if (share := row.roofline.fraction) is not None
    ]
    if not shown:
        return None
    told = [format_percent(share, decimals=0) for _, share in shown]
    return Chart(
        title="Share of the bandwidth limit",
        about="How near decoding is to what the memory's bandwidth allows.",
        traces=(
            {
                "type": "bar",
                "x": [_name(row) for row, _ in shown],
                "y": [100 * share for _, share in shown],
                "marker": {"color": COLOURS[2]},
                "customdata": told,
                "hovertemplate": "%{x}<br>%{customdata} of the limit<extra></extra>",
                "showlegend": False,
            },
        ),
        layout={"yaxis": {"title": {"text": "% of limit"}, "rangemode": "tozero"}},
        head=("format", "of limit", "limit, tokens/s"),
        rows=tuple(
            (
                plain(row.label),
                text,
                "–"
                if row.roofline.limit_tokens_per_s is None
                else format_rate(row.roofline.limit_tokens_per_s),
            )
            for (row, _), text in zip(shown, told, strict=True)
        ),
    )


# ---------------------------------------------------------------- over time


def time_chart(
    title: str, series: Sequence[Series], regressions: Iterable[Regression] = ()
) -> Chart | None:
    """A metric of several rows over time; a step for the worse that stands is marked."""
    shown = [each for each in series if len(each.points) > 1]
    if not shown:
        return None
    bad = {(r.key, r.since_run) for r in regressions}
    traces: list[dict[str, Any]] = []
    for index, each in enumerate(shown):
        colour = COLOURS[index % len(COLOURS)]
        name = in_plotly(each.label)
        times = [point.started_at for point in each.points]
        values = [point.value for point in each.points]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": times,
                "y": values,
                "error_y": _errors(each),
                "line": {"color": colour},
                "marker": {"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 7},
                "customdata": [in_plotly(point.run_id) for point in each.points],
                "hovertemplate": (
                    f"{name}<br>%{{y:.5g}}<br>%{{x}}<br>%{{customdata}}<extra></extra>"
                ),
            }
        )
        marks = [step.at for step in steps(each) if step.worse]
        standing = [at for at in marks if (each.key, each.points[at].run_id) in bad]
        if standing:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": "became worse",
                    "legendgroup": "worse",
                    "showlegend": not any(t.get("legendgroup") == "worse" for t in traces),
                    "x": [times[at] for at in standing],
                    "y": [values[at] for at in standing],
                    "marker": {
                        "symbol": "circle-open",
                        "size": 20,
                        "color": "#C00000",
                        "line": {"width": 3},
                    },
                    "hovertemplate": f"{name}: worse from here on<br>%{{y:.5g}}<extra></extra>",
                }
            )
    return Chart(
        title=title,
        about="Each format's figure in every run; a red ring is where it became worse.",
        traces=tuple(traces),
        layout={
            "xaxis": {"type": "date"},
            "yaxis": _BYTES if shown[0].key.metric.endswith("_bytes") else {},
        },
        head=("format", "runs", "first", "newest", "became worse"),
        rows=tuple(_time_row(each, bad) for each in shown),
    )


def _errors(series: Series) -> dict[str, Any]:
    """The intervals of a figure of time as bars; others have none, or one of the drawn items."""
    points = series.points
    if series.key.metric not in OF_TIME or any(
        point.low is None or point.high is None for point in points
    ):
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [(point.high or 0.0) - point.value for point in points],
        "arrayminus": [point.value - (point.low or 0.0) for point in points],
        "thickness": 1,
        "width": 2,
    }


def _time_row(series: Series, bad: set[Any]) -> tuple[str, ...]:
    since = [point.started_at[:10] for point in series.points if (series.key, point.run_id) in bad]
    return (
        plain(series.label),
        str(len(series.points)),
        format_number(series.points[0].value),
        format_number(series.points[-1].value),
        ", ".join(since) or "no",
    )
