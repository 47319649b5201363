"""What is stored, as it went over time: rows and figures ─► RowHistory and Series.

Two queries whatever the number of runs, and no record's body is read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.engine import Connection

from llmfit.planning.trends.regressions import STATUS
from llmfit.store.schema import figures, is_model, rows, runs
from llmfit.trend_records import Observation, Outcome, RowHistory, Series, SeriesKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Trends:
    """Everything over time, each oldest first."""

    series: tuple[Series, ...]
    rows: tuple[RowHistory, ...]


def read_trends(connection: Connection, *, machine: str | None, model: str | None) -> Trends:
    """The trends of a machine and a model; None for all."""
    chosen = select(
        rows.c.row_id,
        runs.c.machine,
        runs.c.model,
        rows.c.backend,
        rows.c.settings,
        rows.c.label,
        runs.c.run_id,
        rows.c.started_at,
        rows.c.status,
        rows.c.reason,
    ).select_from(rows.join(runs))
    measured = select(
        figures.c.row_id,
        figures.c.metric,
        figures.c.value,
        figures.c.low,
        figures.c.high,
        figures.c.better,
    )
    if machine is not None or model is not None:
        measured = _of(measured.select_from(figures.join(rows).join(runs)), machine, model)
    values = defaultdict(list)
    for row_id, *figure in connection.execute(measured):
        values[row_id].append(figure)
    ordered = sorted(connection.execute(_of(chosen, machine, model)), key=itemgetter(7, 0))
    return _grouped(ordered, values)


def _of(chosen: Select[Any], machine: str | None, model: str | None) -> Select[Any]:
    if machine is not None:
        chosen = chosen.where(runs.c.machine == machine)
    return chosen if model is None else chosen.where(is_model(model))


def _grouped(ordered: list[Any], values: dict[int, list[Any]]) -> Trends:
    """Rows in the order of their time, with their figures, put to the series they belong to."""
    outcomes: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    points: dict[tuple[str, ...], list[Observation]] = defaultdict(list)
    better: dict[tuple[str, ...], Any] = {}
    labels: dict[tuple[str, ...], str] = {}
    for row_id, *key, label, run_id, started_at, status, reason in ordered:
        row = tuple(key)
        labels[row] = label
        outcomes[row].append(
            Outcome(run_id=run_id, started_at=started_at, status=status, reason=reason)
        )
        for metric, value, low, high, direction in values.get(row_id, ()):
            one = (*row, metric)
            better[one] = direction
            points[one].append(
                Observation(run_id=run_id, started_at=started_at, value=value, low=low, high=high)
            )
    return Trends(
        series=tuple(
            Series(key=_key(one), label=labels[one[:-1]], better=better[one], points=tuple(found))
            for one, found in sorted(points.items())
        ),
        rows=tuple(
            RowHistory(key=_key((*row, STATUS)), label=labels[row], outcomes=tuple(found))
            for row, found in sorted(outcomes.items())
        ),
    )


def _key(parts: tuple[str, ...]) -> SeriesKey:
    machine, model, backend, settings, metric = parts
    return SeriesKey(
        machine=machine, model=model, backend=backend, settings=settings, metric=metric
    )
