"""Progress of a comparison on stderr: a moving bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llmfit.cli._console import is_terminal, say
from llmfit.job import Observer
from llmfit.planning.verdict.recommend import STATUS_WORDS, needed_bytes
from llmfit.report._text import plain
from llmfit.units import format_bytes, format_percent, format_rate, format_seconds

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

    from llmfit.records import RunRecord


class Silent(Observer):
    """Shows nothing (``--quiet``); the base of the other two."""

    def beside(self, prefix: str) -> Observer:
        """An observer of a comparison that runs beside others, whose rows begin with ``prefix``."""
        return self

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class Lines(Silent):
    """A line when a row begins and a line when it is done, without control codes."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._titles: dict[str, str] = {}
        """Of the rows that run, by backend."""

    def beside(self, prefix: str) -> Observer:
        """See ``Silent``."""
        return Lines(prefix)

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        """See ``Observer``."""
        self._titles[backend] = f"{self._prefix}[{index + 1}/{total}] {plain(label)}"
        say(f"{self._titles[backend]} …")

    def row_done(self, record: RunRecord) -> None:
        """See ``Observer``. Where others run too, the line says of which row it is."""
        title = self._titles.pop(record.backend, plain(record.label))
        named = self._titles or self._prefix
        say(f"{title}: {summary(record)}" if named else f"      {summary(record)}")


class Bars(Silent):
    """A bar for each row that runs, with its stage; finished rows stay as lines above them."""

    def __init__(self, beside: Bars | None = None, prefix: str = "") -> None:
        """Bars of their own, or below those of ``beside``."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._prefix = prefix
        self._progress: Progress = (
            beside._progress
            if beside is not None
            else Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True, markup=False, highlight=False, emoji=False),
                transient=True,
            )
        )
        self._running: dict[str, tuple[TaskID, str]] = {}
        """Bar and title of the rows that run, by backend."""

    def beside(self, prefix: str) -> Observer:
        """See ``Silent``."""
        return Bars(self, prefix)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        """See ``Observer``. A row that is tried again begins anew."""
        self._ended(backend)
        number = f"[{index + 1}/{total}] " if total > 1 else ""
        title = f"{self._prefix}{number}{plain(label)}"
        self._running[backend] = (self._progress.add_task(title, total=None, count=""), title)

    def progress(self, backend: str, stage: str, done: int, total: int) -> None:
        """See ``Observer``."""
        if backend in self._running:
            task, title = self._running[backend]
            self._progress.update(
                task,
                description=f"{title}: {plain(stage)}",
                completed=done,
                total=total or None,
                count=f"{done}/{total}" if total else "",
            )

    def row_done(self, record: RunRecord) -> None:
        """See ``Observer``."""
        title = self._ended(record.backend) or plain(record.label)
        self._progress.console.print(f"{title}: {summary(record)}")

    def _ended(self, backend: str) -> str | None:
        """Take the row's bar away; its title, or None where it has none."""
        if backend not in self._running:
            return None
        task, title = self._running.pop(backend)
        self._progress.remove_task(task)
        return title


def observer(*, quiet: bool) -> Silent:
    """What suits stderr: nothing, moving bars, or plain lines."""
    if quiet:
        return Silent()
    return Bars() if is_terminal(sys.stderr) else Lines()


def summary(record: RunRecord) -> str:
    """A finished row in one line: the figures that there are, or the reason."""
    if record.status != "ok":
        reason = f": {plain(record.reason)}" if record.reason else ""
        return f"{STATUS_WORDS[record.status]}{reason}"
    parts = ["ok"]
    if record.decode is not None:
        parts.append(f"{format_rate(record.decode.tokens_per_s.median)} tokens/s")
    need = needed_bytes(record)
    if need is not None:
        parts.append(format_bytes(need))
    if record.hellaswag is not None:
        parts.append(f"HellaSwag {format_percent(record.hellaswag.acc_norm)}")
    if record.perplexity is not None:
        parts.append(f"perplexity {record.perplexity.token:.2f}")
    if record.total_s is not None:
        parts.append(format_seconds(record.total_s))
    return " · ".join(parts)
