"""Is a row's quality still that of the reference? Used by the verdict and by the tables.

Every judgement is made on the 95 % interval of a paired difference. An interval that holds 0 is a
tie. A row loses quality where even the interval's better end is worse than the tolerance; so what
the data do not show does not count against a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmfit.planning.comparing.comparable import require_comparable
from llmfit.records import (
    Difference,
    HellaSwag,
    Perplexity,
    QualityDifference,
    RunRecord,
)
from llmfit.stats import (
    paired_difference,
    perplexity_difference,
    perplexity_ratio,
    unpaired_difference,
)

REFERENCE = "bf16"

ACC_NORM_TOLERANCE = 0.01
"""HellaSwag acc_norm may fall by this share of the items (1 point): a row is turned down when
even the upper end of the paired interval is lower. A choice; for scale, the common 4-bit formats
lose 0.5 to 1 point on 8 B models."""

PERPLEXITY_TOLERANCE = 0.05
"""Token perplexity may rise by this share (5 %) of the reference's: a row is turned down when
even the lower end of the paired interval is higher. A choice; for scale, the common 4-bit formats
rise by 3 to 6 % on 8 B models."""


def attach_differences(
    rows: Sequence[RunRecord], *, reference: str = REFERENCE
) -> tuple[RunRecord, ...]:
    """The rows with ``difference`` set on each ok row that can be held against the reference row.

    That row is ``reference_row(rows, reference)``. A difference against it that is there already
    is kept, so that nothing is resampled twice. Raises UsageError, naming the field, where ok
    rows come from different machines, versions, models or settings.
    """
    check_comparable(rows)
    standard = reference_row(rows, reference)
    return tuple(_attached(row, standard) for row in rows)


def check_comparable(rows: Sequence[RunRecord]) -> None:
    """Raise UsageError, naming the differing field, where ok rows may not be compared."""
    ran = [row for row in rows if row.status == "ok"]
    for row in ran[1:]:
        require_comparable(ran[0], row)


def compare_quality(row: RunRecord, reference: RunRecord) -> QualityDifference | None:
    """Quality of ``row`` minus ``reference``'s on the same items; None where nothing compares.

    Nothing is compared across tasks, protocols, numbers of items or of documents, or where the
    blocks of scored tokens differ, as with another tokenizer.
    """
    texts = _same_text(row.perplexity, reference.perplexity)
    difference = QualityDifference(
        reference=reference.backend,
        acc_norm=_accuracy(row.hellaswag, reference.hellaswag),
        perplexity=texts and perplexity_difference(*texts),
        perplexity_ratio=texts and perplexity_ratio(*texts),
    )
    unknown = QualityDifference(reference=reference.backend)
    return None if difference == unknown else difference


def accuracy_kept(
    difference: QualityDifference | None, allowed: float = ACC_NORM_TOLERANCE
) -> bool:
    """False when acc_norm is lower by more than ``allowed`` over its whole interval."""
    change = difference.acc_norm if difference is not None else None
    return change is None or change.high >= -allowed


def perplexity_kept(
    difference: QualityDifference | None, allowed: float = PERPLEXITY_TOLERANCE
) -> bool:
    """False when the perplexity is higher by more than ``allowed`` over its whole interval."""
    change = difference.perplexity_ratio if difference is not None else None
    return change is None or change.low <= allowed


def quality_kept(difference: QualityDifference | None) -> bool:
    """True when nothing that could be compared is worse than the tolerances allow."""
    return accuracy_kept(difference) and perplexity_kept(difference)


def reference_row(rows: Sequence[RunRecord], reference: str = REFERENCE) -> RunRecord | None:
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


def _attached(row: RunRecord, standard: RunRecord | None) -> RunRecord:
    if standard is None or row is standard or row.status != "ok":
        return replace(row, difference=None)
    if row.difference is not None and row.difference.reference == standard.backend:
        return row
    return replace(row, difference=compare_quality(row, standard))


def _accuracy(row: HellaSwag | None, reference: HellaSwag | None) -> Difference | None:
    if row is None or reference is None or (row.task, row.n) != (reference.task, reference.n):
        return None
    if row.correct and len(row.correct) == len(reference.correct):
        return paired_difference(row.correct, reference.correct)
    return unpaired_difference(row.acc_norm, row.stderr, reference.acc_norm, reference.stderr)


Losses = tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]


def _same_text(row: Perplexity | None, reference: Perplexity | None) -> Losses | None:
    """Losses of both by block and the blocks' lengths, where both scored the same tokens."""
    if row is None or reference is None or not row.block_tokens:
        return None
    if _text(row) != _text(reference):
        return None
    return row.block_nll, reference.block_nll, row.block_tokens


def _text(score: Perplexity) -> tuple[object, ...]:
    return score.task, score.protocol, score.n_documents, score.n_tokens, score.block_tokens
