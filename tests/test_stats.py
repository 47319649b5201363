"""Statistics against closed forms, numpy, and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from llmfit.records import Sampled
from llmfit.stats import (
    Difference,
    overlap,
    paired_difference,
    percentile,
    sampled,
    unpaired_difference,
)


@pytest.mark.parametrize("percent", [0, 12.5, 50, 95, 99, 100])
def test_percentile_is_numpys(percent: float) -> None:
    """The interpolation is numpy's default."""
    values = np.random.default_rng(3).lognormal(size=37).tolist()
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_percentile_refuses_nonsense() -> None:
    """No values, or a percentage outside 0…100, is an error and not a number."""
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)
    with pytest.raises(ValueError, match="101"):
        percentile([1.0], 101)


@pytest.mark.parametrize(
    ("count", "lowest", "highest"),
    # Ranks from the table of binomial(n, ½) in David and Nagaraja; 1 is the least value.
    [(1, 1, 1), (2, 1, 2), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15)],
)
def test_sampled_takes_the_published_order_statistics(
    count: int, lowest: int, highest: int
) -> None:
    """The median's interval runs between the published ranks, in any order of the input."""
    values = [float(v) for v in np.random.default_rng(count).permutation(np.arange(1, count + 1))]
    result = sampled(values)
    assert (result.low, result.high) == (lowest, highest)
    assert result.median == np.median(values)
    assert result.samples == tuple(values)


def test_sampled_interval_covers_the_median() -> None:
    """On skewed data the interval of 12 values holds the true median in at least 95 % of cases."""
    draws = np.random.default_rng(0).exponential(size=(4000, 12))
    hits = [r.low <= np.log(2) <= r.high for r in (sampled(row) for row in draws.tolist())]
    assert np.mean(hits) >= 0.95


def test_sampled_refuses_no_values() -> None:
    """A median of nothing is an error."""
    with pytest.raises(ValueError, match="at least one"):
        sampled([])


def test_overlap() -> None:
    """Intervals that share a point overlap, in either order."""
    a = Sampled(median=2, low=1, high=3, samples=(2,))
    b = Sampled(median=4, low=3, high=5, samples=(4,))
    c = Sampled(median=4, low=3.1, high=5, samples=(4,))
    assert overlap(a, b) and overlap(b, a)
    assert not overlap(a, c) and not overlap(c, a)


def test_paired_difference_on_published_counts() -> None:
    """The paired table of Bentur et al. (2009): 1 and 7 disagreements among 21.

    By hand: p12 = 2/23, p21 = 8/23, centre −6/23, s.e. √((10/23 − (6/23)²)/23) = 0.12627.
    """
    first = [True] + [True] + [False] * 7 + [False] * 12
    second = [True] + [False] + [True] * 7 + [False] * 12
    result = paired_difference(first, second)
    assert result.mean == pytest.approx(-6 / 21)
    assert result.low == pytest.approx(-6 / 23 - 1.959964 * 0.12627, abs=2e-5)
    assert result.high == pytest.approx(-6 / 23 + 1.959964 * 0.12627, abs=2e-5)
    assert not result.tie


def test_paired_difference_agrees_with_the_bootstrap() -> None:
    """On 1,000 items the interval is the percentile bootstrap's within a quarter of a point."""
    rng = np.random.default_rng(1)
    a = rng.random(1000) < 0.8
    b = np.where(rng.random(1000) < 0.1, ~a, a)
    result = paired_difference(a.tolist(), b.tolist())
    picks = rng.integers(0, 1000, size=(4000, 1000))
    means = (a.astype(int) - b.astype(int))[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert result.mean == pytest.approx(float(a.mean() - b.mean()))
    assert result.low == pytest.approx(low, abs=0.0025)
    assert result.high == pytest.approx(high, abs=0.0025)


def test_identical_answers_tie_and_few_items_leave_doubt() -> None:
    """Equal answers are a tie, and the interval narrows with more items but is never empty."""
    few, many = (paired_difference([True] * n, [True] * n) for n in (10, 1000))
    assert few.mean == many.mean == 0 and few.tie and many.tie
    assert few.high > many.high > 0
    assert paired_difference([True] * 3, [False] * 3).high <= 1.0


def test_paired_difference_refuses_unpaired_answers() -> None:
    """Different lengths, or no items, cannot be paired."""
    for a, b in (([True], []), ([], [])):
        with pytest.raises(ValueError, match="paired"):
            paired_difference(a, b)


def test_unpaired_difference() -> None:
    """Standard errors 3 and 4 add to 5, and 95 % is 1.96 of it."""
    result = unpaired_difference(10, 3, 5, 4)
    assert result == Difference(
        mean=5, low=pytest.approx(5 - 9.7998, abs=1e-4), high=pytest.approx(14.7998, abs=1e-4)
    )
