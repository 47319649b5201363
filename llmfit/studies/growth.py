"""How a cost grows with a size: the exponent b of cost = a · sizeᵇ, its cell and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfit.stats import growth_exponent
from llmfit.study_records import Cell, Series, StudyPlot

FIT_NOTE = "b by least squares of the logarithms, between one standard error less and more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The exponent of a cost, with its standard error."""

    exponent: float
    error: float

    def as_cell(self) -> Cell:
        """The exponent between one standard error less and more."""
        low, high = self.exponent - self.error, self.exponent + self.error
        return Cell(value=self.exponent, low=low, high=high)


def growth(sizes: Sequence[int], costs: Sequence[float | None], *, first: int) -> Growth | None:
    """How a cost grows from size ``first`` on, below which fixed costs hide it.

    None with fewer than two sizes whose cost is known. Raises ValueError for other lengths.
    """
    pairs = [
        (size, cost)
        for size, cost in zip(sizes, costs, strict=True)
        if size >= first and cost is not None
    ]
    if len(pairs) < 2:
        return None
    exponent, error = growth_exponent([x for x, _ in pairs], [y for _, y in pairs])
    return Growth(exponent=exponent, error=error)


def growth_plot(title: str, x_label: str, y_label: str, series: tuple[Series, ...]) -> StudyPlot:
    """Lines on two logarithmic axes, where an exponent is a slope."""
    return StudyPlot(
        title=title,
        kind="lines",
        x_label=x_label,
        y_label=y_label,
        series=series,
        log_x=True,
        log_y=True,
    )
