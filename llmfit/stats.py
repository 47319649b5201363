"""Medians, percentiles and intervals: pure functions; what resamples takes a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, median
from typing import TYPE_CHECKING

from llmfit.records import Difference, Sampled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

CONFIDENCE = 0.95
INTERVAL_ERRORS = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Standard errors in half of an interval of the normal distribution."""

RESAMPLES = 9_999
"""Bootstrap resamples; scipy's default. The ends of an interval then move by about 2 % of its
width from seed to seed."""

_BATCH_VALUES = 2**20
"""Values that the bootstrap holds at a time, so that memory does not grow with the blocks."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The ``percent``-th percentile (0…100), interpolated linearly between order statistics.

    Raises ValueError for no values or a percentage outside 0…100.
    """
    import numpy as np

    if not values:
        raise ValueError("a percentile needs at least one value.")
    if not 0.0 <= percent <= 100.0:
        raise ValueError(f"a percentile lies in 0…100, not at {percent}.")
    return float(np.percentile(values, percent))


def sampled(values: Sequence[float]) -> Sampled:
    """The values with their median and a distribution-free interval of the median.

    The interval runs between two order statistics, the narrowest symmetric pair that covers
    the true median with at least 95 %, whatever the distribution. Fewer than six values cannot
    reach 95 %: then it runs from the least to the greatest, which covers 1 − 2^(1−n), that is
    93.75 % for five values and nothing at all for one. Raises ValueError for no values.
    Source: David and Nagaraja, Order Statistics (2003), section 7.1.
    """
    # scipy's quantile_test gives the same ranks (a test), but no interval below six values, and
    # importing it in the worker would count as memory of the row.
    if not values:
        raise ValueError("a median needs at least one value.")
    ordered = sorted(values)
    rank = _interval_rank(len(ordered))
    return Sampled(
        median=float(median(ordered)),
        low=float(ordered[rank]),
        high=float(ordered[-1 - rank]),
        samples=tuple(float(value) for value in values),
    )


def _interval_rank(count: int) -> int:
    """The largest r for which the r lowest and r highest of ``count`` values may be left out."""
    tail_allowed = (1 - CONFIDENCE) / 2
    tail = 0.0
    for rank in range(count // 2):
        tail += math.comb(count, rank) / 2**count
        if tail > tail_allowed:
            return max(rank - 1, 0)
    return 0


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """The b of cost = a · sizeᵇ by least squares of the logarithms, and its standard error.

    The error is 0 for two sizes, which leave nothing over. Raises ValueError for fewer than two
    sizes, other lengths, or a value that is not above 0.
    """
    from scipy.stats import linregress

    if len(sizes) != len(costs) or len(set(sizes)) < 2:
        raise ValueError(f"two sizes or more with a cost each, not {len(sizes)} and {len(costs)}.")
    if min(*sizes, *costs) <= 0:
        raise ValueError("an exponent needs sizes and costs above 0.")
    line = linregress([math.log(size) for size in sizes], [math.log(cost) for cost in costs])
    return float(line.slope), float(line.stderr)


def overlap(a: Sampled, b: Sampled) -> bool:
    """True when the intervals of two medians share a point: the two are called a tie."""
    return a.low <= b.high and b.low <= a.high


def paired_difference(a: Sequence[bool], b: Sequence[bool]) -> Difference:
    """Difference of two accuracies over the same items, a − b, with its 95 % interval.

    Only the items on which the two disagree carry information. One pseudo-item of each kind of
    disagreement is added for the interval (not for the mean), so that identical answers on few
    items are not taken for proof of equality. The p-value is McNemar's exact one: a binomial test
    of the disagreements. Raises ValueError when the lengths differ or there are no items.
    Source: Bonett and Price (2012), adjusted Wald interval for paired proportions, J. Educ.
    Behav. Stat. 37(4); recommended in Fagerland, Lydersen and Laake (2014), Stat. Med. 33(16).
    """
    from scipy.stats import binomtest

    if len(a) != len(b) or not a:
        raise ValueError(f"paired answers are needed, not {len(a)} against {len(b)}.")
    only_a = sum(1 for x, y in zip(a, b, strict=True) if x and not y)
    only_b = sum(1 for x, y in zip(a, b, strict=True) if y and not x)
    padded = len(a) + 2
    share_a, share_b = (only_a + 1) / padded, (only_b + 1) / padded
    centre = share_a - share_b
    half = INTERVAL_ERRORS * math.sqrt((share_a + share_b - centre**2) / padded)
    disagreements = only_a + only_b
    return Difference(
        mean=(only_a - only_b) / len(a),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p_value=float(binomtest(only_a, disagreements).pvalue) if disagreements else 1.0,
        method="Bonett-Price interval, exact McNemar test",
    )


def unpaired_difference(a: float, a_stderr: float, b: float, b_stderr: float) -> Difference:
    """Difference a − b of two means known by their standard errors, as if independent.

    For accuracies over the same items this is wider than ``paired_difference``, so it errs
    towards a tie.
    """
    half = INTERVAL_ERRORS * math.hypot(a_stderr, b_stderr)
    return Difference(mean=a - b, low=a - b - half, high=a - b + half, method="unpaired normal")


# ---------------------------------------------------------------- bootstrap over blocks


def ratio_interval(
    totals: Sequence[float], counts: Sequence[int], *, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of sum(totals) ÷ sum(counts), blocks resampled whole.

    ``totals`` and ``counts`` have one entry per block; a block's two entries stay together. Where
    all blocks are alike, both ends are sum(totals) ÷ sum(counts) exactly. None for fewer than
    two blocks. Raises ValueError when the lengths differ or a count is below 1.
    Source: Efron and Tibshirani (1993), chapter 13, percentile interval, by scipy.stats.bootstrap.
    """
    _check_blocks(counts, totals)
    if len(counts) < 2:
        return None
    low, high = _bootstrap((totals, counts), _ratio, seed)
    ratio = sum(totals) / sum(counts)
    # numpy adds in another order: the last bit must not put the ratio outside its interval.
    low, high = (ratio if math.isclose(end, ratio, rel_tol=1e-12) else end for end in (low, high))
    return low, high


def perplexity_difference(
    nll: Sequence[float], reference_nll: Sequence[float], counts: Sequence[int], *, seed: int = 0
) -> Difference | None:
    """Perplexity minus the reference's on the same text, with its paired bootstrap interval.

    ``nll`` and ``reference_nll`` are the summed negative log-likelihoods, in nats, of the same
    blocks, ``counts`` their numbers of tokens; a block's three entries are resampled together.
    None for fewer than two blocks. Raises ValueError as ``ratio_interval``.
    """
    return _paired_bootstrap(nll, reference_nll, counts, _perplexity_change, seed)


def perplexity_ratio(
    nll: Sequence[float], reference_nll: Sequence[float], counts: Sequence[int], *, seed: int = 0
) -> Difference | None:
    """Perplexity ÷ the reference's − 1; otherwise as ``perplexity_difference``."""
    return _paired_bootstrap(nll, reference_nll, counts, _perplexity_relative_change, seed)


def _paired_bootstrap(
    nll: Sequence[float],
    reference_nll: Sequence[float],
    counts: Sequence[int],
    statistic: Callable[..., Array],
    seed: int,
) -> Difference | None:
    import numpy as np

    _check_blocks(counts, nll, reference_nll)
    blocks = len(counts)
    if blocks < 2:
        return None
    samples = (nll, reference_nll, counts)
    low, high = _bootstrap(samples, statistic, seed)
    return Difference(
        mean=float(statistic(*map(np.asarray, samples))),
        low=low,
        high=high,
        method=f"paired bootstrap, {RESAMPLES:,} resamples of {blocks:,} blocks",
    )


def _ratio(totals: Array, counts: Array, axis: int = -1) -> Array:
    ratio: Array = totals.sum(axis=axis) / counts.sum(axis=axis)
    return ratio


def _perplexity_change(nll: Array, reference: Array, counts: Array, axis: int = -1) -> Array:
    import numpy as np

    change: Array = np.exp(_ratio(nll, counts, axis)) - np.exp(_ratio(reference, counts, axis))
    return change


def _perplexity_relative_change(
    nll: Array, reference: Array, counts: Array, axis: int = -1
) -> Array:
    import numpy as np

    change: Array = np.expm1(_ratio(nll, counts, axis) - _ratio(reference, counts, axis))
    return change


def _bootstrap(
    samples: tuple[Sequence[float], ...], statistic: Callable[..., Array], seed: int
) -> tuple[float, float]:
    """Percentile interval of ``statistic`` over ``samples`` that are resampled together.

    Percentile and not BCa: on equal blocks, as two rows with the same kernels have, BCa is
    undefined; with hundreds of blocks the two agree (a test).
    """
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(samples[0])),
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _check_blocks(counts: Sequence[int], *totals: Sequence[float]) -> None:
    if any(len(values) != len(counts) for values in totals):
        lengths = ", ".join(str(len(values)) for values in (*totals, counts))
        raise ValueError(f"every block needs a total and a count, not {lengths} of them.")
    if any(count < 1 for count in counts):
        raise ValueError(f"a block holds at least one token, not {min(counts)}.")
