"""The verdict that a comparison was asked for, kept with it: the same rows, the same verdict.

constraints, objective ─► Judge ─► rows with their differences, Verdict
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llmfit.errors import UsageError
from llmfit.planning.comparing.differences import attach_differences, check_comparable
from llmfit.planning.verdict.constraints import Constraints, Objective
from llmfit.planning.verdict.recommend import recommend
from llmfit.planning.verdict.wording import STATUS_WORDS
from llmfit.records import Rejection, RunRecord, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What a verdict goes by."""

    constraints: Constraints = field(default_factory=Constraints)
    objective: Objective = "speed"

    def judged(self, rows: Sequence[RunRecord]) -> tuple[tuple[RunRecord, ...], Verdict]:
        """``rows`` with their differences from the reference, and the verdict on them.

        Rows that may not be held against each other, as of machines that are not alike, are none
        the less measured: they stay as they are, and the verdict says why there is no pick.
        """
        try:
            check_comparable(rows)
        except UsageError as exc:
            return tuple(replace(row, difference=None) for row in rows), _none(rows, exc.message)
        held = attach_differences(rows)
        return held, self.verdict(held)

    def verdict(self, rows: Sequence[RunRecord]) -> Verdict:
        """The verdict alone. Raises UsageError for rows that may not be compared."""
        return recommend(rows, self.constraints, objective=self.objective)


def _none(rows: Sequence[RunRecord], why: str) -> Verdict:
    return Verdict(
        backend=None,
        reasons=(f"No format can be recommended: {why}",),
        rejected=tuple(
            Rejection(
                backend=row.backend,
                reason="not judged: it cannot be held against all other rows"
                if row.status == "ok"
                else f"{STATUS_WORDS[row.status]}: {row.reason or 'no reason was recorded'}",
            )
            for row in rows
        ),
    )
