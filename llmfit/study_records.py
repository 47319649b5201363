"""The frozen records of modules measured and of studies, and their JSON (``records.to_json``).

    BenchmarkResult (a module, timed) ─► StudyTable, StudyPlot, StudyCheck ─► StudyResult

As in ``records.py``: units in names, None is "not known", field names are the JSON's keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmfit.records import SCHEMA_VERSION, Environment, Latency, MeasurementWarning, Sampled, Status

BenchmarkKind = Literal["inference", "training step", "call"]
Preset = Literal["default", "reference"]


# ---------------------------------------------------------------- a module, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """One case, as ``Benchmark`` measured it. None is what the device or the case does not tell."""

    name: str
    kind: BenchmarkKind
    device: str
    """``cpu``, ``cuda`` or ``mps``."""
    batch_size: int
    latency: Latency
    """Of a call, or of a training step."""
    latency_s: Sampled
    """The same times with the interval of their median."""
    spread: float
    """Interquartile range of the times ÷ their median: how far repeats agree."""
    throughput_per_s: Sampled
    """``batch_size`` ÷ time: items a second."""
    total_parameters: int | None = None
    trainable_parameters: int | None = None
    model_bytes: int | None = None
    """Parameters and buffers."""
    held_bytes: int | None = None
    """Model, gradients and optimizer state, as held when a call begins."""
    working_bytes: int | None = None
    """Peak of tensors allocated by a call beyond what was held before it."""
    peak_bytes: int | None = None
    """``held_bytes`` + ``working_bytes``."""
    vram_allocated_bytes: int | None = None
    """GPU: in the allocator before a call, whatever it is of."""
    vram_reserved_bytes: int | None = None
    vram_peak_bytes: int | None = None
    """GPU: the allocator's peak in a call."""
    flops: int | None = None
    """Floating-point operations of a call, a multiply-add as two, by torch's FlopCounterMode."""
    accuracy: float | None = None
    energy_j: float | None = None
    """Joules of a call."""
    power_w: float | None = None
    """Mean power over all timed calls."""
    energy_source: str | None = None
    losses: tuple[float, ...] = ()
    """Of each training step, warm-ups first."""
    warmup_s: tuple[float, ...] = ()
    warnings: tuple[MeasurementWarning, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One measured quantity over another, and whether the two are told apart."""

    value: float
    low: float
    high: float
    """From the ends of both intervals: the most careful."""
    real: bool
    """The intervals are apart, and the change exceeds the spread of either's repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkChange:
    """A case against the first one."""

    name: str
    speedup: Ratio
    """The first's median time ÷ this one's: above 1 is faster."""
    memory_ratio: float | None = None
    """This one's peak ÷ the first's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkComparison:
    """All results, and each against the first."""

    schema_version: int = SCHEMA_VERSION
    results: tuple[BenchmarkResult, ...]
    changes: tuple[BenchmarkChange, ...]
    """One a result, in the same order; the first is 1 against itself."""


# ---------------------------------------------------------------- a study

Value = float | int | str | bool | None
CellUnit = Literal["text", "s", "bytes", "ratio", "share", "count", "per_s", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A figure of a table; for a measured one the interval of its median."""

    value: Value
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyColumn:
    """A column: its key among a row's cells, its two lines of head, what its values are."""

    key: str
    head: str
    unit: CellUnit
    under: str = ""
    """Second line of the head, e.g. ``RTX 4090`` over a published figure."""
    needed: bool = True
    """False: left out where the terminal is too narrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """A case of a table. One that did not run has its reason and no figures."""

    name: str
    status: Status = "ok"
    reason: str | None = None
    cells: dict[str, Cell] = field(default_factory=dict)
    """By the key of the column; a missing one is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """A table of a study."""

    title: str
    head: str
    """Over the names of the rows, e.g. ``precision``."""
    columns: tuple[StudyColumn, ...]
    rows: tuple[StudyRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line of a plot, or a group of bars."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    reference: bool = False
    """Published, not measured here: drawn thin and dashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlot:
    """A panel of a study's figure."""

    title: str
    kind: Literal["lines", "bars"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCheck:
    """Something that must hold whatever the machine: equal gradients, equal tokens, an exponent."""

    name: str
    holds: bool | None
    """None: it could not be tried, and ``detail`` says why."""
    detail: str
    """What was seen, with its figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What one study found."""

    schema_version: int = SCHEMA_VERSION
    study: str
    title: str
    question: str
    """What it answers."""
    preset: Preset
    device: str
    settings: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """Sizes and options that it ran with."""
    tables: tuple[StudyTable, ...] = ()
    plots: tuple[StudyPlot, ...] = ()
    checks: tuple[StudyCheck, ...] = ()
    findings: tuple[str, ...] = ()
    """What the figures say, a sentence each."""
    reference: str | None = None
    """What the published figures beside ours are of: hardware, sizes, and how sure they are."""
    notes: tuple[str, ...] = ()
    """What was done instead of what was asked."""
    benchmarks: tuple[BenchmarkResult, ...] = ()
    """Raw samples of all that was timed."""
    artifacts: tuple[str, ...] = ()
    """Folders of models that the study made."""
    seconds: float | None = None
    started_at: str | None = None
    """UTC, ISO 8601."""
    command: str | None = None
    environment: Environment | None = None
