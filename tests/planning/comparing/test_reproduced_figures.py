"""A second run agrees with a record or does not, figure by figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmfit.planning.comparing.agreement import Figure, agreement
from llmfit.records import (
    Divergence,
    HellaSwag,
    Perplexity,
    RunRecord,
    TaskMetric,
    TaskResult,
)
from llmfit.stats import sampled
from llmfit.testing import make_record

PERPLEXITY = Perplexity(
    token=6.0, protocol="window", n_tokens=900, low=5.5, high=6.5, word=20.0, byte=1.7
)
DIVERGENCE = Divergence(
    reference="bf16", n_tokens=900, mean=0.02, low=0.015, high=0.025, median=0.01, p99=0.2,
    top1_agreement=0.9, top1_low=0.88, top1_high=0.92,
)  # fmt: skip
TASK = TaskResult(
    task="arc_easy", version="1.0", n=100, num_fewshot=0,
    metrics=(
        TaskMetric(name="acc", filter="none", value=0.5, stderr=0.05),
        TaskMetric(name="exact_match", filter="strict", value=0.4),
    ),
)  # fmt: skip


def full(**changes: Any) -> RunRecord:
    """A row with every figure that is judged; its five decode rates lie from 39.6 to 40.4."""
    row = make_record(
        "nf4",
        tokens_per_s=40.0,
        spread=0.01,
        peak_gb=8.0,
        hellaswag=HellaSwag(acc=0.4, acc_norm=0.5, stderr=0.05, n=100, acc_stderr=0.04),
        divergence=DIVERGENCE,
        tasks=(TASK,),
    )
    return replace(row, perplexity=PERPLEXITY, **changes)


def figures(recorded: RunRecord, again: RunRecord) -> dict[str, Figure]:
    """The judged figures by name."""
    return {figure.name: figure for figure in agreement(recorded, again).figures}


def test_an_identical_run_agrees_in_every_figure() -> None:
    """The same row twice: every figure is there, and inside."""
    judged = agreement(full(), full())
    assert judged.inside
    assert [figure.name for figure in judged.figures] == [
        "decode.tokens_per_s",
        "prefill.tokens_per_s",
        "ttft_s",
        "memory.peak_bytes",
        "hellaswag.acc",
        "hellaswag.acc_norm",
        "perplexity.token",
        "perplexity.word",
        "perplexity.byte",
        "kl_divergence",
        "top1_agreement",
        "tasks.arc_easy.acc",
        "tasks.arc_easy.exact_match,strict",
    ]
    assert all(figure.again == figure.recorded for figure in judged.figures)


@pytest.mark.parametrize(
    ("again", "inside"),
    [(40.3, True), (40.7, True), (41.0, False), (39.3, True), (39.0, False)],
)
def test_speeds_agree_where_their_intervals_meet(again: float, inside: bool) -> None:
    """39.6 to 40.4 meets 40.7 ± 1 % (from 40.29), and not 41 ± 1 % (from 40.59)."""
    found = figures(full(), make_record("nf4", tokens_per_s=again))["decode.tokens_per_s"]
    assert (found.low, found.high) == (pytest.approx(39.6), pytest.approx(40.4))
    assert found.inside is inside
    assert found.again == pytest.approx(again)


def test_a_single_repeat_is_judged_by_a_tolerance() -> None:
    """One sample has no interval: 10 % are allowed, and the figure says so."""
    one = full(ttft_s=sampled([2.0]))
    for value, inside in ((2.19, True), (2.21, False), (1.81, True), (1.79, False)):
        found = figures(one, full(ttft_s=sampled([value])))["ttft_s"]
        assert (found.tolerance, found.low, found.inside) == (pytest.approx(0.2), None, inside)


def test_memory_may_differ_by_a_tenth() -> None:
    """8 GB against 8.7 is inside, against 8.9 outside; of 40 MB, 16 MB more are inside."""
    assert figures(full(), make_record("nf4", peak_gb=8.7))["memory.peak_bytes"].inside
    outside = figures(full(), make_record("nf4", peak_gb=8.9))["memory.peak_bytes"]
    assert not outside.inside and outside.tolerance == pytest.approx(0.8e9)
    small = make_record("nf4", peak_gb=0.040)
    assert figures(small, make_record("nf4", peak_gb=0.055))["memory.peak_bytes"].inside
    assert not figures(small, make_record("nf4", peak_gb=0.057))["memory.peak_bytes"].inside


def test_quality_has_to_lie_in_the_recorded_interval() -> None:
    """Accuracies: ± 1.96 standard errors; perplexity and divergence: their bootstrap interval."""
    again = full(
        hellaswag=HellaSwag(acc=0.48, acc_norm=0.59, stderr=0.05, n=100),
        divergence=replace(DIVERGENCE, mean=0.026, top1_agreement=0.881),
    )
    again = replace(again, perplexity=replace(PERPLEXITY, token=6.6, word=20.1, byte=1.72))
    found = figures(full(), again)
    assert (found["hellaswag.acc"].low, found["hellaswag.acc"].high) == (
        pytest.approx(0.4 - 1.959964 * 0.04),
        pytest.approx(0.4 + 1.959964 * 0.04),
    )
    outside = {name for name, figure in found.items() if not figure.inside}
    assert outside == {"hellaswag.acc", "perplexity.token", "perplexity.byte", "kl_divergence"}
    assert not agreement(full(), again).inside


def test_tasks_are_matched_by_metric_and_filter() -> None:
    """A metric's own standard error counts, else 1 %; a metric that is gone is outside."""
    other = replace(TASK, metrics=(TaskMetric(name="acc", filter="none", value=0.59, stderr=0.05),))
    found = figures(full(), full(tasks=(other,)))
    assert found["tasks.arc_easy.acc"].inside
    missing = found["tasks.arc_easy.exact_match,strict"]
    assert missing.again is None and not missing.inside
    assert missing.tolerance == pytest.approx(0.004)


def test_a_row_that_fails_again_is_outside_with_its_reason() -> None:
    """Nothing measured in the second run: every figure is outside, and the reason is kept."""
    failed = RunRecord(backend="nf4", label="nf4", status="failed", reason="out of memory")
    judged = agreement(full(), failed)
    assert not judged.inside and judged.reason == "out of memory"
    assert all(figure.again is None and not figure.inside for figure in judged.figures)


def test_what_was_not_recorded_is_not_judged() -> None:
    """A record without quality is judged by speed and memory alone."""
    bare = make_record("nf4", acc_norm=None, perplexity=None)
    assert set(figures(bare, full())) == {
        "decode.tokens_per_s",
        "prefill.tokens_per_s",
        "ttft_s",
        "memory.peak_bytes",
    }


def test_a_recorded_value_outside_its_own_interval_still_agrees_with_itself() -> None:
    """A percentile interval of a skewed figure may lie beside it; equal values agree."""
    odd = replace(DIVERGENCE, mean=0.03)
    assert figures(full(divergence=odd), full(divergence=odd))["kl_divergence"].inside
