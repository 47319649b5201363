"""Where levels step: against series whose steps are put there."""

from __future__ import annotations

import random

import pytest

from llmfit.planning.trends.steps import LEAST_CHANGE, noise, segments, steps
from llmfit.trend_records import Better, Observation, Series, SeriesKey


def series_of(
    values: list[float],
    *,
    half: float | None = None,
    metric: str = "decode.tokens_per_s",
    better: Better = "higher",
) -> Series:
    """A night each; ``half`` is half of the interval, relative."""
    return Series(
        key=SeriesKey(machine="m", model="x", backend="nf4", settings="s", metric=metric),
        label="NF4",
        better=better,
        points=tuple(
            Observation(
                run_id=f"run{night}",
                started_at=f"2026-01-{night + 1:02d}T00:00:00+00:00",
                value=value,
                low=None if half is None else value * (1 - half),
                high=None if half is None else value * (1 + half),
            )
            for night, value in enumerate(values)
        ),
    )


def noisy(level: float, count: int, sigma: float, seed: int) -> list[float]:
    """So many nights on a level."""
    draw = random.Random(seed)
    return [level * (1 + draw.gauss(0, sigma)) for _ in range(count)]


def test_a_step_is_found_where_it_is() -> None:
    """20 nights at 40, then 10 at 32, with 1 % of noise: one step, at the 20th, of −20 %."""
    (step,) = steps(series_of(noisy(40, 20, 0.01, 1) + noisy(32, 10, 0.01, 2), half=0.01))
    assert step.at == 20 and step.worse
    assert step.change == pytest.approx(-0.2, abs=0.01)
    assert step.threshold == LEAST_CHANGE


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_step(seed: int) -> None:
    """30 nights that scatter by 5 %, whatever intervals say of one night, step nowhere."""
    assert steps(series_of(noisy(40, 30, 0.05, seed), half=0.005)) == ()


def test_two_nights_are_enough_for_a_large_step() -> None:
    """The first night and a second at half the speed."""
    (step,) = steps(series_of([40.0, 20.0], half=0.02))
    assert step.at == 1 and step.change == pytest.approx(-0.5) and step.worse


def test_two_nights_say_little_of_what_nights_differ_by() -> None:
    """10 % less is nothing yet, however exact each night was; 20 % less is."""
    assert steps(series_of([40.0, 36.0], half=0.001)) == ()
    assert len(steps(series_of([40.0, 32.0], half=0.001))) == 1


def test_a_change_within_the_intervals_is_none() -> None:
    """10 % less is nothing where each of six nights is known to 40 %, and something at 1 %."""
    values = [40.0, 40.1, 39.9, 40.0, 40.1, 36.0]
    assert steps(series_of(values, half=0.4)) == ()
    assert len(steps(series_of(values, half=0.01))) == 1


def test_four_percent_is_not_enough() -> None:
    """However exact the figures are."""
    assert steps(series_of([40.0] * 10 + [38.4] * 10, half=0.0001)) == ()
    assert len(steps(series_of([40.0] * 10 + [37.9] * 10, half=0.0001))) == 1


def test_one_odd_night_that_recovered_is_no_step() -> None:
    """And its value moves no level."""
    found = series_of([40.0] * 8 + [20.0] + [40.0] * 8, half=0.01)
    assert steps(found) == ()
    assert [each.level for each in segments(found)] == [40.0]
    assert 8 not in segments(found)[0].members


def test_an_odd_newest_night_is_a_step() -> None:
    """It may have come to stay."""
    (step,) = steps(series_of([40.0] * 8 + [20.0], half=0.01))
    assert step.at == 8


@pytest.mark.parametrize(
    ("better", "after", "worse"),
    [
        ("higher", 30.0, True),
        ("higher", 50.0, False),
        ("lower", 50.0, True),
        ("lower", 30.0, False),
    ],
)
def test_the_direction_is_the_metrics(better: Better, after: float, worse: bool) -> None:
    """Fewer tokens a second are worse, fewer seconds are not."""
    (step,) = steps(series_of([40.0] * 5 + [after] * 5, half=0.01, better=better))
    assert step.worse is worse


@pytest.mark.parametrize(
    ("before", "after", "worse", "change"),
    [(-0.05, -0.30, True, -5.0), (-0.02, 0.30, False, 16.0), (0.2, -0.2, True, -2.0)],
)
def test_figures_below_zero_have_their_direction_too(
    before: float, after: float, worse: bool, change: float
) -> None:
    """A correlation: higher is better, on either side of 0."""
    (step,) = steps(series_of([before] * 5 + [after] * 5, metric="task.cola.mcc"))
    assert step.worse is worse and step.change == pytest.approx(change)


def test_memory_of_a_tiny_model_may_move_by_megabytes() -> None:
    """10 MB of 30 are the libraries' own; 300 MB of 1 GB are not."""
    small = series_of([30e6] * 5 + [40e6] * 5, metric="memory.peak_bytes", better="lower")
    large = series_of([1e9] * 5 + [1.3e9] * 5, metric="memory.peak_bytes", better="lower")
    assert steps(small) == () and len(steps(large)) == 1


def test_quality_is_exact_from_night_to_night() -> None:
    """The interval of a perplexity is that of the drawn text, which is the same every night."""
    told = series_of([6.0] * 3 + [6.5] * 3, half=0.2, metric="perplexity.token", better="lower")
    (step,) = steps(told)
    assert step.worse and noise(told) < 0.01


def test_figures_of_zero_do_not_break_the_search() -> None:
    """A divergence of 0 has no logarithm."""
    (step,) = steps(series_of([0.0] * 5 + [0.1] * 5, metric="kl_divergence", better="lower"))
    assert step.worse and step.before == 0.0


def test_one_night_is_one_level() -> None:
    """Nothing to compare with."""
    assert steps(series_of([40.0])) == () and len(segments(series_of([40.0]))) == 1
