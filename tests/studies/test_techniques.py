"""The table of techniques: how figures are judged, what a row says, and the saved folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llmfit
from llmfit.benchmark import Benchmark
from llmfit.errors import BackendUnavailable, DoesNotFit, EvaluationError, UsageError
from llmfit.planning.comparing.differences import attach_differences
from llmfit.records import Workload
from llmfit.report.study import render_study
from llmfit.stats import sampled
from llmfit.studies import techniques
from llmfit.studies.base import Distilling, StudyContext
from llmfit.studies.reference import TECHNIQUES
from llmfit.studies.techniques.base import DEFAULT
from llmfit.studies.techniques.found import Found, Loss, Side, inside, range_text
from llmfit.studies.techniques.judging import findings
from llmfit.studies.techniques.measuring import EXPECTED, attempt
from llmfit.studies.techniques.models import format_found, rate_ratio, shallower
from llmfit.studies.techniques.running import flash_attention, kv_cache
from llmfit.studies.techniques.showing import main_table
from llmfit.studies.techniques.training import low_rank, training_steps
from llmfit.study_records import Ratio, StudyResult
from llmfit.testing import make_record

TINY = replace(
    DEFAULT,
    runs=2,
    step_batch=1,
    step_tokens=256,
    attention_batch=1,
    attention_tokens=256,
    cache_prompt=8,
    cache_new=8,
    held_out=2,
    batch=2,
    tokens=48,
    distil_steps=4,
    recovery_steps=2,
    tuned_questions=4,
    qlora_steps=3,
)


@pytest.fixture
def context():
    return StudyContext(bench=Benchmark("cpu"))


def by_name(found):
    return {each.technique: each for each in found}


def test_every_technique_of_the_design_has_a_range_and_a_row():
    assert list(EXPECTED) == [*TECHNIQUES, "QLoRA"]
    found = [Found(technique=name, status="failed", reason="r") for name in EXPECTED]
    assert [row.name for row in main_table(found, EXPECTED).rows] == [
        *TECHNIQUES,
        "QLoRA",
    ]


@pytest.mark.parametrize(
    ("value", "expected", "aspect", "verdict"),
    [
        (0.4999, (0.5, 0.5), "memory", True),
        (0.49, (0.5, 0.5), "memory", False),
        (0.9, (0.5, 0.9), "memory", True),
        (1.46, (1.5, 2.5), "speed", True),
        (1.44, (1.5, 2.5), "speed", False),
        (0.74, (0.7, 0.7), "speed", True),
        (0.0004, (0.0, 0.0), "quality", True),
        (0.001, (0.0, 0.0), "quality", False),
        (-0.02, (0.0, 0.005), "quality", True),
        (-0.02, (0.05, 0.15), "quality", False),
        (None, (0.0, 0.0), "quality", None),
        (0.1, None, "memory", None),
    ],
)
def test_a_figure_is_judged_at_the_digit_that_the_table_gives(value, expected, aspect, verdict):
    assert inside(value, expected, aspect) is verdict


def test_ranges_read_as_they_are_published():
    assert range_text((0.5, 0.9), "memory") == "50–90 %"
    assert range_text((0.5, 0.5), "memory") == "50 %"
    assert range_text((1.5, 2.5), "speed") == "1.5–2.5×"
    assert range_text((0.005, 0.015), "quality") == "0.5–1.5 %"
    assert range_text(None, "speed") is None


def test_memory_saved_is_what_is_left_of_the_baseline():
    found = Found(
        technique="INT8", before=Side(name="a", bytes=1000), after=Side(name="b", bytes=250)
    )
    assert found.memory_saved == pytest.approx(0.75)
    assert replace(found, after=Side(name="b")).memory_saved is None


def test_a_speed_within_the_noise_is_not_called_a_change():
    speed = Ratio(value=1.3, low=0.8, high=1.9, real=False)
    found = Found(technique="INT8", speed=speed, lost=Loss(share=0.01, of="9 questions", tie=True))
    text = findings([found], EXPECTED)[1]
    assert "no difference in speed beyond the noise" in text
    assert "loses 1.00 % of accuracy, which is within the noise" in text


def test_findings_name_each_figure_with_the_range_expected_of_it():
    found = Found(
        technique="INT8",
        before=Side(name="a", bytes=1000),
        after=Side(name="b", bytes=1100),
        speed=Ratio(value=0.5, low=0.4, high=0.6, real=True),
        lost=Loss(share=0.0, of="9 questions"),
    )
    assert findings([found], EXPECTED) == (
        "1 of 3 figures are inside the range expected of them.",
        "INT8 needs 10.0 % more memory (expected 50 %: outside), "
        "runs at 0.500× the baseline's speed (expected 0.9–1.1×: outside) "
        "and loses no accuracy (9 questions; expected 0–0.5 %: inside).",
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DoesNotFit("needs 9 GB"), "does_not_fit"),
        (BackendUnavailable("no such package"), "unavailable"),
        (ImportError("no such module"), "unavailable"),
        (EvaluationError("no numbers"), "failed"),
        (RuntimeError("no kernel image\nmore"), "failed"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does_not_fit"),
    ],
)
def test_what_cannot_run_is_a_row_with_its_reason(error, status):
    def stage():
        raise error

    found = attempt(("INT8", "INT4 AWQ"), stage)
    assert [each.technique for each in found] == ["INT8", "INT4 AWQ"]
    assert {each.status for each in found} == {status}
    assert str(error).partition("\n")[0] in (found[0].reason or "")


def test_other_errors_are_not_hidden():
    def stage():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        attempt(("INT8",), stage)


def test_formats_are_held_against_rows_of_the_same_comparison():
    rows = attach_differences(
        [
            make_record("bf16", tokens_per_s=30, acc_norm=0.8),
            make_record("sdpa", tokens_per_s=40, acc_norm=0.8, weights_bytes=1000),
            make_record("int8", tokens_per_s=20, acc_norm=0.79, weights_bytes=550),
        ]
    )
    found = format_found("INT8", rows[1], rows[2])
    assert found.speed is not None
    assert found.speed.value == pytest.approx(0.5)
    assert found.memory_saved == pytest.approx(0.45)
    assert found.lost is not None
    assert found.lost.share == pytest.approx(0.01)
    failed = replace(rows[2], status="unavailable", reason="bitsandbytes is not installed")
    assert format_found("INT8", rows[1], failed).reason == "bitsandbytes is not installed"


def test_rates_that_meet_are_no_change():
    close = rate_ratio(sampled([10.0, 11.0, 12.0]), sampled([11.0, 12.0, 13.0]))
    apart = rate_ratio(sampled([10.0, 10.1, 10.2]), sampled([20.0, 20.1, 20.2]))
    assert not close.real
    assert apart.real
    assert apart.value == pytest.approx(20.1 / 10.1)


def test_options_of_distillation_are_checked_before_anything_runs(context):
    with pytest.raises(UsageError, match="temperature"):
        techniques.run(replace(context, distilling=Distilling(temperature=0.0)))


@pytest.mark.slow
def test_checkpointing_saves_memory_and_gives_the_same_gradients_and_accuracy(context):
    found = by_name(training_steps(context, TINY))
    checkpointed = found["gradient checkpointing"]
    assert checkpointed.memory_saved is not None
    assert checkpointed.memory_saved > 0
    assert checkpointed.lost is not None
    assert checkpointed.lost.share == pytest.approx(0, abs=0.02)
    assert [check.holds for check in checkpointed.checks] == [True]
    assert found["mixed precision BF16"].memory_saved > 0


@pytest.mark.slow
def test_fused_attention_needs_less_memory_and_gives_the_same_states(context):
    (found,) = flash_attention(context, TINY)
    assert found.memory_saved is not None
    assert found.memory_saved > 0
    assert [check.holds for check in found.checks] == [True]


@pytest.mark.slow
def test_generation_with_a_cache_gives_the_same_tokens(context):
    (found,) = kv_cache(context, TINY)
    assert [check.holds for check in found.checks] == [True]
    assert found.lost is not None
    assert found.lost.share == 0


@pytest.mark.slow
def test_llmfit_compare_takes_the_folders_of_distilled_and_pruned_models(context, tmp_path: Path):
    torch.manual_seed(0)
    found = by_name(shallower(context, TINY, tmp_path))
    assert found["distillation"].details.layers == "0 5"
    assert found["distillation"].memory_saved > found["structured pruning"].memory_saved > 0
    assert found["distillation"].lost is not None
    for each in found.values():
        row = llmfit.compare(
            each.artifact,
            backends=("sdpa",),
            workload=Workload(prompt_tokens=8, new_tokens=4, repeats=1),
            evaluation=None,
            device="cpu",
            last_resort=False,
        ).rows[0]
        assert row.status == "ok"
        assert row.weights_bytes == each.after.bytes


@pytest.mark.slow
def test_qlora_learns_and_leaves_the_base_weights_alone(context):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    (found,) = low_rank(context, TINY)
    assert [check.holds for check in found.checks] == [True, True, True]
    assert found.memory_saved is not None
    assert found.memory_saved > 0.8


def test_table_fits_a_terminal_of_80_columns_and_marks_every_range():
    speed = Ratio(value=0.757, low=0.7, high=0.8, real=True)
    found = tuple(
        Found(
            technique=name,
            before=Side(name="a", seconds=1.0, bytes=1000),
            after=Side(name="b", seconds=1.3, bytes=1123),
            speed=speed,
            lost=Loss(share=-0.125, of="9 questions"),
        )
        for name in EXPECTED
    )
    result = StudyResult(
        study="techniques",
        title=techniques.TITLE,
        question=techniques.QUESTION,
        preset="default",
        device="cpu",
        tables=(main_table(found, EXPECTED),),
    )
    lines = render_study(result, "table", width=80).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("gradient checkpointing"))
    assert row.split()[2:] == ["−12.3", "%", "outside", "0.757×", "outside", "−12.5", "%", "inside"]
