"""A report of what is stored: the newest runs, how their figures went, what became worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmfit.nightly.baseline import check_baseline, find_regressions, night_trends
from llmfit.nightly.config import HISTORY
from llmfit.serving_records import ServerBenchmark
from llmfit.store.place import utc_now
from llmfit.trend_records import NightResult, Regression, Report

if TYPE_CHECKING:
    from llmfit.store.store import Store
    from llmfit.store.trends import Trends

_SERVERS_LOOKED_AT = 200
"""Newest figures of servers that are read: each holds all its requests."""
MOST_RUNS = 20
"""Runs that a report shows unless told otherwise."""


def report_of_store(
    store: Store,
    *,
    title: str,
    model: str | None = None,
    machine: str | None = None,
    baseline: str = HISTORY,
    most_runs: int = MOST_RUNS,
    command: str | None = None,
) -> Report:
    """The newest run of every row that is stored, ``most_runs`` at most, the newest first.

    Raises UsageError for an unknown baseline, and StoreError.
    """
    check_baseline(store, baseline)
    trends = store.trends(machine=machine, model=model)
    newest = {each.outcomes[-1].run_id: each.outcomes[-1].started_at for each in trends.rows}
    runs = sorted(newest, key=lambda run_id: newest[run_id], reverse=True)[:most_runs]
    return _report(
        store,
        trends,
        runs,
        title=title,
        baseline=baseline,
        regressions=find_regressions(store, trends, runs, baseline=baseline),
        servers=_newest(store, model, machine)[:most_runs],
        command=command,
    )


def report_of_night(store: Store, night: NightResult) -> Report:
    """The runs of a night. Raises StoreError."""
    runs = [cell.run_id for cell in night.cells if cell.run_id is not None]
    return _report(
        store,
        night_trends(store, night.machines),
        runs,
        title=night.title,
        baseline=night.baseline,
        regressions=night.regressions,
        servers=_newest(store, None, night.machine)[:MOST_RUNS],
        command=night.command,
        night=night,
    )


def _report(
    store: Store,
    trends: Trends,
    runs: Sequence[str],
    *,
    title: str,
    baseline: str,
    regressions: tuple[Regression, ...],
    servers: tuple[ServerBenchmark, ...],
    command: str | None,
    night: NightResult | None = None,
) -> Report:
    shown = set(runs)
    return Report(
        title=title,
        made_at=utc_now(),
        comparisons=tuple(store.comparison(run_id) for run_id in runs),
        series=tuple(each for each in trends.series if each.points[-1].run_id in shown),
        regressions=regressions,
        baseline=baseline,
        night=night,
        servers=servers,
        command=command,
    )


def _newest(store: Store, model: str | None, machine: str | None) -> tuple[ServerBenchmark, ...]:
    """The newest of each that serves the same in the same place under the same load."""
    servers = store.servers(model, machine=machine, limit=_SERVERS_LOOKED_AT)
    found: dict[tuple[object, ...], ServerBenchmark] = {}
    for each in servers:
        what = (each.model or each.served_model, each.backend, each.machine, each.url)
        found.setdefault((*what, each.workload), each)
    return tuple(found.values())
