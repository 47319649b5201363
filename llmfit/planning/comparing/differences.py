"""How far a row's quality is from the reference's: paired differences with a 95 % interval.

An interval that holds 0 is a tie. The verdict judges by them, the tables show them.
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
