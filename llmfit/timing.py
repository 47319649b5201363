"""The one timer: warm-ups, then runs between marks, all raw times kept, the machine watched.

    run(marks) × warmup ─► conditions ─► run(marks) × repeats ─► conditions ─► Timed
                                             └ energy, where it is counted

Deploy rows (``measure.py``) and modules (``benchmark.py``) are timed by it. Cases that are to be
compared take turns (A B C A B C …), so that what the machine does meanwhile meets them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from llmfit.device.conditions import read_conditions
from llmfit.device.execution import Marks, TorchDevice, synchronize
from llmfit.records import Device, Latency
from llmfit.reliability import Conditions
from llmfit.stats import percentile

Run = Callable[[Marks], None]
"""A run, which marks its own moments: the first where its time begins, the last where it ends."""


def no_turn(done: int, total: int) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds between the marks of each run, warm-ups apart; one entry a case."""

    warm: tuple[tuple[tuple[float, ...], ...], ...]
    runs: tuple[tuple[tuple[float, ...], ...], ...]
    before: Conditions
    after: Conditions


def timed(
    cases: Sequence[Run],
    *,
    warmup: int,
    repeats: int,
    device: TorchDevice,
    clock: TorchDevice | None = None,
    progress: Callable[[int, int], None] = no_turn,
) -> Timed:
    """Time ``cases`` in turns: ``warmup`` rounds first, then ``repeats``.

    The clock of each run starts and stops on an idle device; it is the device's own, or that of
    ``clock``. Raises ValueError for no repeats.
    """
    if repeats < 1:
        raise ValueError(f"at least one timed run is needed, not {repeats}.")
    total = warmup + repeats

    def rounds(first: int, last: int) -> list[list[tuple[float, ...]]]:
        times: list[list[tuple[float, ...]]] = [[] for _ in cases]
        for index in range(first, last):
            progress(index, total)
            for own, run in zip(times, cases, strict=True):
                own.append(_once(run, device, clock or device))
        return times

    warm = rounds(0, warmup)
    watched: Device = "cuda" if device == "cuda" else "cpu"
    before = read_conditions(watched)
    runs = rounds(warmup, total)
    after = read_conditions(watched)
    progress(total, total)
    return Timed(
        warm=tuple(map(tuple, warm)), runs=tuple(map(tuple, runs)), before=before, after=after
    )


def _once(run: Run, device: TorchDevice, clock: TorchDevice) -> tuple[float, ...]:
    synchronize(device)
    marks = Marks(clock)
    run(marks)
    return marks.seconds()


def latency(runs: Sequence[Sequence[float]]) -> Latency:
    """The distribution of all times of all runs. Raises ValueError for none."""
    flat = sorted(second for run in runs for second in run)
    return Latency(
        mean_s=fmean(flat) if flat else math.nan,
        p50_s=percentile(flat, 50),
        p95_s=percentile(flat, 95),
        p99_s=percentile(flat, 99),
        samples_s=tuple(map(tuple, runs)),
    )
