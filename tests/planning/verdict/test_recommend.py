"""The verdict's rules, one by one, on rows with known figures."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest

from llmfit.errors import UsageError
from llmfit.planning.comparing.differences import attach_differences, compare_quality, reference_row
from llmfit.planning.verdict.candidate import candidate
from llmfit.planning.verdict.constraints import Constraints, Objective
from llmfit.planning.verdict.judge import Judge
from llmfit.planning.verdict.policy import broken
from llmfit.planning.verdict.recommend import fits, recommend
from llmfit.records import (
    Difference,
    Environment,
    Memory,
    Perplexity,
    QualityDifference,
    RunRecord,
    SpeedPrediction,
    Verdict,
)
from llmfit.testing import GB, make_record


def reason_against(verdict: Verdict, backend: str) -> str:
    """The reason for which ``backend`` was not picked."""
    return next(r.reason for r in verdict.rejected if r.backend == backend)


def reference_table() -> list[RunRecord]:
    """The published figures for Llama-3.1-8B on a 24 GB card."""
    return list(_reference_table())


@cache
def _reference_table() -> tuple[RunRecord, ...]:
    """The rows with their differences, which take longest, reckoned once."""
    figures = [
        ("bf16", 16.0, 38, 0.821, 6.14),
        ("sdpa", 14.2, 52, 0.821, 6.14),
        ("compiled", 14.2, 68, 0.821, 6.14),
        ("int8", 8.5, 35, 0.818, 6.21),
        ("nf4", 4.9, 42, 0.812, 6.47),
        ("gptq", 4.8, 55, 0.815, 6.39),
        ("awq", 4.7, 52, 0.816, 6.35),
    ]
    rows = [
        make_record(b, peak_gb=gb, tokens_per_s=rate, acc_norm=acc, perplexity=ppl)
        for b, gb, rate, acc, ppl in figures
    ]
    gguf = make_record(
        "gguf", peak_gb=5.0, tokens_per_s=18, acc_norm=0.813, perplexity=6.42, device="cpu"
    )
    return attach_differences([*rows, gguf])


def first_blocks(row: RunRecord, count: int) -> Perplexity:
    """The row's perplexity over its first blocks only, as ``--limit`` gives it."""
    text = row.perplexity
    assert text is not None
    nll, tokens = text.block_nll[:count], text.block_tokens[:count]
    return replace(text, block_nll=nll, block_tokens=tokens, n_tokens=sum(tokens))


def test_without_a_budget_the_fastest_wins() -> None:
    """On the published table with room for everything, compiled bf16 is the pick."""
    verdict = recommend(reference_table(), budget_bytes=None)
    assert verdict.backend == "compiled"
    assert len(verdict.rejected) == 7
    assert "fastest" in verdict.reasons[0] and "68.0" in verdict.reasons[0]
    assert reason_against(verdict, "bf16") == "slower: 38.0 tokens/s against 68.0"


def test_the_budget_excludes_what_peaks_above_it() -> None:
    """With 8 GB only the 4-bit rows are left, and the fastest of them is taken."""
    verdict = recommend(reference_table(), budget_bytes=8 * GB)
    assert verdict.backend == "gptq"
    assert reason_against(verdict, "int8") == "does not fit: needs 8.50 GB of 8.00 GB"
    assert any("4.80 GB of GPU memory of the 8.00 GB allowed" in r for r in verdict.reasons)


def test_the_budget_is_of_gpu_memory() -> None:
    """A row on the CPU fits any GPU budget."""
    gguf = make_record("gguf", device="cpu", peak_gb=5.0)
    assert fits(gguf, 1 * GB)
    assert recommend([gguf], budget_bytes=1 * GB).backend == "gguf"


def test_predicted_memory_decides_where_none_was_measured() -> None:
    """A row without a measured peak is held to its prediction; one with neither is let through."""
    row = make_record("awq", peak_gb=9.0)
    assert row.memory is not None
    predicted_only = replace(row, memory=replace(row.memory, peak_bytes=None))
    unknown = replace(row, memory=replace(row.memory, peak_bytes=None, predicted_bytes=None))
    assert not fits(predicted_only, 8 * GB)
    assert fits(unknown, 8 * GB)


def test_perplexity_above_five_percent_is_turned_down() -> None:
    """NF4's published +5.4 % is beyond the tolerance and GPTQ's +4.1 % is inside it."""
    verdict = recommend(reference_table(), budget_bytes=8 * GB)
    assert (
        reason_against(verdict, "nf4")
        == "loses quality: perplexity +5.4 % against bf16 (+5.3 to +5.5), 5 % allowed"
    )
    assert any("+4.1 % against bf16" in reason for reason in verdict.reasons)


def test_accuracy_worse_beyond_the_interval_is_turned_down() -> None:
    """Five points on 1,000 paired items are a loss; on 20 items they are within the doubt."""
    for n, pick in ((1000, "bf16"), (20, "nf4")):
        rows = [
            make_record("bf16", tokens_per_s=30, acc_norm=0.80, perplexity=None, n=n),
            make_record("nf4", tokens_per_s=60, acc_norm=0.75, perplexity=None, n=n),
        ]
        verdict = recommend(rows, budget_bytes=None)
        assert verdict.backend == pick
        if pick == "bf16":
            assert "HellaSwag acc_norm −5.0 points against bf16" in reason_against(verdict, "nf4")


def test_a_small_real_loss_is_within_the_tolerance() -> None:
    """Half a point is accepted even when the interval excludes zero."""
    rows = [
        make_record("bf16", tokens_per_s=30, acc_norm=0.80, n=10_000),
        make_record("awq", tokens_per_s=60, acc_norm=0.795, n=10_000),
    ]
    quality = compare_quality(rows[1], rows[0])
    assert quality is not None and quality.acc_norm is not None and quality.acc_norm.high < 0
    assert recommend(rows, budget_bytes=None).backend == "awq"


def test_overlapping_speeds_go_to_the_smaller_memory() -> None:
    """Speeds whose intervals overlap are a tie, and the row with less memory is taken."""
    rows = [
        make_record("gptq", tokens_per_s=55, spread=0.05, peak_gb=4.8),
        make_record("awq", tokens_per_s=53, spread=0.05, peak_gb=4.7),
        make_record("nf4", tokens_per_s=40, spread=0.05, peak_gb=4.0),
    ]
    verdict = recommend(rows, budget_bytes=None)
    assert verdict.backend == "awq"
    assert "tie" in verdict.reasons[0] and "gptq" in verdict.reasons[0]
    assert reason_against(verdict, "gptq") == (
        "as fast as awq within the intervals, and takes 4.80 GB of GPU memory "
        "against 4.70 GB of GPU memory"
    )
    assert reason_against(verdict, "nf4").startswith("slower")


def test_unsteady_runs_do_not_tie_with_everything() -> None:
    """A fast row with a wide interval is not traded for a row a tenth as fast."""
    rows = [
        make_record("bf16", tokens_per_s=25, spread=0.8, peak_gb=1),
        make_record("gguf", tokens_per_s=250, spread=0.99, peak_gb=2),
    ]
    assert recommend(rows, budget_bytes=None).backend == "gguf"


def test_unmeasured_quality_is_not_judged_and_said_so() -> None:
    """Without quality figures the verdict rests on speed and memory, and tells."""
    rows = [
        make_record(b, tokens_per_s=r, acc_norm=None, perplexity=None)
        for b, r in (("bf16", 30), ("nf4", 60))
    ]
    verdict = recommend(rows, budget_bytes=None)
    assert verdict.backend == "nf4"
    assert "Quality was not measured, so it is not judged." in verdict.reasons
    assert any(r.startswith("Published for its format: perplexity +1.5") for r in verdict.reasons)


def test_a_missing_reference_is_replaced_and_named() -> None:
    """Where bf16 did not fit, the best scored row is the yardstick, and the reasons name it."""
    bf16 = replace(
        make_record("bf16"),
        status="does_not_fit",
        reason="needs 16 GB.",
        decode=None,
        hellaswag=None,
        perplexity=None,
    )
    rows = [
        bf16,
        make_record("int8", tokens_per_s=35, perplexity=6.21),
        make_record("nf4", tokens_per_s=42, perplexity=6.60),
        make_record("awq", tokens_per_s=41, perplexity=6.35, peak_gb=4.7),
    ]
    verdict = recommend(rows, budget_bytes=10 * GB)
    standard = reference_row(rows, "bf16")
    assert standard is not None and standard.backend == "int8"
    assert verdict.backend == "awq"
    assert any("judged against int8" in reason for reason in verdict.reasons)
    assert reason_against(verdict, "bf16") == "does not fit: needs 16 GB."
    assert "against int8" in reason_against(verdict, "nf4")


def test_different_protocols_are_not_compared() -> None:
    """Perplexities of different windows say nothing about each other."""
    bf16 = make_record("bf16", acc_norm=None)
    other = Perplexity(token=9.0, protocol="window 512", n_tokens=100)
    row = make_record("nf4", tokens_per_s=60, acc_norm=None, perplexity=None)
    verdict = recommend([bf16, replace(row, perplexity=other)], budget_bytes=None)
    assert verdict.backend == "nf4"
    assert any("cannot be compared" in reason for reason in verdict.reasons)


def test_no_ok_row_gives_no_pick() -> None:
    """When nothing ran, or nothing suits, the verdict is empty-handed and says why."""
    failed = replace(make_record("bf16"), status="failed", reason="killed by signal 9.")
    verdict = recommend([failed], budget_bytes=None)
    assert verdict.backend is None and "none of the rows ran (failed: 1)" in verdict.reasons[0]
    assert reason_against(verdict, "bf16") == "failed: killed by signal 9."
    too_big = recommend([make_record("bf16", peak_gb=16)], budget_bytes=8 * GB)
    assert too_big.backend is None and "none fits 8.00 GB" in too_big.reasons[0]
    worse = recommend(
        [make_record("bf16", peak_gb=16), make_record("nf4", peak_gb=4, perplexity=9.0)],
        budget_bytes=8 * GB,
    )
    assert worse.backend is None and "keeps the quality" in worse.reasons[0]
    assert recommend([], budget_bytes=None).backend is None


def test_a_gpu_pick_names_the_way_out_on_the_cpu() -> None:
    """A pick that needs the GPU comes with the CPU row for when the GPU is busy; others do not."""
    verdict = recommend(reference_table(), budget_bytes=8 * GB)
    assert verdict.reasons[-1] == (
        "Instead gguf if the GPU is busy: 18.0 (17.8–18.2) tokens/s on the CPU, 5.00 GB of RAM."
    )
    on_cpu = [replace(r, device="cpu") for r in reference_table()]
    assert not any("busy" in r for r in recommend(on_cpu, budget_bytes=None).reasons)


def test_the_verdict_is_the_same_in_every_order_of_rows() -> None:
    """The pick and the reasons do not depend on the order of the rows."""
    rows = reference_table()
    first = recommend(rows, budget_bytes=8 * GB)
    for seed in range(10):
        random.Random(seed).shuffle(rows)
        again = recommend(rows, budget_bytes=8 * GB)
        assert (again.backend, again.reasons) == (first.backend, first.reasons)
        assert set(again.rejected) == set(first.rejected)


def test_a_tie_is_called_a_tie() -> None:
    """Where both intervals hold 0, the pick's quality is a tie in accuracy and in perplexity."""
    rows = [
        make_record("bf16", tokens_per_s=30, acc_norm=0.800, perplexity=6.140),
        make_record("nf4", tokens_per_s=60, acc_norm=0.799, perplexity=6.1405),
    ]
    verdict = recommend(rows, budget_bytes=None)
    assert verdict.backend == "nf4"
    sentence = next(reason for reason in verdict.reasons if reason.startswith("Quality"))
    accuracy, perplexity = sentence.split("; ")
    assert accuracy.endswith(", a tie)") and perplexity.endswith(", a tie).")


def test_a_perplexity_that_may_be_within_the_tolerance_is_let_through() -> None:
    """+5.4 % with an interval that begins below 5 % is doubt, not loss; the sentence shows it."""
    rows = [
        make_record("bf16", tokens_per_s=30, acc_norm=None, perplexity=6.14),
        make_record("nf4", tokens_per_s=60, acc_norm=None, perplexity=6.47),
    ]
    assert recommend(rows, budget_bytes=None).backend == "bf16"
    few = [replace(row, perplexity=first_blocks(row, 3)) for row in rows]
    noisy = few[1].perplexity
    assert noisy is not None
    nll = tuple(x + d for x, d in zip(noisy.block_nll, (-80, 0, 80), strict=True))
    few[1] = replace(few[1], perplexity=replace(noisy, block_nll=nll))
    assert recommend(few, budget_bytes=None).backend == "nf4"


def test_the_verdict_rests_on_the_differences_in_the_rows() -> None:
    """A difference that a row carries is judged as it stands, not computed once more."""
    rows = [make_record("bf16", tokens_per_s=30), make_record("nf4", tokens_per_s=60)]
    lost = QualityDifference(
        reference="bf16", perplexity_ratio=Difference(mean=0.2, low=0.1, high=0.3)
    )
    verdict = recommend([rows[0], replace(rows[1], difference=lost)], budget_bytes=None)
    assert verdict.backend == "bf16"
    assert "perplexity +20.0 % against bf16 (+10.0 to +30.0)" in reason_against(verdict, "nf4")


def test_a_figure_that_cannot_be_compared_is_named() -> None:
    """A text of one block has no interval: the accuracy is judged, and the reasons say what not."""
    rows = [make_record(b, tokens_per_s=r, perplexity=6.0) for b, r in (("bf16", 30), ("nf4", 60))]
    rows = [replace(row, perplexity=first_blocks(row, 1)) for row in rows]
    sentence = recommend(rows, budget_bytes=None).reasons[-1]
    assert sentence.startswith("Quality: HellaSwag acc_norm 80.0 %, 0.00 points against bf16 (")
    assert sentence.endswith("perplexity 6.00, not comparable with bf16's, so not judged.")


def test_rows_from_two_machines_are_refused() -> None:
    """Neither differences nor a verdict mix hardware or versions; the field is named."""
    here = Environment(
        platform="Linux",
        python="3.12.1",
        cpu="Example CPU",
        cpu_cores=8,
        ram_bytes=32 * 2**30,
        gpu="NVIDIA GeForce RTX 3090",
        packages={"torch": "2.13.0"},
    )
    for there, field in (
        (replace(here, gpu="NVIDIA GeForce RTX 4090"), "gpu .*3090.*4090"),
        (replace(here, packages={"torch": "2.12.0"}), "torch .*2.13.0.*2.12.0"),
    ):
        rows = [make_record("bf16", environment=here), make_record("nf4", environment=there)]
        for judge in (attach_differences, partial(recommend, budget_bytes=None)):
            with pytest.raises(UsageError, match=field):
                judge(rows)
        gone = replace(rows[1], status="failed", reason="killed.")
        assert recommend([rows[0], gone], budget_bytes=None).backend == "bf16"


# ---------------------------------------------------------------- constraints and objectives


def test_each_objective_takes_its_best() -> None:
    """On the published table each objective picks what its column says is best."""
    rows = reference_table()
    picks = {
        objective: recommend(rows, Constraints(device="gpu"), objective=objective).backend
        for objective in ("speed", "quality", "memory")
    }
    # bf16, sdpa and compiled tie at 6.14; of them compiled is the fastest.
    assert picks == {"speed": "compiled", "quality": "compiled", "memory": "awq"}
    assert recommend(rows, objective="memory").backend == "gguf"  # takes no GPU memory at all


def test_the_balance_is_a_geometric_mean() -> None:
    """The balanced pick has the greatest mean of speed, memory and quality, reckoned by hand."""
    rows = reference_table()[:-1]
    verdict = recommend(rows, Constraints(memory_bytes=9 * GB), objective="balanced")
    parts = {  # speed ÷ fastest, least memory ÷ own, 1 − rise ÷ (2 × 5 %)
        "int8": (35 / 55, 4.7 / 8.5, 1 - (6.21 / 6.14 - 1) / 0.1),
        "gptq": (55 / 55, 4.7 / 4.8, 1 - (6.39 / 6.14 - 1) / 0.1),
        "awq": (52 / 55, 4.7 / 4.7, 1 - (6.35 / 6.14 - 1) / 0.1),
    }
    means = {name: math.prod(shares) ** (1 / 3) for name, shares in parts.items()}
    assert max(means, key=means.__getitem__) == "awq"
    assert means["gptq"] > 0.965 * means["awq"], "a tie, which goes to the faster"
    assert verdict.backend == "gptq" and verdict.tied == ("awq",)
    assert f"less balanced: {means['int8']:.3f}" in reason_against(verdict, "int8")


def test_the_margin_stays_free() -> None:
    """A row that fits the budget, but not with a tenth of it kept free, is turned down."""
    row = make_record("gptq", peak_gb=7.5)
    assert recommend([row], Constraints(memory_bytes=8 * GB)).backend == "gptq"
    verdict = recommend([row], Constraints(memory_bytes=8 * GB, margin=0.1))
    assert verdict.backend is None
    assert (
        reason_against(verdict, "gptq")
        == "does not fit: needs 7.50 GB of 8.00 GB with 10 % kept free"
    )


def test_what_the_driver_counts_is_held_against_the_budget() -> None:
    """Context and reserved memory count on a GPU, the idle interpreter on a CPU."""
    on_gpu = make_record("nf4", peak_gb=7.8)
    assert on_gpu.memory is not None
    memory = replace(on_gpu.memory, driver_peak_bytes=int(8.3 * GB))
    assert recommend([on_gpu], budget_bytes=8 * GB).backend == "nf4"
    assert recommend([replace(on_gpu, memory=memory)], budget_bytes=8 * GB).backend is None
    on_cpu = make_record("gguf", device="cpu", peak_gb=7.8)
    assert on_cpu.memory is not None
    idle = replace(on_cpu, memory=replace(on_cpu.memory, idle_ram_bytes=GB // 2))
    bounds = Constraints(ram_bytes=8 * GB)
    assert recommend([on_cpu], bounds).backend == "gguf"
    verdict = recommend([idle], bounds)
    assert reason_against(verdict, "gguf") == "does not fit: needs 8.30 GB of 8.00 GB"


def test_device_and_least_rate_bound_the_choice() -> None:
    """Rows elsewhere, and rows slower than asked, are turned down with their figure."""
    rows = reference_table()
    on_cpu = recommend(rows, Constraints(device="cpu"))
    assert on_cpu.backend == "gguf"
    assert reason_against(on_cpu, "awq") == "runs on the GPU, the CPU is asked for"
    fast = recommend(rows, Constraints(min_tokens_per_s=50), objective="memory")
    assert fast.backend == "awq"
    assert reason_against(fast, "nf4") == "too slow: 42.0 (41.6–42.4) tokens/s of at least 50.0"
    none = recommend(rows, Constraints(device="cpu", min_tokens_per_s=20))
    assert none.backend is None and "reaches 20.0 tokens/s" in none.reasons[0]


def test_the_loss_allowed_can_be_set() -> None:
    """With 6 % allowed NF4 is kept, with 1 % only INT8's sisters in 16 bits are."""
    rows = reference_table()
    loose = recommend(rows, Constraints(perplexity_rise=0.06), objective="memory")
    assert "loses quality" not in reason_against(loose, "nf4")
    tight = recommend(rows, Constraints(perplexity_rise=0.01, acc_norm_loss=1))
    for name in ("int8", "nf4", "gptq", "awq", "gguf"):
        assert "loses quality: perplexity" in reason_against(tight, name)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"memory_bytes": 0}, "memory_bytes must be a number above 0, not 0"),
        ({"ram_bytes": -1}, "ram_bytes must be"),
        ({"min_tokens_per_s": float("nan")}, "min_tokens_per_s must be"),
        ({"margin": 1.0}, "margin must be a share"),
        ({"margin": -0.1}, "margin must be a share"),
        ({"acc_norm_loss": -0.01}, "acc_norm_loss must be"),
        ({"perplexity_rise": float("nan")}, "perplexity_rise must be"),
        ({"device": "tpu"}, "unknown device 'tpu'; known are gpu, cpu"),
    ],
)
def test_bounds_without_sense_are_refused(bounds: dict[str, Any], words: str) -> None:
    """A constraint that cannot be meant is a usage error that names it and its value."""
    with pytest.raises(UsageError, match=words):
        Constraints(**bounds)


def test_an_unknown_objective_and_two_budgets_are_refused() -> None:
    """Both are usage errors with the values in them."""
    with pytest.raises(UsageError, match="known are speed, quality, memory, balanced"):
        recommend([], objective="price")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"8\.00 GB and 6\.00 GB"):
        recommend([], Constraints(memory_bytes=8 * GB), budget_bytes=6 * GB)


# ---------------------------------------------------------------- ties, front, changes


def test_ties_are_named() -> None:
    """Rows as fast as the pick stand in the verdict as its ties."""
    rows = [
        make_record("gptq", tokens_per_s=55, spread=0.05, peak_gb=4.8),
        make_record("awq", tokens_per_s=53, spread=0.05, peak_gb=4.7),
        make_record("nf4", tokens_per_s=40, spread=0.05, peak_gb=4.0),
    ]
    assert recommend(rows).tied == ("gptq",)
    assert recommend(reference_table()).tied == ()


def test_a_tie_that_nothing_settles_is_left_open() -> None:
    """Two rows alike in all that was measured tie, and the reason does not invent a difference."""
    rows = [make_record(b, acc_norm=None, perplexity=None) for b in ("gptq", "awq")]
    verdict = recommend(rows)
    assert verdict.backend == "awq" and verdict.tied == ("gptq",)
    assert verdict.reasons[0].endswith("between these nothing measured decides.")
    assert set(verdict.pareto) == {"awq", "gptq"}


def test_the_front_of_the_published_table() -> None:
    """compiled is the fastest and unharmed, each smaller row pays; bf16, sdpa and NF4 only lose."""
    verdict = recommend(reference_table())
    assert verdict.pareto == ("compiled", "int8", "gptq", "awq", "gguf")
    small = recommend(reference_table(), budget_bytes=8 * GB)
    assert small.pareto == ("gptq", "awq", "gguf"), "what does not fit is no choice"


def test_the_pick_is_on_the_front() -> None:
    """Of rows that tie in speed and memory, one with a worse quality is not the pick."""
    rows = [
        make_record("bf16", tokens_per_s=20, peak_gb=16),
        make_record("gptq", tokens_per_s=55, peak_gb=4.70, perplexity=6.40),
        make_record("awq", tokens_per_s=55, peak_gb=4.72, perplexity=6.20),
    ]
    verdict = recommend(rows)
    assert verdict.backend == "awq" and verdict.tied == ("gptq",)
    assert "gptq" not in verdict.pareto
    assert verdict.reasons[0].endswith("of these its perplexity is the lowest.")


def test_what_would_change_the_choice_does_change_it() -> None:
    """Each memory or quality that the verdict names, once granted, makes that row the pick."""
    rows = reference_table()
    verdict = recommend(rows, budget_bytes=8 * GB)
    more = next(c for c in verdict.changes if "more of GPU memory" in c)
    assert more == (
        "6.20 GB more of GPU memory (14.2 GB in all) would admit compiled: "
        "68.0 (67.3–68.7) tokens/s."
    )
    assert recommend(rows, budget_bytes=int(14.2 * GB)).backend == "compiled"
    less = next(c for c in verdict.changes if c.startswith("With less than 4.80 GB"))
    assert "awq" in less and recommend(rows, budget_bytes=int(4.8 * GB) - 1).backend == "awq"
    tight = Constraints(memory_bytes=8 * GB, perplexity_rise=0.02)
    strict = recommend(rows, tight)
    assert strict.backend is None
    allow = next(c for c in strict.changes if "more perplexity" in c and "awq" in c)
    percent = float(allow.split(" %")[0].removeprefix("Allow "))
    assert 3 < percent < 3.6
    assert recommend(rows, replace(tight, perplexity_rise=percent / 100)).backend == "awq"


def test_changes_of_random_rows_hold() -> None:
    """On random figures, every budget named as admitting a row makes that row the pick."""
    seen = 0
    for seed in range(60):
        rng = random.Random(seed)
        rows = [
            make_record(
                f"row{i}",
                tokens_per_s=rng.uniform(10, 100),
                peak_gb=round(rng.uniform(3, 16), 2),
                acc_norm=None,
                perplexity=None,
            )
            for i in range(5)
        ]
        budget = int(rng.uniform(4, 12) * GB)
        verdict = recommend(rows, budget_bytes=budget)
        for change in verdict.changes:
            found = re.match(
                r".* more of GPU memory \((.*) GB in all\) would admit (row\d): ", change
            )
            if found is None:
                continue
            seen += 1
            row = next(r for r in rows if r.backend == found[2])
            assert row.memory is not None and row.memory.peak_bytes is not None
            for enough in (row.memory.peak_bytes + 1, int(float(found[1]) * GB)):
                assert recommend(rows, budget_bytes=enough).backend == found[2]
    assert seen > 20


@pytest.mark.parametrize("peak_gb", [8.354, 8.346, 12.04, 12.06, 0.0123, 123.4])
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_the_memory_that_is_named_is_enough(peak_gb: float, margin: float) -> None:
    """As it is shown: 8.354 GB are not to be had from 8.35."""
    bounds = Constraints(memory_bytes=int(peak_gb * GB) // 2, margin=margin)
    (change,) = recommend([make_record("bf16", peak_gb=peak_gb)], bounds).changes
    found = re.search(r"\((.*) (GB|MB) in all\)", change)
    assert found is not None
    enough = int(float(found[1]) * (GB if found[2] == "GB" else GB // 1000))
    assert enough <= 1.02 * peak_gb * GB / (1 - margin)
    granted = recommend(
        [make_record("bf16", peak_gb=peak_gb)], replace(bounds, memory_bytes=enough)
    )
    assert granted.backend == "bf16"


@pytest.mark.parametrize("rate", [52.06, 52.04, 9.996, 1234.5])
def test_the_rate_that_is_named_is_reached(rate: float) -> None:
    """52.06 tokens/s are no 52.1."""
    rows = [make_record("bf16", tokens_per_s=rate)]
    (change,) = recommend(rows, Constraints(min_tokens_per_s=2 * rate)).changes
    named = float(change.split()[2].replace(",", ""))
    assert 0.99 * rate < named <= rate
    assert recommend(rows, Constraints(min_tokens_per_s=named)).backend == "bf16"


@pytest.mark.parametrize("objective", ["quality", "memory", "balanced"])
def test_what_is_not_known_is_not_the_best(objective: Objective) -> None:
    """A row whose figure is missing does not win by it, however fast, and says what is missing."""
    known = [make_record("bf16", tokens_per_s=40, peak_gb=16), make_record("sdpa", peak_gb=14)]
    unknown = make_record("nf4", tokens_per_s=90, acc_norm=None, perplexity=None)
    if objective == "memory":
        unknown = replace(make_record("nf4", tokens_per_s=90), memory=None)
    verdict = recommend([*known, unknown], objective=objective)
    assert verdict.backend in ("bf16", "sdpa")
    what = {"balanced": "memory or quality"}.get(objective, objective)
    assert reason_against(verdict, "nf4") == f"its {what} is not known"


def test_predictions_that_all_are_too_large_blame_the_memory() -> None:
    """And no device that nobody asked for."""
    rows = [
        replace(predicted_row(name, 40.0, 10.0), status="does_not_fit") for name in ("nf4", "awq")
    ]
    for device in (None, "gpu"):
        bounds = Constraints(memory_bytes=8 * GB, device=device)  # type: ignore[arg-type]
        (reason,) = recommend(rows, bounds).reasons
        assert reason == "No format can be recommended: none fits 8.00 GB."


def test_where_nothing_is_known_no_tie_is_claimed() -> None:
    """With no row scored, quality cannot choose: the fastest is taken, and that is said."""
    rows = [
        make_record(name, tokens_per_s=rate, acc_norm=None, perplexity=None)
        for name, rate in (("bf16", 40), ("nf4", 90))
    ]
    verdict = recommend(rows, objective="quality")
    assert verdict.backend == "nf4"
    assert (
        "which is the closest in quality is not known, so the fastest is taken."
        in (verdict.reasons[0])
    )
    against = reason_against(verdict, "bf16")
    assert against.startswith("its quality is not known, nor nf4's, and decodes 40.0 tokens/s")


def test_rows_that_do_not_compare_are_shown_without_a_pick() -> None:
    """They were measured all the same: the reason names what differs, and each row has one."""
    here = Environment(platform="Linux", python="3.12.1", cpu="A", cpu_cores=8, ram_bytes=2**35)
    rows = [
        make_record("bf16", environment=here),
        make_record("nf4", environment=replace(here, cpu="B")),
        replace(make_record("awq"), status="failed", reason="killed."),
    ]
    judged, verdict = Judge().judged(rows)
    assert judged == tuple(rows) and verdict.backend is None
    assert "cpu is 'A' in one and 'B' in the other" in verdict.reasons[0]
    assert [r.backend for r in verdict.rejected] == ["bf16", "nf4", "awq"]
    assert reason_against(verdict, "awq") == "failed: killed."
    assert Judge().judged(rows[:1])[1].backend == "bf16"


def test_a_row_that_did_not_fit_comes_back_with_its_prediction() -> None:
    """What more memory would bring is told of rows that were never run, as predicted."""
    sdpa = replace(
        make_record("sdpa", peak_gb=16.2),
        status="does_not_fit",
        reason="needs 16.2 GB",
        decode=None,
        hellaswag=None,
        perplexity=None,
        predicted_tokens_per_s=SpeedPrediction(estimate=50, low=45, high=55, basis="published"),
    )
    assert sdpa.memory is not None
    sdpa = replace(sdpa, memory=replace(sdpa.memory, peak_bytes=None))
    verdict = recommend([sdpa, make_record("awq", tokens_per_s=30)], budget_bytes=10 * GB)
    assert verdict.backend == "awq" and not verdict.predicted
    assert verdict.changes[0] == (
        "6.60 GB more of GPU memory (16.6 GB in all) would admit sdpa: "
        "predicted 50.0 (45.0–55.0) tokens/s."
    )


# ---------------------------------------------------------------- predictions


def predicted_row(backend: str, need_gb: float, rate: float, **changes: Any) -> RunRecord:
    """A row that was not to be run, with predictions alone."""
    row = RunRecord(
        backend=backend,
        label=backend,
        status="skipped",
        reason="the weights are not here",
        device="cuda",
        memory=Memory(device="cuda", predicted_bytes=int(need_gb * GB)),
        predicted_only=True,
        predicted_tokens_per_s=SpeedPrediction(
            estimate=rate, low=0.8 * rate, high=1.2 * rate, basis="stated default"
        ),
    )
    return replace(row, **changes)


def predicted_table() -> list[RunRecord]:
    """Rows as for Llama-3.1-8B in 8 GB, nothing run."""
    too_large = {"status": "does_not_fit", "reason": "needs 16.9 GB, the budget is 8.00 GB"}
    return [
        predicted_row("bf16", 16.9, 18, **too_large),
        predicted_row("int8", 9.4, 12, **too_large),
        predicted_row("nf4", 6.4, 25),
        predicted_row("gptq", 6.5, 42),
        predicted_row("awq", 6.4, 40),
        replace(
            predicted_row("gguf", 5.6, 8),
            device="cpu",
            memory=Memory(device="cpu", predicted_bytes=int(5.6 * GB)),
        ),
    ]


def test_predictions_are_judged_where_nothing_ran() -> None:
    """Nothing was run: the pick rests on predictions and published quality, and says so."""
    verdict = recommend(predicted_table(), budget_bytes=8 * GB)
    assert verdict.predicted and verdict.backend == "awq" and verdict.tied == ("gptq",)
    told = " ".join(verdict.reasons)
    assert "Nothing was run" in told and "predicted 40.0 (32.0–48.0) tokens/s" in told
    assert "Quality, published: perplexity +2.4 to +3.4 %" in told
    assert "AWQ paper" in told, "the source is named"
    assert reason_against(verdict, "nf4") == "slower: predicted 25.0 tokens/s against 40.0"
    assert reason_against(verdict, "bf16").startswith("does not fit: needs 16.9 GB")
    assert any("predicted" in change for change in verdict.changes)


def test_a_format_beyond_the_tolerance_as_published_is_not_picked() -> None:
    """Q3_K_M costs 10.5 % on Llama-3-8B and 4.7 % at best: 4 % allowed is too little."""
    rows = [predicted_row("gguf:q3_k_m", 4.2, 60), predicted_row("gptq", 6.5, 42)]
    verdict = recommend(rows, Constraints(perplexity_rise=0.04))
    assert verdict.backend == "gptq"
    assert (
        reason_against(verdict, "gguf:q3_k_m")
        == "loses quality: perplexity +4.7 to +10.5 % as published, 4 % allowed"
    )
    assert verdict.changes[0].startswith(
        "Allow 4.8 % more perplexity, as published, and gguf:q3_k_m"
    )


def test_one_row_that_ran_makes_the_verdict_a_measured_one() -> None:
    """Predictions do not compete with measurements."""
    rows = [*predicted_table(), make_record("sdpa", tokens_per_s=5, peak_gb=7)]
    verdict = recommend(rows, budget_bytes=8 * GB)
    assert not verdict.predicted and verdict.backend == "sdpa"
    assert reason_against(verdict, "awq") == "skipped: the weights are not here"


def test_a_row_whose_rate_is_not_predicted_says_so() -> None:
    """Unknown is not slow: the reason is that the rate is not known."""
    rows = [predicted_row("gptq", 6.5, 42), predicted_row("awq", 6.4, 40)]
    rows[1] = replace(rows[1], predicted_tokens_per_s=None)
    verdict = recommend(rows)
    assert verdict.backend == "gptq"
    assert reason_against(verdict, "awq") == "its decode rate could not be predicted"


def test_a_rejection_names_its_bound() -> None:
    """Each row that is turned down has the first bound that it breaks; a slower one has none."""
    bounds = Constraints(memory_bytes=9 * GB, min_tokens_per_s=40)
    failed = replace(make_record("compiled"), status="failed", reason="killed.")
    rows = [row for row in reference_table() if row.backend != "compiled"]
    verdict = recommend([*rows, failed], bounds)
    assert verdict.backend == "gptq"
    assert {r.backend: r.bound for r in verdict.rejected} == {
        "bf16": "memory",
        "sdpa": "memory",
        "compiled": "run",
        "int8": "rate",
        "nf4": "perplexity",
        "awq": None,
        "gguf": "rate",
    }


@pytest.mark.parametrize(
    ("acc_norm", "perplexity", "bounds"),
    [
        ((-0.03, -0.009), (0.049, 0.09), ()),
        ((-0.03, -0.011), (0.049, 0.09), ("accuracy",)),
        ((-0.03, -0.009), (0.051, 0.09), ("perplexity",)),
        ((-0.03, -0.011), (0.051, 0.09), ("accuracy", "perplexity")),
    ],
)
def test_a_row_is_turned_down_only_for_what_its_whole_interval_shows(
    acc_norm: tuple[float, float], perplexity: tuple[float, float], bounds: tuple[str, ...]
) -> None:
    """1 point and 5 % are held against the better end of the interval, for both figures alike."""
    row = replace(
        make_record("nf4"),
        difference=QualityDifference(
            reference="bf16",
            acc_norm=Difference(mean=sum(acc_norm) / 2, low=acc_norm[0], high=acc_norm[1]),
            perplexity_ratio=Difference(
                mean=sum(perplexity) / 2, low=perplexity[0], high=perplexity[1]
            ),
        ),
    )
    assert broken(candidate(row, make_record("bf16"), predicted=False), Constraints()) == bounds
