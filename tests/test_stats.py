"""Statistics against scipy, statsmodels, published figures, closed forms and simulation."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llmfit.records import Difference, Sampled
from llmfit.stats import (
    overlap,
    paired_difference,
    percentile,
    perplexity_difference,
    perplexity_ratio,
    ratio_interval,
    sampled,
    unpaired_difference,
)


@pytest.mark.parametrize("percent", [0, 12.5, 50, 95, 99, 100])
def test_percentile_interpolates_linearly(percent: float) -> None:
    """It is definition 7 of Hyndman and Fan, computed by scipy, in any order of the values."""
    values = np.random.default_rng(3).lognormal(size=37)
    expected = scipy_stats.mstats.mquantiles(values, [percent / 100], alphap=1, betap=1)[0]
    assert percentile(values.tolist(), percent) == pytest.approx(expected, rel=1e-12)


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


@pytest.mark.parametrize("count", [*range(6, 40), 101, 500])
def test_sampled_interval_is_scipys(count: int) -> None:
    """From six values on, the interval is that of scipy's exact quantile test."""
    values = np.random.default_rng(count).exponential(size=count)
    expected = scipy_stats.quantile_test(values, q=1, p=0.5).confidence_interval(0.95)
    result = sampled(values.tolist())
    assert (result.low, result.high) == (expected.low, expected.high)


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


def test_mcnemar_on_published_tables() -> None:
    """The exact p-value is the published 0.070 of Bentur et al., and 2·P(X ≤ 86) of Agresti's.

    Sources: Fagerland, Lydersen and Laake (2013), BMC Med. Res. Methodol. 13:91;
    Agresti, Categorical Data Analysis, approval ratings with 86 and 150 who changed their mind.
    """
    bentur = paired_difference([True] + [False] * 7, [False] + [True] * 7)
    assert bentur.p_value == pytest.approx(0.070, abs=5e-4)
    agresti = paired_difference([True] * 86 + [False] * 150, [False] * 86 + [True] * 150)
    tail = sum(math.comb(236, k) for k in range(87)) / 2**236
    assert agresti.p_value == pytest.approx(2 * tail, rel=1e-9)
    assert paired_difference([True, False], [True, False]).p_value == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_statsmodels(seed: int) -> None:
    """The p-value is that of statsmodels' exact McNemar test on the table of both answers."""
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(seed)
    a = rng.random(300) < 0.7
    b = np.where(rng.random(300) < 0.15, ~a, a)
    table = [[np.sum(x & y) for y in (b, ~b)] for x in (a, ~a)]
    expected = contingency.mcnemar(table, exact=True).pvalue
    assert paired_difference(a.tolist(), b.tolist()).p_value == pytest.approx(expected, rel=1e-9)


def test_paired_difference_agrees_with_scipy_on_many_items() -> None:
    """On 2,000 items the interval is the paired t's and the paired bootstrap's within 0.1 point."""
    rng = np.random.default_rng(1)
    a = rng.random(2000) < 0.8
    b = np.where(rng.random(2000) < 0.1, ~a, a)
    result = paired_difference(a.tolist(), b.tolist())
    x, y = a.astype(float), b.astype(float)
    assert result.mean == pytest.approx(np.mean(x - y))
    resampled = scipy_stats.bootstrap(
        (x, y),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        n_resamples=5000,
        batch=100,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    for expected in (
        scipy_stats.ttest_rel(x, y).confidence_interval(0.95),
        resampled.confidence_interval,
    ):
        assert result.low == pytest.approx(expected.low, abs=0.001)
        assert result.high == pytest.approx(expected.high, abs=0.001)


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
        mean=5,
        low=pytest.approx(5 - 9.7998, abs=1e-4),
        high=pytest.approx(14.7998, abs=1e-4),
        method="unpaired normal",
    )


# ---------------------------------------------------------------- blocks


def blocks(count: int, *, noise: float = 0.01, gap: float = 0.0) -> tuple[list, list, list]:
    """Two models' losses on blocks of unequal length, ``gap`` nats a token apart, and lengths."""
    rng = np.random.default_rng(count)
    tokens = rng.integers(100, 512, count)
    reference = tokens * rng.gamma(20, 0.1, count)
    row = reference + tokens * rng.normal(gap, noise, count)
    return row.tolist(), reference.tolist(), tokens.tolist()


def test_ratio_interval_is_the_delta_methods_on_many_blocks() -> None:
    """For 2,000 blocks it is the normal interval of a ratio estimator within 5 % of its width.

    Source: Cochran, Sampling Techniques (1977), equation 6.13.
    """
    nll, _, tokens = (np.array(values) for values in blocks(2000))
    low, high = ratio_interval(nll.tolist(), tokens.tolist()) or pytest.fail("no interval")
    ratio = nll.sum() / tokens.sum()
    half = 1.959964 * np.std(nll - ratio * tokens, ddof=1) / np.sqrt(2000) / tokens.mean()
    assert low == pytest.approx(ratio - half, abs=0.1 * half)
    assert high == pytest.approx(ratio + half, abs=0.1 * half)


def test_percentile_interval_is_bcas_on_hundreds_of_blocks() -> None:
    """On 300 blocks the plain percentile interval differs from BCa's by less than 10 %."""
    nll, _, tokens = blocks(300)
    expected = scipy_stats.bootstrap(
        (nll, tokens),
        lambda a, n, axis: a.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = ratio_interval(nll, tokens) or pytest.fail("no interval")
    assert low == pytest.approx(expected.low, abs=0.1 * (high - low))
    assert high == pytest.approx(expected.high, abs=0.1 * (high - low))


@pytest.mark.slow
def test_ratio_interval_covers_the_truth() -> None:
    """Over 200 simulated texts of 100 blocks the interval holds the true loss in about 95 %."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        tokens = rng.integers(100, 512, 100)
        low, high = ratio_interval(
            (tokens * rng.gamma(20, 0.1, 100)).tolist(), tokens.tolist()
        ) or (pytest.fail("no interval"))
        hits.append(low <= 2.0 <= high)
    assert 0.90 <= np.mean(hits) <= 0.99


@pytest.mark.filterwarnings("error")
def test_equal_blocks_have_an_interval_of_one_point() -> None:
    """Constant losses give the ratio twice, without a warning; one block gives no interval."""
    nll, tokens = [0.1 * 3] * 50, [3] * 50
    assert ratio_interval(nll, tokens) == (sum(nll) / 150, sum(nll) / 150)
    assert ratio_interval([0.0] * 5, [4] * 5) == (0.0, 0.0)
    assert ratio_interval([1.0], [1]) is None and ratio_interval([], []) is None
    assert perplexity_difference([1.0], [1.0], [1]) is None
    for function in (perplexity_difference, perplexity_ratio):
        same = function(nll, nll, tokens)
        assert same is not None and (same.mean, same.low, same.high) == (0, 0, 0) and same.tie


def test_the_seed_fixes_the_interval() -> None:
    """The same data give the same interval; another seed moves it, but little."""
    nll, _, tokens = blocks(50)
    first, again, other = (ratio_interval(nll, tokens, seed=seed) for seed in (3, 3, 4))
    assert first == again and first != other
    assert first is not None and other is not None
    assert other[0] == pytest.approx(first[0], abs=0.05 * (first[1] - first[0]))


def test_perplexity_difference_is_paired() -> None:
    """The mean is exp(a) − exp(b), and pairing finds what unpaired intervals would hide."""
    row, reference, tokens = blocks(200, noise=0.01, gap=0.005)
    result = perplexity_difference(row, reference, tokens)
    a, b = (np.sum(nll) / np.sum(tokens) for nll in (row, reference))
    assert result is not None and not result.tie
    assert result.mean == pytest.approx(np.exp(a) - np.exp(b), rel=1e-9)
    assert "9,999 resamples of 200 blocks" in result.method
    low, high = ratio_interval(row, tokens) or pytest.fail("no interval")
    assert result.high - result.low < 0.2 * (np.exp(high) - np.exp(low))


def test_perplexity_ratio_is_the_delta_methods() -> None:
    """The interval of exp(a − b) − 1 is that of the mean difference of losses, exponentiated."""
    row, reference, tokens = (np.array(v) for v in blocks(1000, gap=0.02))
    result = perplexity_ratio(row.tolist(), reference.tolist(), tokens.tolist())
    change = row - reference
    mean = change.sum() / tokens.sum()
    half = 1.959964 * np.std(change - mean * tokens, ddof=1) / np.sqrt(1000) / tokens.mean()
    assert result is not None
    assert result.mean == pytest.approx(np.exp(mean) - 1, rel=1e-9)
    assert result.low == pytest.approx(np.exp(mean - half) - 1, abs=0.1 * half)
    assert result.high == pytest.approx(np.exp(mean + half) - 1, abs=0.1 * half)


def test_noise_alone_is_a_tie() -> None:
    """Two rows that differ by noise without a gap are a tie in about 95 of 100 cases."""
    ties = []
    rng = np.random.default_rng(5)
    for _ in range(60):
        reference = rng.gamma(20, 10, 80)
        row = reference + rng.normal(0, 1, 80)
        result = perplexity_ratio(row.tolist(), reference.tolist(), [100] * 80)
        ties.append(result is not None and result.tie)
    assert np.mean(ties) >= 0.85


def test_the_bootstrap_of_a_long_text_is_bounded() -> None:
    """2,600 blocks (WikiText-2 in windows of 128) need less than 100 MB beyond the data."""
    row, reference, tokens = blocks(2600)
    tracemalloc.start()
    assert perplexity_difference(row, reference, tokens) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_blocks_have_to_match() -> None:
    """Blocks of two texts, or an empty block, are refused."""
    with pytest.raises(ValueError, match="every block"):
        ratio_interval([1.0, 2.0], [3])
    with pytest.raises(ValueError, match="every block"):
        perplexity_ratio([1.0, 2.0], [1.0], [3, 3])
    with pytest.raises(ValueError, match="at least one token"):
        ratio_interval([1.0, 2.0], [3, 0])


def test_statistics_import_nothing_heavy() -> None:
    """Importing statistics, verdict and report loads neither scipy nor numpy nor torch."""
    code = (
        "import sys, llmfit.stats, llmfit.planning.verdict.recommend, llmfit.report.table\n"
        "print(*({'scipy', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
