"""What a study is given and what it is made of.

    StudyContext (device, sizes, seed) ─► run ─► StudyResult: tables, plots, checks, findings

A study is a package with ``TITLE``, ``QUESTION`` and ``run(context)``; ``registry.py`` lists them.
It imports torch inside its functions, times through ``context.bench`` alone, and does not print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from llmfit.benchmark import Benchmark
from llmfit.device.execution import TorchDevice
from llmfit.errors import UsageError
from llmfit.records import Sampled
from llmfit.study_records import BenchmarkResult, Cell, Preset, Ratio, StudyResult, Value

StudyProgress = Callable[[str, int, int], None]
"""Stage, steps done, steps in all (0: not known)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilling:
    """Options of knowledge distillation; a wrong one raises UsageError.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """

    temperature: float = 2.0
    """Divides teacher's and student's logits; the soft loss is multiplied by its square."""
    mixing: float = 0.5
    """Share of the soft loss, 0…1; the rest is the loss on the text itself."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"a temperature must be above 0, not {self.temperature:g}.")
        if not 0 <= self.mixing <= 1:
            raise UsageError(f"a mixing lies in 0…1, not at {self.mixing:g}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyContext:
    """What a study runs with."""

    bench: Benchmark
    preset: Preset = "default"
    seed: int = 0
    out: str | None = None
    """Folder for models that the study makes; None: they are not kept."""
    cache_dir: str | None = None
    threads: int | None = None
    distilling: Distilling = field(default_factory=Distilling)
    progress: StudyProgress = no_progress

    @property
    def device(self) -> TorchDevice:
        """Where the study runs."""
        return self.bench.device


class Study(Protocol):
    """A package in this one that is a study."""

    TITLE: str
    QUESTION: str
    """What it answers, one sentence."""

    def run(self, context: StudyContext) -> StudyResult:
        """Run it. What could not be run is a row with its reason."""
        ...


# ---------------------------------------------------------------- cells


def cell(value: Value) -> Cell:
    """A figure without an interval, or a text."""
    return Cell(value=value)


def sampled_cell(quantity: Sampled) -> Cell:
    """A measured quantity: its median and the interval of it."""
    return Cell(value=quantity.median, low=quantity.low, high=quantity.high)


def time_cell(result: BenchmarkResult) -> Cell:
    """Seconds of a call."""
    return sampled_cell(result.latency_s)


def ratio_cell(ratio: Ratio) -> Cell:
    """A ratio with its interval."""
    return Cell(value=ratio.value, low=ratio.low, high=ratio.high)


def share_of(part: float | None, whole: float | None) -> Cell:
    """``part`` ÷ ``whole``; not known where one of them is not, or the whole is 0."""
    return Cell(value=part / whole if part is not None and whole else None)
