"""Warnings follow from samples and from two states of the machine, by arithmetic alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmfit.records import MeasurementWarning
from llmfit.reliability import (
    Conditions,
    GpuConditions,
    condition_warnings,
    measurement_warnings,
    sample_warnings,
)
from llmfit.stats import sampled

QUIET = Conditions(
    moment_s=1000.0,
    cpus=4,
    machine_cpu_s=500.0,
    own_cpu_s=20.0,
    swapped_bytes=10**9,
    overheated=7,
    held_back_s=3.0,
    gpu=GpuConditions(
        other_processes=0, heat_s=9.0, power_limit_w=350.0, default_power_limit_w=350.0
    ),
)
"""A machine at some moment."""


def later(seconds: float = 10.0, *, own_s: float = 30.0, **changes: Any) -> Conditions:
    """The same machine after ``seconds`` in which only this process ran, but for ``changes``."""
    state = replace(
        QUIET,
        moment_s=QUIET.moment_s + seconds,
        machine_cpu_s=QUIET.machine_cpu_s + own_s,
        own_cpu_s=QUIET.own_cpu_s + own_s,
    )
    return replace(state, **changes)


def gpu(**changes: Any) -> Conditions:
    """The same machine later, with these changes of its GPU."""
    assert QUIET.gpu is not None
    return later(gpu=replace(QUIET.gpu, **changes))


def codes(warnings: tuple[MeasurementWarning, ...]) -> list[str]:
    """Their codes in order, each with a hint."""
    assert all(warning.hint and warning.message.endswith(".") for warning in warnings)
    return [warning.code for warning in warnings]


def test_steady_samples_on_a_quiet_machine_give_no_warning() -> None:
    """The default five repeats within 2 %, nothing else running: nothing to say."""
    rate = sampled([100.0, 101.0, 99.5, 100.5, 100.0])
    assert measurement_warnings(rate, QUIET, later()) == ()


@pytest.mark.parametrize(
    ("count", "says"),
    [(1, "no interval"), (2, "50.0 %"), (3, "75.0 %"), (4, "87.5 %")],
)
def test_few_samples_tell_what_they_cover(count: int, says: str) -> None:
    """The range of n values covers the median with 1 − 2^(1−n): the sign test's closed form."""
    (warning,) = sample_warnings(sampled([100.0] * count))
    assert warning.code == "few_samples" and says in warning.message
    assert "--repeats 5" in warning.hint


def test_a_fall_over_the_repeats_is_drift() -> None:
    """100, 98, … 90: a line falls by 10 / 95 of its median, 11 %."""
    (warning,) = sample_warnings(sampled([100.0, 98.0, 96.0, 94.0, 92.0, 90.0]))
    assert warning.code == "drift"
    assert "fell by 11 % from the first repeat to the last" in warning.message
    assert "cool" in warning.hint


def test_a_rise_asks_for_more_warm_up() -> None:
    """Repeats that get faster were not warm yet."""
    (warning,) = sample_warnings(sampled([90.0, 94.0, 97.0, 99.0, 100.0]))
    assert "rose" in warning.message and "--warmup" in warning.hint


@pytest.mark.parametrize(
    "rates",
    [
        [100.0, 99.5, 99.0, 98.5, 98.0, 97.5],
        [100.0, 94.0, 101.0, 93.0, 100.0],
        [100.0, 100.0, 100.0, 100.0, 91.0],
        [100.0] * 8,
    ],
    ids=["small", "to and fro", "one outlier", "constant"],
)
def test_what_is_no_drift(rates: list[float]) -> None:
    """A trend below 5 %, or none in the order, is not called drift."""
    assert sample_warnings(sampled(rates)) == ()


def test_a_wide_interval_is_unsteady() -> None:
    """Five values from 80 to 110 around 100: 30 % wide; six of 100 within 20 % are not."""
    (warning,) = sample_warnings(sampled([100.0, 80.0, 110.0, 95.0, 105.0]))
    assert warning.code == "unsteady" and "30 %" in warning.message
    assert "--repeats" in warning.hint
    assert sample_warnings(sampled([100.0, 90.0, 110.0, 100.0, 100.0])) == ()


def test_other_processes_on_the_cpu() -> None:
    """Of 45 s that four CPUs were busy in 10 s, 30 were ours: 1.5 CPUs were others'."""
    state = later(own_s=30.0, machine_cpu_s=QUIET.machine_cpu_s + 45.0)
    (warning,) = condition_warnings(QUIET, state)
    assert warning.code == "busy_cpu"
    assert "1.50 of 4 CPUs" in warning.message


@pytest.mark.parametrize(
    ("seconds", "others_s"),
    [(10.0, 4.0), (0.05, 0.1), (10.0, -0.05)],
    ids=["a tenth of the machine", "within the counters' ticks", "ticks of our own"],
)
def test_little_load_of_others_is_no_warning(seconds: float, others_s: float) -> None:
    """A tenth of the CPUs, and what the ticks of the counters may amount to, is not said."""
    state = later(seconds, own_s=1.0, machine_cpu_s=QUIET.machine_cpu_s + 1.0 + others_s)
    assert condition_warnings(QUIET, state) == ()


@pytest.mark.parametrize(
    ("state", "code", "says"),
    [
        (later(swapped_bytes=10**9 + 25 * 10**6), "swap", "25.0 MB"),
        (later(overheated=10), "throttled", "by heat 3 times"),
        (later(held_back_s=5.5), "throttled", "for 2.50 s in 10.0 s"),
        (gpu(other_processes=1), "busy_gpu", "1 other process is on the GPU"),
        (gpu(other_processes=3), "busy_gpu", "3 other processes are on the GPU"),
        (gpu(slowdowns=("heat",)), "throttled", "kept down by heat."),
        (gpu(slowdowns=("heat", "the power supply")), "throttled", "by heat and the power supply"),
        (gpu(heat_s=13.0), "throttled", "by heat for 4.00 s in 10.0 s"),
        (gpu(power_limit_w=250.0), "power_cap", "limit is 250 W, its default 350 W"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_condition_is_named_with_its_figure(state: Conditions, code: str, says: str) -> None:
    """A counter that grew, or a state at one of the two moments, is one warning with its size."""
    (warning,) = condition_warnings(QUIET, state)
    assert warning.code == code and says in warning.message and warning.hint


def test_a_neighbour_that_left_meanwhile_still_counts() -> None:
    """A process on the GPU at the beginning alone is told too."""
    assert QUIET.gpu is not None
    before = replace(QUIET, gpu=replace(QUIET.gpu, other_processes=2))
    assert codes(condition_warnings(before, later())) == ["busy_gpu"]


def test_what_a_machine_does_not_tell_is_no_warning() -> None:
    """No swap counter, no throttle counter, no quota, no GPU, or a GPU that tells nothing."""
    silent: dict[str, Any] = {"swapped_bytes": None, "overheated": None, "held_back_s": None}
    assert condition_warnings(replace(QUIET, **silent), later(**silent, gpu=None)) == ()
    blank = GpuConditions()
    assert condition_warnings(replace(QUIET, gpu=blank), later(gpu=blank)) == ()


def test_all_at_once() -> None:
    """Samples' warnings come first, then the machine's."""
    state = gpu(other_processes=1, power_limit_w=200.0)
    rate = sampled([100.0, 60.0])
    warnings = measurement_warnings(rate, QUIET, state)
    assert codes(warnings) == ["few_samples", "unsteady", "busy_gpu", "power_cap"]
