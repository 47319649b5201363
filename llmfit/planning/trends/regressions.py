"""What became worse and has not recovered: Series ─► Step ─► Regression."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from llmfit.planning.comparing.differences import compare_quality
from llmfit.planning.trends.causes import likely_causes
from llmfit.planning.trends.steps import segments, step_between
from llmfit.records import Difference, RunRecord
from llmfit.trend_records import Regression, RowHistory, Series

STATUS = "status"
"""Metric of a regression that is a row which does not run any more."""

Records = Callable[[str, str], RunRecord | None]
"""The full record of a run's row, by run id and backend; None where it is not kept."""


def regressions(
    series: Iterable[Series], rows: Iterable[RowHistory], records: Records
) -> tuple[Regression, ...]:
    """Rows that ran and do not any more, then the steps for the worse that still stand.

    A step stands while the newest level is worse, beyond noise and the least share, than the one
    before it: a recovery in part leaves it standing. The newest such step of a series counts.
    Where two records answered the same items, their paired interval decides.
    """
    lost = [each for row in rows for each in _lost(row, records)]
    gone = {_row_of(each) for each in lost}
    steps = [
        each
        for one in series
        if (one.key.machine, one.key.model, one.key.backend, one.key.settings) not in gone
        for each in _standing(one, records)
    ]
    return (*lost, *sorted(steps, key=lambda each: -abs(each.change or 0.0)))


def _row_of(found: Regression) -> tuple[str, str, str, str]:
    key = found.key
    return key.machine, key.model, key.backend, key.settings


def _lost(row: RowHistory, records: Records) -> Iterator[Regression]:
    """A row that ran before and does not now; one that was not to be run tells nothing."""
    tried = [each for each in row.outcomes if each.status != "skipped"]
    good = next((i for i in range(len(tried) - 1, -1, -1) if tried[i].status == "ok"), None)
    if good is None or good == len(tried) - 1:
        return
    last, first_bad, newest = tried[good], tried[good + 1], tried[-1]
    before, after = (records(each.run_id, row.key.backend) for each in (last, first_bad))
    yield Regression(
        key=row.key,
        label=row.label,
        before=None,
        after=None,
        change=None,
        threshold=None,
        since_run=first_bad.run_id,
        since=first_bad.started_at,
        good_run=last.run_id,
        causes=_causes(before, after),
        newest_run=newest.run_id,
        status=newest.status,
        reason=newest.reason,
    )


def _standing(series: Series, records: Records) -> Iterator[Regression]:
    levels = segments(series)
    newest = levels[-1]
    for old, new in reversed(list(itertools.pairwise(levels))):
        first, whole = step_between(series, old, new), step_between(series, old, newest)
        if first is None or whole is None or not (first.worse and whole.worse):
            continue
        good, bad = series.points[old.members[-1]], series.points[new.members[0]]
        before, after = (records(each.run_id, series.key.backend) for each in (good, bad))
        paired = _paired(series.key.metric, before, after)
        if paired is not None and paired.tie:
            continue
        step = replace(whole, at=new.members[0])
        yield Regression(
            key=series.key,
            label=series.label,
            before=step.before,
            after=step.after,
            change=step.change,
            threshold=step.threshold,
            since_run=bad.run_id,
            since=bad.started_at,
            good_run=good.run_id,
            newest_run=series.points[-1].run_id,
            causes=_causes(before, after),
        )
        return


def _causes(before: RunRecord | None, after: RunRecord | None) -> tuple[str, ...]:
    return () if before is None or after is None else likely_causes(before, after)


def _paired(metric: str, before: RunRecord | None, after: RunRecord | None) -> Difference | None:
    """The paired difference of a quality figure over the same items; None where there is none."""
    paired = metric == "hellaswag.acc_norm" or metric.startswith("perplexity.")
    if before is None or after is None or not paired:
        return None
    found = compare_quality(after, before)
    if found is None:
        return None
    return found.acc_norm if metric == "hellaswag.acc_norm" else found.perplexity_ratio
