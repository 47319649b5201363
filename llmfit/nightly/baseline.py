"""What runs are held against: the history, the last run, a tag or one record.

series of the runs' rows ─┬► history: where levels stepped
                          └► last, TAG, RECORD: the baseline's run, and the newest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmfit.errors import UsageError
from llmfit.nightly.config import HISTORY
from llmfit.planning.trends.regressions import regressions
from llmfit.planning.trends.steps import noise
from llmfit.trend_records import Regression, RowHistory, Series

if TYPE_CHECKING:
    from llmfit.store.store import Store
    from llmfit.store.trends import Trends

LAST = "last"
_LONGEST = 400
"""Newest observations of a series that are looked at."""


def check_baseline(store: Store, baseline: str) -> None:
    """Raise UsageError where ``baseline`` is neither a known word, nor a tag, nor a run."""
    if baseline not in (HISTORY, LAST) and not store.tagged(baseline):
        raise UsageError(
            f"no run in {store.name} has the tag or id {baseline!r}.",
            hint=f"{HISTORY}, {LAST}, a tag, or an id that llmfit history shows",
        )


def find_regressions(
    store: Store,
    trends: Trends,
    runs: Sequence[str],
    *,
    baseline: str = HISTORY,
) -> tuple[Regression, ...]:
    """What in ``runs`` is worse than the baseline, in series of which they are the newest.

    Raises StoreError.
    """
    newest = set(runs)
    series = [each for each in trends.series if each.points[-1].run_id in newest]
    rows = [each for each in trends.rows if each.outcomes[-1].run_id in newest]
    if baseline == HISTORY:
        series = [replace(each, points=each.points[-_LONGEST:]) for each in series]
        return regressions(series, rows, store.row)
    good = None if baseline == LAST else store.tagged(baseline)
    pairs = [pair for each in series if (pair := _pair(each, good)) is not None]
    return regressions(pairs, [_outcomes(each, good) for each in rows], store.row)


def night_trends(store: Store, machines: Sequence[str]) -> Trends:
    """The trends of all that a night's figures are filed under. Raises StoreError."""
    found = [store.trends(machine=name) for name in machines]
    return replace(
        found[0],
        series=tuple(series for each in found for series in each.series),
        rows=tuple(row for each in found for row in each.rows),
    )


def _pair(series: Series, good: frozenset[str] | None) -> Series | None:
    """The newest observation and the baseline's, with the noise of all; None without the latter."""
    before = [p for p in series.points[:-1] if good is None or p.run_id in good]
    if not before:
        return None
    return replace(series, points=(before[-1], series.points[-1]), noise=noise(series))


def _outcomes(row: RowHistory, good: frozenset[str] | None) -> RowHistory:
    before = [o for o in row.outcomes[:-1] if good is None or o.run_id in good]
    return replace(row, outcomes=(*before[-1:], row.outcomes[-1]))
