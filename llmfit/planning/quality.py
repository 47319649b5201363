"""Is a row's quality still that of the reference? Used by the verdict and by the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfit.records import Difference, HellaSwag, Perplexity, RunRecord
from llmfit.stats import paired_difference, unpaired_difference

ACC_NORM_TOLERANCE = 0.01
"""HellaSwag acc_norm may fall by this share of the items (1 point): a row is turned down when
even the best end of the paired interval is lower. A choice; for scale, the common 4-bit formats
lose 0.5 to 1 point on 8 B models."""

PERPLEXITY_TOLERANCE = 0.05
"""Token perplexity may rise by this share (5 %) of the reference's. A choice; for scale, the
common 4-bit formats rise by 3 to 6 % on 8 B models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A row's quality against the reference's; None where either side was not measured."""

    acc_norm: Difference | None = None
    """Row − reference, share of items."""
    perplexity_change: float | None = None
    """Token perplexity of row ÷ reference − 1."""

    @property
    def measured(self) -> bool:
        """True when at least one of the two could be compared."""
        return self.acc_norm is not None or self.perplexity_change is not None

    @property
    def accuracy_kept(self) -> bool:
        """False when acc_norm is worse beyond its interval by more than the tolerance."""
        return self.acc_norm is None or self.acc_norm.high >= -ACC_NORM_TOLERANCE

    @property
    def perplexity_kept(self) -> bool:
        """False when the perplexity rose by more than the tolerance."""
        return self.perplexity_change is None or self.perplexity_change <= PERPLEXITY_TOLERANCE

    @property
    def kept(self) -> bool:
        """True when nothing that was measured is worse than allowed."""
        return self.accuracy_kept and self.perplexity_kept


def compare_quality(row: RunRecord, reference: RunRecord | None) -> Quality:
    """Quality of ``row`` against ``reference``; nothing is compared across tasks or protocols."""
    if reference is None:
        return Quality()
    return Quality(
        acc_norm=_accuracy(row.hellaswag, reference.hellaswag),
        perplexity_change=_perplexity(row.perplexity, reference.perplexity),
    )


def reference_row(rows: Sequence[RunRecord], reference: str) -> RunRecord | None:
    """The row that quality is judged against, or None where no ok row has a quality.

    That is ``reference`` itself; where it did not run, the ok row with the lowest token
    perplexity, or else with the highest acc_norm.
    """
    scored = [row for row in rows if row.status == "ok" and (row.hellaswag or row.perplexity)]
    for row in scored:
        if row.backend == reference:
            return row
    return min(scored, key=_loss, default=None)


def _loss(row: RunRecord) -> tuple[float, float]:
    perplexity = row.perplexity.token if row.perplexity else float("inf")
    return perplexity, -row.hellaswag.acc_norm if row.hellaswag else 0.0


def _accuracy(row: HellaSwag | None, reference: HellaSwag | None) -> Difference | None:
    if row is None or reference is None or (row.task, row.n) != (reference.task, reference.n):
        return None
    if row.correct and len(row.correct) == len(reference.correct):
        return paired_difference(row.correct, reference.correct)
    return unpaired_difference(row.acc_norm, row.stderr, reference.acc_norm, reference.stderr)


def _perplexity(row: Perplexity | None, reference: Perplexity | None) -> float | None:
    if row is None or reference is None:
        return None
    if (row.task, row.protocol) != (reference.task, reference.protocol):
        return None
    return row.token / reference.token - 1
