"""What the store keeps beside rows: how a run began, how it ended, and a line for lists."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmfit.planning.verdict.judge import Judge
from llmfit.records import (
    Comparison,
    Environment,
    ModelSpec,
    QualityDifference,
    Status,
    Workload,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """A comparison before its first row."""

    run_id: str
    model: ModelSpec
    workload: Workload
    environment: Environment
    backends: tuple[str, ...]
    """Rows that are to come, in the table's order."""
    started_at: str
    """UTC, ISO 8601."""
    budget_bytes: int | None = None
    ram_budget_bytes: int | None = None
    command: str | None = None
    record: str | None = None
    machine: str | None = None
    """Name of the machine; None where the store is to name it."""
    session_id: str | None = None
    """The nightly run that it belongs to."""
    cell: str | None = None
    """Which of the night's comparisons it is."""
    tag: str | None = None
    judge: Judge | None = None
    """What its verdict goes by; None: not known, the budgets alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """A comparison's end: all of it but its rows, which are stored one by one."""

    comparison: Comparison
    """Without rows."""
    differences: dict[str, QualityDifference] = field(default_factory=dict)
    """Of each row against the reference, which is known only at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLine:
    """A row in a list of runs."""

    backend: str
    label: str
    status: Status
    reason: str | None
    figures: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A run in a list."""

    run_id: str
    started_at: str
    machine: str
    model: str
    tag: str | None
    session_id: str | None
    ended: bool
    """False: it was interrupted, or still runs."""
    pick: str | None
    rows: tuple[RowLine, ...]
