"""Where a series changes its level: change points by ruptures, then what of them counts.

observations ─► logarithms ÷ noise ─► KernelCPD (least squares, exact) ─► segments ─► Step

A change counts where it exceeds both the noise of the series and ``LEAST_CHANGE``. Source of the
search: Killick, Fearnhead and Eckley 2012, arXiv:1101.1438, by ``ruptures`` (Truong, Oudre and
Vayatis 2020, arXiv:1801.00718).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from llmfit.planning.comparing.agreement import MEMORY_LEAST_BYTES
from llmfit.stats import INTERVAL_ERRORS
from llmfit.trend_records import Observation, Series, Step

LEAST_CHANGE = 0.05
"""Share by which a level has to change to count at all."""
_PENALTY = 5.0
"""Cost of one more change point, in log(n) times the noise's variance: BIC's is 2. By simulation:
at 5, of 200 series of 30 nights that only scatter, 1 steps where intervals tell a tenth of the
scatter, none where they tell it all; a newest night 20 % off is found always at 2 % scatter."""
_LEAST_NOISE = 0.005
"""Relative noise that a figure has at least, so that its last digits are no step."""
_ENOUGH_FOR_NOISE = 6
"""Observations from which on their own scatter tells the noise."""
_NIGHTLY_NOISE = 0.05
"""What a figure of time is taken to move by from night to night while its scatter is not known:
seven nights of seven formats on a virtual machine had standard deviations of 2 to 5 %, whatever
the intervals within a night told. Two nights then have to differ by 14 %."""
OF_TIME = frozenset(
    {"decode.tokens_per_s", "prefill.tokens_per_s", "ttft_s", "energy.joules_per_token"}
)
"""Figures that are another in every run."""
_EXACT = ("hellaswag.", "perplexity.", "tasks.")
"""Figures whose interval is that of the drawn items: the same items again give the same figure."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A level: the median of the observations with these indices, in their order."""

    members: tuple[int, ...]
    level: float


def steps(series: Series) -> tuple[Step, ...]:
    """The changes of level that count, oldest first. A single odd run that recovered is none."""
    found = segments(series)
    made = []
    for old, new in itertools.pairwise(found):
        step = step_between(series, old, new)
        if step is not None:
            made.append(step)
    return tuple(made)


def segments(series: Series) -> tuple[Segment, ...]:
    """The levels of a series; one observation is one level."""
    values = [point.value for point in series.points]
    kept = list(range(len(values)))
    bounds = _bounds([values[index] for index in kept], noise(series))
    # One odd run between two levels says nothing of either: left out, and looked at again.
    odd = [
        start
        for start, stop in itertools.pairwise(bounds)
        if stop - start == 1 and start > 0 and stop < len(values)
    ]
    if odd:
        kept = [index for index in kept if index not in odd]
        bounds = _bounds([values[index] for index in kept], noise(series))
    parts = [kept[start:stop] for start, stop in itertools.pairwise(bounds)]
    return tuple(Segment(tuple(part), median(values[i] for i in part)) for part in parts)


def step_between(series: Series, old: Segment, new: Segment) -> Step | None:
    """The step from one level to a later one; None where it does not count."""
    if old.level == new.level:
        return None
    change = (new.level - old.level) / abs(old.level) if old.level else math.inf
    threshold = max(LEAST_CHANGE, interval(series, old, new))
    if abs(change) <= threshold:
        return None
    return Step(
        at=new.members[0],
        before=old.level,
        after=new.level,
        change=change,
        threshold=threshold,
        worse=(new.level < old.level) == (series.better == "higher"),
    )


def interval(series: Series, old: Segment, new: Segment) -> float:
    """Half of the 95 % interval of the relative change between two levels."""
    sigma = noise(series)
    error = math.hypot(*(sigma / math.sqrt(len(each.members)) for each in (old, new)))
    half = INTERVAL_ERRORS * error
    if series.key.metric.startswith("memory.") and old.level:
        half = max(half, MEMORY_LEAST_BYTES / old.level)
    return half


def noise(series: Series) -> float:
    """Standard error of one observation, relative: by its intervals and by the scatter of all."""
    if series.noise is not None:
        return series.noise
    points, exact = series.points, series.key.metric.startswith(_EXACT)
    told = [] if exact else [_relative_error(point) for point in points]
    known = [error for error in told if error is not None]
    few = len(points) < _ENOUGH_FOR_NOISE
    return max(
        _LEAST_NOISE,
        median(known) if known else 0.0,
        _NIGHTLY_NOISE if few and series.key.metric in OF_TIME else 0.0,
        _scatter([point.value for point in points]),
    )


def _relative_error(point: Observation) -> float | None:
    if point.low is None or point.high is None or not point.value:
        return None
    return (point.high - point.low) / (2 * INTERVAL_ERRORS * abs(point.value))


def _scatter(values: Sequence[float]) -> float:
    """Standard deviation by the differences of neighbours, which steps hardly move.

    1.4826 makes a median absolute deviation a standard deviation; a difference has √2 of it.
    """
    if len(values) < _ENOUGH_FOR_NOISE:
        return 0.0
    scaled = _scaled(values)
    apart = [abs(b - a) for a, b in itertools.pairwise(scaled)]
    return 1.4826 * median(apart) / math.sqrt(2)


def _scaled(values: Sequence[float]) -> list[float]:
    """Logarithms, in which a share is a difference; figures that may be 0 by their largest."""
    if all(value > 0 for value in values):
        return [math.log(value) for value in values]
    largest = max(map(abs, values)) or 1.0
    return [value / largest for value in values]


def _bounds(values: Sequence[float], sigma: float) -> list[int]:
    """Indices at which segments begin, and the number of values as the last one."""
    if len(values) < 2:
        return [0, len(values)]
    import numpy as np
    from ruptures import KernelCPD

    scaled = np.array(_scaled(values)) / sigma
    search = KernelCPD(kernel="linear", min_size=1).fit(scaled[:, None])
    return [0, *map(int, search.predict(pen=_PENALTY * math.log(len(values))))]
