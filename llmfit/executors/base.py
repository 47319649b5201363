"""What a comparison asks of the place where its rows run.

    Executor.open ─► Site: its environment is what rows are planned for
    rows in waves ─► Site.run ─► (task, RunRecord) as each ends

A site makes records and keeps none: the comparison writes them down as they come.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from llmfit.records import Environment, Hardware, Plan, RunRecord

OUT_OF_TIME = "the time limit of the whole was reached"
"""Reason of a row that was not begun any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTask:
    """A row that is to run."""

    plan: Plan
    place: int
    """Its place in the table, from 0."""
    log_path: Path
    """Where what its process prints is to be found afterwards, on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Until when rows may run."""

    row_s: float | None = None
    """Seconds for one row."""
    deadline: float | None = None
    """Of all rows, on the monotonic clock."""

    def left_s(self) -> float | None:
        """Seconds that a row which begins now may take; None for no limit."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        return min((each for each in (self.row_s, left) if each is not None), default=None)

    def reached(self) -> bool:
        """True where no row may begin any more, or go on."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class Watch:
    """Told what happens to tasks. Shows nothing itself."""

    def started(self, task: RowTask) -> None:
        """The task begins, or begins again."""

    def progress(self, task: RowTask, stage: str, done: int, total: int) -> None:
        """How far a task that runs is; ``total`` 0 means not known."""


class Site(ABC):
    """An opened place. Use it from one thread."""

    environment: Environment
    """Of the machine that rows will run on, or of one of its kind."""

    @property
    @abstractmethod
    def hardware(self) -> tuple[Hardware | None, Hardware]:
        """The GPU that rows may run on, None where there is none, and the CPU: to plan for."""

    @abstractmethod
    def fetch(self, plans: Sequence[Plan]) -> list[Plan]:
        """``plans``, of one model, with its files where rows will look for them.

        Raises ModelNotFound for a model that cannot be downloaded.
        """

    @abstractmethod
    def run(
        self, tasks: Sequence[RowTask], *, limits: Limits, watch: Watch
    ) -> Generator[tuple[RowTask, RunRecord], None, None]:
        """Run all ``tasks``, which need nothing of one another; their records as they end.

        A row that comes to grief is a record with its reason. Closing the iterator stops what runs
        and drops what waits.
        """


class Executor(ABC):
    """A way to run rows, for any number of comparisons."""

    @abstractmethod
    def open(
        self, asked: Plan, *, device: str | None, measure: bool
    ) -> AbstractContextManager[Site]:
        """A site for rows like ``asked``, whose device is not settled yet.

        ``device`` is what was asked for: auto (or None), cpu, cuda. With ``measure`` rows will run
        there, and its bandwidths are measured. Raises UsageError where there is no such place.
        """

    def machine_name(self, name: str) -> str:
        """What a series of figures made here is filed under, on a machine called ``name``."""
        return name
