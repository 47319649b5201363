"""Differences against the reference row: what is compared, with what, and what never is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.planning.comparing.differences import (
    attach_differences,
    compare_quality,
    reference_row,
)
from llmfit.records import HellaSwag, Perplexity, RunRecord
from llmfit.testing import make_record


def text_of(row: RunRecord) -> Perplexity:
    """The row's perplexity."""
    assert row.perplexity is not None
    return row.perplexity


def test_differences_are_of_the_rows_own_figures() -> None:
    """The means are the differences of what the two rows report, in points, units and shares."""
    bf16 = make_record("bf16", acc_norm=0.82, perplexity=6.14)
    nf4 = make_record("nf4", acc_norm=0.81, perplexity=6.47)
    difference = compare_quality(nf4, bf16)
    assert difference is not None and difference.reference == "bf16"
    assert difference.acc_norm is not None and difference.perplexity is not None
    assert difference.perplexity_ratio is not None
    assert difference.acc_norm.mean == pytest.approx(-0.01)
    assert difference.perplexity.mean == pytest.approx(0.33, rel=1e-6)
    assert difference.perplexity_ratio.mean == pytest.approx(6.47 / 6.14 - 1, rel=1e-6)
    assert not any(
        d.tie for d in (difference.acc_norm, difference.perplexity, difference.perplexity_ratio)
    )


def test_equal_figures_tie() -> None:
    """Rows whose figures differ by noise tie in all that is compared."""
    difference = compare_quality(
        make_record("sdpa", perplexity=6.1402), make_record("bf16", perplexity=6.14)
    )
    assert difference is not None and difference.acc_norm and difference.perplexity
    assert difference.acc_norm.tie and difference.perplexity.tie


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "wikitext"},
        {"protocol": "llama.cpp, window 512"},
        {"n_documents": 2},
        {"block_tokens": (1000, *(2000,) * 48, 3000)},
        {"block_nll": (), "block_tokens": ()},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_perplexities_of_other_tokens_are_not_compared(changes: dict[str, object]) -> None:
    """Another task, protocol, number of documents or block layout leaves no difference."""
    bf16 = make_record("bf16", acc_norm=None)
    other = make_record("nf4", acc_norm=None)
    other = replace(other, perplexity=replace(text_of(other), **changes))
    assert compare_quality(other, bf16) is None
    assert attach_differences([bf16, other])[1].difference is None


def test_accuracies_on_other_items_are_not_compared() -> None:
    """Another number of questions, or another task, leaves no difference."""
    bf16 = make_record("bf16", n=1000, perplexity=None)
    assert compare_quality(make_record("nf4", n=500, perplexity=None), bf16) is None
    same = make_record("nf4", n=1000, perplexity=None)
    assert same.hellaswag is not None
    other = replace(same, hellaswag=replace(same.hellaswag, task="hellaswag_de"))
    assert compare_quality(other, bf16) is None


def test_one_block_has_no_interval_and_so_no_difference() -> None:
    """A text of a single block says nothing about chance, so it is not compared."""
    rows = []
    for backend in ("bf16", "nf4"):
        row = make_record(backend, acc_norm=None)
        text = text_of(row)
        one = replace(text, block_nll=text.block_nll[:1], block_tokens=text.block_tokens[:1])
        rows.append(replace(row, perplexity=one))
    assert compare_quality(rows[1], rows[0]) is None


def test_without_answers_accuracies_are_compared_by_their_errors() -> None:
    """A record that kept no answer per item gets the wider unpaired interval, named as such."""
    scores = [HellaSwag(acc=a, acc_norm=a, stderr=0.01, n=1000) for a in (0.80, 0.79)]
    bf16, nf4 = (
        replace(make_record(b, perplexity=None), hellaswag=score)
        for b, score in zip(("bf16", "nf4"), scores, strict=True)
    )
    difference = compare_quality(nf4, bf16)
    assert difference is not None and difference.acc_norm is not None
    assert difference.acc_norm.tie and "unpaired" in difference.acc_norm.method


def test_differences_are_attached_to_all_but_the_reference() -> None:
    """Each ok row gets its difference, the reference none, a failed row none; order is kept."""
    failed = replace(make_record("int8"), status="failed", reason="killed.")
    rows = [make_record("nf4"), failed, make_record("bf16"), make_record("awq")]
    result = attach_differences(rows)
    assert [row.backend for row in result] == ["nf4", "int8", "bf16", "awq"]
    assert [row.difference is not None for row in result] == [True, False, False, True]
    assert attach_differences([]) == ()


def test_attaching_again_resamples_nothing_but_follows_the_reference() -> None:
    """A second call keeps what is there; differences against another row are replaced."""
    rows = attach_differences([make_record("bf16"), make_record("int8"), make_record("nf4")])
    again = attach_differences(rows)
    assert all(a.difference is b.difference for a, b in zip(rows, again, strict=True))
    without = attach_differences(rows[1:])
    standard = reference_row(without)
    assert standard is not None and standard.difference is None
    others = [row for row in without if row is not standard]
    assert [row.difference and row.difference.reference for row in others] == [standard.backend]
