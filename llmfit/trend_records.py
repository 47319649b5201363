"""The frozen records of figures over time, and of what a nightly run found.

    RunRecord ─► Figure ─► store ─► Series of Observation ─► Step ─► Regression

As in ``records.py``: units in names, None is "not known", field names are the JSON's keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmfit.records import SCHEMA_VERSION, Comparison, Status
from llmfit.serving_records import ServerBenchmark

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a row, as it is followed over time."""

    metric: str
    """Its place in the record, e.g. ``decode.tokens_per_s``; the unit is in the name."""
    value: float
    low: float | None = None
    high: float | None = None
    """95 % interval of ``value``, where it has one."""
    better: Better


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """What stays the same along a series: everything that was asked for, and where."""

    machine: str
    model: str
    backend: str
    settings: str
    """Hash of workload, tasks, budgets and whatever else was asked (``Stored.settings``)."""
    metric: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A figure in one run."""

    run_id: str
    started_at: str
    """UTC, ISO 8601."""
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A figure of one row over all runs, oldest first."""

    key: SeriesKey
    label: str
    """The row's name for people."""
    better: Better
    points: tuple[Observation, ...]
    noise: float | None = None
    """Standard error of one observation, relative, where more of them tell it than these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where the level of a series changes, beyond its noise and the least share that counts."""

    at: int
    """Index of the first observation on the new level."""
    before: float
    after: float
    """Medians of the two levels."""
    change: float
    """``after`` − ``before``, over the size of ``before``."""
    threshold: float
    """What the size of ``change`` exceeds: the larger of interval and least share."""
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """A figure that became worse and has not recovered."""

    key: SeriesKey
    label: str
    before: float | None
    after: float | None
    """None for a row that gives no figure any more: ``reason`` says why."""
    change: float | None
    threshold: float | None
    since_run: str
    """The first run on the worse level."""
    since: str
    good_run: str
    """The last run before it."""
    newest_run: str | None = None
    """The newest run, which is no better; None in older records."""
    causes: tuple[str, ...] = ()
    """What else changed between those two, the likeliest first."""
    status: Status = "ok"
    """Of the newest run's row."""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a row ended in one run."""

    run_id: str
    started_at: str
    status: Status
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowHistory:
    """How a row ended in all runs, oldest first."""

    key: SeriesKey
    """Its metric is ``status``."""
    label: str
    outcomes: tuple[Outcome, ...]


# ---------------------------------------------------------------- a night

CellStatus = Literal["done", "failed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One comparison of a night: a model under a workload."""

    name: str
    model: str
    workload: str
    """Its name in the settings; empty for the default one."""
    kind: str | None = None
    """Of the fleet's nodes that it was to run on; None outside one."""
    machine: str | None = None
    """What its figures are filed under; None for the night's machine."""
    status: CellStatus
    reason: str | None = None
    """Why it is not done."""
    run_id: str | None = None
    rows_ok: int = 0
    rows: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NightHead:
    """A night as it begins."""

    session_id: str
    title: str
    machine: str
    started_at: str
    config_hash: str
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NightResult:
    """What a night measured and found."""

    schema_version: int = SCHEMA_VERSION
    session_id: str
    title: str
    machine: str
    started_at: str
    ended_at: str
    tag: str | None = None
    cells: tuple[CellResult, ...]
    baseline: str
    """What was held against: ``history``, ``last``, a tag or a run's id."""
    regressions: tuple[Regression, ...] = ()
    notes: tuple[str, ...] = ()
    """What was done instead of what was asked."""
    command: str | None = None

    @property
    def machines(self) -> tuple[str, ...]:
        """What the night's figures are filed under."""
        named = (cell.machine or self.machine for cell in self.cells)
        return tuple(dict.fromkeys(named)) or (self.machine,)

    @property
    def complete(self) -> bool:
        """True where every comparison is done."""
        return all(cell.status == "done" for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report shows: the newest runs, how their figures went, and what became worse."""

    schema_version: int = SCHEMA_VERSION
    title: str
    made_at: str
    """UTC, ISO 8601."""
    comparisons: tuple[Comparison, ...]
    series: tuple[Series, ...]
    """Of the rows of ``comparisons``, over all runs."""
    regressions: tuple[Regression, ...]
    baseline: str
    night: NightResult | None = None
    """The night that the report is of; None for one of what is stored."""
    servers: tuple[ServerBenchmark, ...] = ()
    """The newest figures of each server that was measured, the newest first."""
    command: str | None = None
