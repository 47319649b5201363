"""A study's panels as one figure, PNG and SVG, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.report._colours import OKABE_ITO
from llmfit.report._text import in_matplotlib
from llmfit.report.study import heading
from llmfit.study_records import StudyPlot, StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.2, 4.2)
_DPI = 130
_COLOURS = (*OKABE_ITO, "#000000", "#999999")
_MARKS = "os^Dvp*X"


def plots_possible() -> bool:
    """True where matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(result: StudyResult, files: Sequence[Path]) -> None:
    """Write the figure of all panels to each of ``files``; the ending says in which form.

    Raises OSError.
    """
    # Figure without pyplot: no window system, no global state.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # SVG text stays text; a fixed salt makes the same figure the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmfit", "font.size": 9}):
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width * len(result.plots), height), layout="constrained")
        axes = figure.subplots(1, len(result.plots), squeeze=False)[0]
        for axis, plot in zip(axes, result.plots, strict=True):
            _panel(axis, plot)
        figure.suptitle(in_matplotlib(heading(result)), fontsize=9)
        for file in files:
            metadata: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {}
            figure.savefig(file, dpi=_DPI, metadata=metadata)


def _panel(axis: Axes, plot: StudyPlot) -> None:
    (_bars if plot.kind == "bars" else _lines)(axis, plot)
    axis.set_title(in_matplotlib(plot.title), fontsize=10)
    axis.set_xlabel(in_matplotlib(plot.x_label))
    axis.set_ylabel(in_matplotlib(plot.y_label))
    if plot.log_y:
        axis.set_yscale("log")
    axis.grid(visible=True, axis="both" if plot.kind == "lines" else "y", alpha=0.3)
    axis.set_axisbelow(True)
    if len(plot.series) > 1 or plot.series[0].reference:
        axis.legend(fontsize=8)


def _lines(axis: Axes, plot: StudyPlot) -> None:
    for index, series in enumerate(plot.series):
        points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
        axis.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=in_matplotlib(series.name),
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKS[index % len(_MARKS)],
            markersize=4,
            linewidth=1.0 if series.reference else 1.8,
            linestyle="--" if series.reference else "-",
        )
    if plot.log_x:
        axis.set_xscale("log", base=2)
        ticks = sorted({float(x) for series in plot.series for x in series.x})
        axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


def _bars(axis: Axes, plot: StudyPlot) -> None:
    names = list(dict.fromkeys(str(x) for series in plot.series for x in series.x))
    width = 0.8 / len(plot.series)
    for index, series in enumerate(plot.series):
        values = dict(zip(map(str, series.x), series.y, strict=True))
        places = [
            (position + (index - (len(plot.series) - 1) / 2) * width, value)
            for position, name in enumerate(names)
            if (value := values.get(name)) is not None
        ]
        axis.bar(
            [place for place, _ in places],
            [value for _, value in places],
            width=width,
            label=in_matplotlib(series.name),
            color=_COLOURS[index % len(_COLOURS)],
            alpha=0.45 if series.reference else 1.0,
            hatch="//" if series.reference else None,
        )
    turned = sum(map(len, names)) > 45
    shown = [in_matplotlib(name) for name in names]
    axis.set_xticks(range(len(names)), shown, rotation=30 if turned else 0,
                    ha="right" if turned else "center")  # fmt: skip
