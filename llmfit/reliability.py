"""What puts a measured speed in doubt: from the samples, and from the machine before and after.

    samples ─────────────────────► few_samples, drift, unsteady
    Conditions before and after ─► busy_cpu, busy_gpu, throttled, power_cap, swap

Pure: ``device/conditions.py`` reads the machine. Each warning says what was seen and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmfit.records import MeasurementWarning, Sampled
from llmfit.units import format_bytes, format_number, format_percent, format_seconds

ENOUGH_SAMPLES = 5
"""Fewer repeats give a warning: the range of five covers the median with 93.75 %, of four with
87.5 %."""

DRIFT_SHARE = 0.05
"""A trend over the repeats counts from this share of the median on, from first to last. A choice:
formats differ by more where it matters."""

DRIFT_P = 0.05
"""Largest p-value of Kendall's test at which repeats are said to have a trend."""

UNSTEADY_SHARE = 0.2
"""An interval wider than this share of the median leaves the speed in doubt. A choice."""

BUSY_SHARE = 0.1
"""Share of the machine's CPU time that other processes may take unnoticed. A choice."""

BUSY_LEAST_S = 0.2
"""CPU time of other processes below which nothing is said: counters advance in ticks of 10 ms, one
for each CPU and kind of time."""

SWAP_LEAST_BYTES = 10**6
"""Swap traffic below which nothing is said: single pages move on an idle machine too."""

QUOTA_SHARE = 0.01
"""Share of the elapsed time that a CPU quota may have held processes back unnoticed."""

GPU_HEAT_SHARE = 0.01
"""Share of the elapsed time that a GPU may have run slower for its heat unnoticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuConditions:
    """State of the GPU at a moment; None is what its driver does not tell."""

    other_processes: int | None = None
    """Compute processes on the GPU beside this one."""
    slowdowns: tuple[str, ...] = ()
    """What keeps the clocks down at this moment because of heat or the power supply."""
    heat_s: float | None = None
    """Counter: seconds of clocks kept down by heat."""
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """State of the machine at a moment. Counters count from some start; None is not told."""

    moment_s: float
    """A monotonic clock."""
    cpus: int
    """Logical CPUs of the machine."""
    machine_cpu_s: float
    """Counter: busy CPU time of the whole machine, all CPUs together."""
    own_cpu_s: float
    """Counter: CPU time of this process and of those that it started."""
    swapped_bytes: int | None = None
    """Counter: bytes moved to or from swap."""
    overheated: int | None = None
    """Counter: times that a CPU or its package was slowed down by heat."""
    held_back_s: float | None = None
    """Counter: time that a CPU quota kept this process's group from running."""
    gpu: GpuConditions | None = None


def measurement_warnings(
    rate: Sampled, before: Conditions, after: Conditions
) -> tuple[MeasurementWarning, ...]:
    """All warnings of one measurement: ``rate`` is sampled between the two moments, in order."""
    return (*sample_warnings(rate), *condition_warnings(before, after))


def sample_warnings(rate: Sampled) -> tuple[MeasurementWarning, ...]:
    """What the decode rates of the repeats, in their order, say about themselves."""
    return (*_few(rate), *_drift(rate), *_unsteady(rate))


def condition_warnings(before: Conditions, after: Conditions) -> tuple[MeasurementWarning, ...]:
    """What the machine did beside the measurement, between two moments."""
    elapsed_s = after.moment_s - before.moment_s
    found = [*_busy_cpu(before, after, elapsed_s), *_cpu_throttled(before, after, elapsed_s)]
    if before.gpu is not None and after.gpu is not None:
        found += _gpu(before.gpu, after.gpu, elapsed_s)
    swapped = _grown(before.swapped_bytes, after.swapped_bytes)
    if swapped >= SWAP_LEAST_BYTES:
        found.append(
            MeasurementWarning(
                code="swap",
                message=f"{format_bytes(swapped)} went to or from swap while timing.",
                hint="close other programs, or take a format that needs less memory",
            )
        )
    return tuple(found)


# ---------------------------------------------------------------- samples


def _few(rate: Sampled) -> Iterator[MeasurementWarning]:
    count = len(rate.samples)
    if count >= ENOUGH_SAMPLES:
        return
    if count == 1:
        said = "1 repeat: there is no interval."
    else:
        covered = format_percent(1 - 2 ** (1 - count))
        said = f"{count} repeats: their range covers the true median with {covered} only."
    yield MeasurementWarning(
        code="few_samples", message=said, hint=f"--repeats {ENOUGH_SAMPLES} or more"
    )


def _drift(rate: Sampled) -> Iterator[MeasurementWarning]:
    """A trend by Kendall's test, its size by the Theil-Sen slope: single outliers make none."""
    count = len(rate.samples)
    if count < ENOUGH_SAMPLES or min(rate.samples) == max(rate.samples):
        return
    from scipy.stats import kendalltau, theilslopes

    order = range(count)
    if kendalltau(order, rate.samples).pvalue > DRIFT_P:
        return
    change = float(theilslopes(rate.samples, order).slope) * (count - 1) / rate.median
    if abs(change) >= DRIFT_SHARE:
        fell = change < 0
        yield MeasurementWarning(
            code="drift",
            message=f"tokens/s {'fell' if fell else 'rose'} by "
            f"{format_percent(abs(change), decimals=0)} from the first repeat to the last.",
            hint="let the machine cool down, then run again" if fell else "a larger --warmup",
        )


def _unsteady(rate: Sampled) -> Iterator[MeasurementWarning]:
    width = (rate.high - rate.low) / rate.median
    if width > UNSTEADY_SHARE:
        yield MeasurementWarning(
            code="unsteady",
            message="the interval of tokens/s spans "
            f"{format_percent(width, decimals=0)} of the median.",
            hint="close other programs, or raise --repeats or --new-tokens",
        )


# ---------------------------------------------------------------- machine


def _grown(before: float | None, after: float | None) -> float:
    """How much a counter grew; 0 for one that is not told."""
    return after - before if before is not None and after is not None else 0


def _busy_cpu(
    before: Conditions, after: Conditions, elapsed_s: float
) -> Iterator[MeasurementWarning]:
    all_s = after.machine_cpu_s - before.machine_cpu_s
    others_s = all_s - (after.own_cpu_s - before.own_cpu_s)
    if others_s >= BUSY_LEAST_S and others_s > BUSY_SHARE * elapsed_s * after.cpus:
        cores = format_number(others_s / elapsed_s)
        yield MeasurementWarning(
            code="busy_cpu",
            message=f"other processes kept {cores} of {after.cpus} CPUs busy while timing.",
            hint="close other programs, then run again",
        )


def _cpu_throttled(
    before: Conditions, after: Conditions, elapsed_s: float
) -> Iterator[MeasurementWarning]:
    times = int(_grown(before.overheated, after.overheated))
    if times > 0:
        yield MeasurementWarning(
            code="throttled",
            message=f"the CPU was slowed down by heat {times:,} times while timing.",
            hint="better cooling, or fewer --threads",
        )
    held_s = _grown(before.held_back_s, after.held_back_s)
    if held_s > QUOTA_SHARE * elapsed_s:
        yield MeasurementWarning(
            code="throttled",
            message=f"a CPU quota held the processes back for {format_seconds(held_s)} in "
            f"{format_seconds(elapsed_s)}.",
            hint="--threads of at most the quota's CPUs, or a larger quota of the container",
        )


def _gpu(
    before: GpuConditions, after: GpuConditions, elapsed_s: float
) -> Iterator[MeasurementWarning]:
    others = max(before.other_processes or 0, after.other_processes or 0)
    if others > 0:
        plural = "es are" if others > 1 else " is"
        yield MeasurementWarning(
            code="busy_gpu",
            message=f"{others} other process{plural} on the GPU.",
            hint="nvidia-smi shows which; end them, then run again",
        )
    heat_s = _grown(before.heat_s, after.heat_s)
    reasons = dict.fromkeys((*before.slowdowns, *after.slowdowns))
    if heat_s > GPU_HEAT_SHARE * elapsed_s:
        reasons = {f"heat for {format_seconds(heat_s)} in {format_seconds(elapsed_s)}": None}
    if reasons:
        yield MeasurementWarning(
            code="throttled",
            message=f"the GPU's clocks were kept down by {' and '.join(reasons)}.",
            hint="better cooling or power supply; nvidia-smi -q -d PERFORMANCE shows the cause",
        )
    limit, default = after.power_limit_w, after.default_power_limit_w
    if limit is not None and default is not None and limit < default:
        yield MeasurementWarning(
            code="power_cap",
            message=f"the GPU's power limit is {limit:.0f} W, its default {default:.0f} W.",
            hint=f"nvidia-smi -pl {default:.0f}, unless the limit is meant",
        )
