"""Our figures beside the published table, and what is said of that table."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.backends.registry import get_backend
from llmfit.errors import UsageError
from llmfit.planning.catalogue import find
from llmfit.planning.comparing.reference import METRICS, RTX_3090, beside, find_reference
from llmfit.planning.memory.weights import weights_bytes
from llmfit.planning.speed.hardware import find_gpu
from llmfit.records import EvaluationSettings, Plan, SpeedPrediction, Workload
from llmfit.testing import make_comparison, make_model, make_record
from llmfit.units import GB


def test_the_figures_are_the_published_ones(shared_data: Path) -> None:
    """All eight rows hold, in order, memory, rate, HellaSwag, perplexity and remark as written."""
    text = (shared_data.parent / "design.md").read_text(encoding="utf-8")
    table = text.split("## The reference table")[1].split("\n## ")[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ][2:]
    assert len(lines) == len(RTX_3090.rows) == 8
    for written, row in zip(lines, RTX_3090.rows, strict=True):
        label, memory, rate, hellaswag, perplexity, note = written
        gigabytes = re.findall(r"[\d.]+", memory)[-1]  # "0 (5 GB RAM)": what is in RAM
        assert row.label == label
        assert row.memory_bytes == float(gigabytes) * GB
        assert row.tokens_per_s == float(rate)
        assert row.hellaswag == pytest.approx(float(hellaswag.rstrip(" %")) / 100)
        assert row.perplexity == float(perplexity)
        assert row.note == note


def test_its_rows_are_the_default_backends_on_a_card_and_model_of_the_tables() -> None:
    """Each row is a backend of ours; model and card are known by the names that it gives them."""
    for backend in RTX_3090.backends:
        get_backend(backend)
    assert find(RTX_3090.model) is not None
    assert find_gpu(RTX_3090.hardware).name == RTX_3090.hardware
    assert RTX_3090.workload.prompt_tokens + RTX_3090.workload.new_tokens == 512


def test_what_is_said_of_its_figures_holds() -> None:
    """The notes' bounds follow from parameters, formats and the card's bandwidth."""
    spec, card = make_model(), find_gpu(RTX_3090.hardware)
    assert spec.shape is not None
    assert card.bandwidth is not None
    read_bytes = 2 * (8_030_261_248 - 128_256 * 4096)
    assert round(read_bytes / 1e9, 1) == 15.0
    assert int(card.bandwidth / read_bytes) == 62
    rows = {row.backend: row for row in RTX_3090.rows}
    assert rows["compiled"].tokens_per_s > card.bandwidth / read_bytes
    assert rows["sdpa"].memory_bytes < 2 * 8_030_261_248
    for backend in ("nf4", "gptq", "awq"):
        weights = weights_bytes(spec.shape, backend)
        assert weights is not None
        assert 5.65 * GB < weights < 6.05 * GB
        assert rows[backend].memory_bytes < weights


def test_ours_stand_beside_theirs_with_the_ratio() -> None:
    """A measured row gives each figure, the table's and their quotient."""
    ours = make_record("nf4", tokens_per_s=84.0, peak_gb=6.37, acc_norm=0.406, perplexity=12.94)
    line = {row.backend: row for row in beside(make_comparison([ours]), RTX_3090).rows}["nf4"]
    assert line.memory_bytes.ratio == pytest.approx(6.37 / 4.9)
    assert line.tokens_per_s.ratio == pytest.approx(2.0)
    assert line.hellaswag.ratio == pytest.approx(0.5)
    assert line.perplexity.ratio == pytest.approx(2.0)
    for metric in METRICS:
        figure = line.figure(metric)
        assert figure.ours is not None
        assert figure.ratio == pytest.approx(figure.ours / figure.reference)
        assert not figure.predicted
        assert figure.missing is None


def test_every_row_of_the_table_has_its_line_and_what_is_missing_says_why() -> None:
    """Rows that were not run, failed, or did not fit, are there with their reason."""
    comparison = make_comparison(
        [
            make_record("bf16", status="failed", reason="the worker died: SIGKILL", decode=None),
            make_record(
                "awq",
                status="does_not_fit",
                reason="needs 6.36 GB, the budget is 5.00 GB",
                decode=None,
                predicted_tokens_per_s=SpeedPrediction(
                    estimate=50.0, low=30.0, high=70.0, basis="stated default"
                ),
            ),
        ]
    )
    lines = {row.backend: row for row in beside(comparison, RTX_3090).rows}
    assert tuple(lines) == RTX_3090.backends
    assert lines["bf16"].tokens_per_s.ours is None
    assert lines["bf16"].tokens_per_s.missing == "the worker died: SIGKILL"
    assert lines["awq"].tokens_per_s.predicted
    assert lines["awq"].tokens_per_s.ratio == pytest.approx(50 / 52)
    assert lines["awq"].memory_bytes.missing == "needs 6.36 GB, the budget is 5.00 GB"
    assert lines["gptq"].status == "skipped"
    assert lines["gptq"].memory_bytes.ours is None
    assert lines["gptq"].memory_bytes.missing == "not among the rows that were run"


def test_a_predicted_row_is_no_measurement() -> None:
    """Figures of a row that was not to be run are marked as predictions."""
    row = make_record("int8", predicted_only=True, decode=None)
    line = {r.backend: r for r in beside(make_comparison([row]), RTX_3090).rows}["int8"]
    assert line.memory_bytes.predicted
    assert line.hellaswag.ours is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": "synthetic"}, "random weights: there is no quality to score"),
        ({"evaluation": None}, "quality was not to be scored"),
        ({"evaluation": EvaluationSettings()}, "not scored; the row's notes say why"),
    ],
)
def test_missing_quality_says_why(changes: dict[str, object], reason: str) -> None:
    """Random weights, no evaluation asked, and an evaluation that failed are told apart."""
    plan = replace(Plan(backend="bf16", model=make_model(), device="cuda"), **changes)
    row = make_record("bf16", acc_norm=None, perplexity=None, plan=plan)
    line = beside(make_comparison([row]), RTX_3090).rows[0]
    assert line.tokens_per_s.missing is None
    assert line.hellaswag.missing == line.perplexity.missing == reason


def test_differences_between_the_machines_are_named() -> None:
    """Another card, a CPU, another workload or model are notes; the same is none of them."""
    same = make_comparison([make_record("bf16")], workload=RTX_3090.workload)
    assert beside(same, RTX_3090).notes == RTX_3090.notes
    other = replace(
        make_comparison([make_record("bf16", device="cpu")]),
        model=make_model(name="some/other-model"),
        workload=Workload(prompt_tokens=100, new_tokens=10, batch=4),
    )
    notes = " ".join(beside(other, RTX_3090).notes)
    for part in ("some/other-model", "on a CPU (Example CPU)", "batch 4, 100 + 10 tokens"):
        assert part in notes


def test_an_unknown_table_names_those_there_are() -> None:
    """A wrong name is one line with the right ones, exit code 2."""
    assert find_reference("RTX3090-Llama-3.1-8B") is RTX_3090
    with pytest.raises(UsageError, match=r"rtx3090-llama-3\.1-8b"):
        find_reference("rtx4090")
