"""A record is run again for real, in processes of its own, and refused where something differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmfit
from llmfit.comparison import compare
from llmfit.errors import LlmfitError, ModelNotFound, StoreError, UsageError
from llmfit.keeping import Keeping
from llmfit.models import data_path
from llmfit.records import (
    Comparison,
    Environment,
    EvaluationSettings,
    RunRecord,
    Workload,
    read_record,
    to_json,
)
from llmfit.reproduction import reproduce

pytestmark = pytest.mark.usefixtures("imported_once")
QUICK = Workload(prompt_tokens=16, new_tokens=8, repeats=2)
QUALITY = (
    "hellaswag.acc", "hellaswag.acc_norm", "perplexity.token", "perplexity.word",
    "perplexity.byte", "kl_divergence", "top1_agreement",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the embedded model, a text, and a place for runs."""
    folder = tmp_path_factory.mktemp("reproduction")
    shutil.copytree(data_path("embedded"), folder / "model")
    text = data_path("text.txt").read_text(encoding="utf-8")
    (folder / "text.txt").write_text(text[:4000], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recorded(home: Path, imported_once: None) -> Comparison:
    """Two rows of that model with their quality, run once for all tests here."""
    return compare(
        str(home / "model"),
        backends=["bf16", "nf4"],
        workload=QUICK,
        evaluation=EvaluationSettings(
            hellaswag_file=str(data_path("hellaswag.jsonl")),
            text_file=str(home / "text.txt"),
            limit=10,
        ),
        threads=1,
        keeping=Keeping(runs_dir=str(home / "runs")),
        cache_dir=str(home / "cache"),
    )


def again(record: Any, home: Path) -> Any:
    """``reproduce`` with the runs in ``home``."""
    return reproduce(record, keeping=Keeping(runs_dir=str(home / "runs")))


def runs(home: Path) -> set[str]:
    """The ids of the runs so far."""
    return {path.name for path in (home / "runs").iterdir()}


@pytest.mark.slow
def test_a_row_records_what_a_second_run_takes(recorded: Comparison, home: Path) -> None:
    """Each row has machine, versions, content hashes of model and text, settings and warnings."""
    for row in recorded.rows:
        assert row.status == "ok", row.reason
        assert row.environment == recorded.environment
        assert row.plan is not None and row.plan.workload == QUICK
        assert row.plan.model.content_hash is not None
        assert str(home / "text.txt") in row.plan.inputs
        assert "few_samples" in {warning.code for warning in row.warnings}, "two repeats are few"


@pytest.mark.slow
def test_an_unchanged_model_gives_its_quality_again(recorded: Comparison, home: Path) -> None:
    """By a run's id: every quality figure of both rows is inside, and equal to the record's."""
    result = again(recorded.run_id, home)
    assert [row.backend for row in result.rows] == ["bf16", "nf4"]
    assert [row.status for row in result.rows] == ["ok", "ok"]
    for row, before in zip(result.rows, recorded.rows, strict=True):
        figures = {figure.name: figure for figure in row.figures}
        assert {"decode.tokens_per_s", "ttft_s", "memory.peak_bytes"} < figures.keys()
        quality = [name for name in QUALITY if name in figures]
        assert ("kl_divergence" in quality) is (before.divergence is not None)
        assert len(quality) >= 5
        for name in quality:
            assert figures[name].inside, figures[name]
            assert figures[name].again == pytest.approx(figures[name].recorded, rel=1e-6)
    assert result.run_id != recorded.run_id
    kept = read_record(Comparison, home / "runs" / result.run_id / "comparison.json")
    assert [row.backend for row in kept.rows] == ["bf16", "nf4"]


@pytest.mark.slow
def test_an_edited_figure_is_outside_and_a_lone_row_runs_with_its_reference(
    recorded: Comparison, home: Path
) -> None:
    """One row's file with a perplexity that was never measured: that figure alone is outside."""
    path = home / "runs" / recorded.run_id / "nf4.json"
    row = read_record(RunRecord, path)
    assert row.perplexity is not None and row.perplexity.high is not None
    wrong = replace(row, perplexity=replace(row.perplexity, token=9.9, low=9.5, high=10.5))
    edited = path.with_name("edited.json")
    edited.write_text(to_json(wrong))
    result = again(edited, home)
    edited.unlink()
    (judged,) = result.rows
    figures = {figure.name: figure for figure in judged.figures}
    assert not figures["perplexity.token"].inside
    assert figures["perplexity.token"].again == pytest.approx(row.perplexity.token, rel=1e-6)
    assert not judged.inside and not result.inside
    assert all(figures[name].inside for name in figures if name in QUALITY[:2] + QUALITY[3:])
    second = read_record(Comparison, home / "runs" / result.run_id / "comparison.json")
    expected = ["bf16", "nf4"] if row.divergence is not None else ["nf4"]
    assert [row.backend for row in second.rows] == expected


def environment(recorded: Comparison, **changes: Any) -> Environment:
    """The recorded machine with changes."""
    return replace(recorded.environment, **changes)


@pytest.mark.slow
def test_another_machine_is_refused_by_the_field(recorded: Comparison, home: Path) -> None:
    """A record of another GPU, or another torch, names both values, and nothing is run."""
    before = runs(home)
    row = recorded.rows[1]
    elsewhere = environment(recorded, gpu="NVIDIA GeForce RTX 3090", gpu_memory_bytes=24 * 10**9)
    with pytest.raises(UsageError, match="gpu is 'NVIDIA GeForce RTX 3090' in one and None in the"):
        again(replace(row, environment=elsewhere), home)
    packages = {**recorded.environment.packages, "torch": "1.0"}
    with pytest.raises(UsageError, match=r"torch is '1\.0' in one and"):
        again(replace(row, environment=environment(recorded, packages=packages)), home)
    assert runs(home) == before


@pytest.mark.slow
def test_a_changed_text_or_model_is_refused_with_both_hashes(
    recorded: Comparison, home: Path
) -> None:
    """An edited text, an edited config, a removed model: named with path and hashes."""
    before = runs(home)
    row = recorded.rows[0]
    assert row.plan is not None and row.plan.model.content_hash is not None
    text = home / "text.txt"
    kept = text.read_bytes()
    text.write_bytes(kept + b"One more sentence.")
    with pytest.raises(UsageError, match=r"text\.txt has content [0-9a-f]{40}, in the record"):
        again(recorded, home)
    text.write_bytes(kept)

    config = home / "model" / "config.json"
    kept = config.read_bytes()
    config.write_bytes(kept + b"\n")
    with pytest.raises(UsageError) as caught:
        again(row, home)
    assert str(home / "model") in caught.value.message
    assert row.plan.model.content_hash in caught.value.message
    config.write_bytes(kept)

    (home / "model").rename(home / "moved")
    with pytest.raises(ModelNotFound, match="model"):
        again(row, home)
    (home / "moved").rename(home / "model")
    assert runs(home) == before


def bare(**changes: Any) -> RunRecord:
    """A row without a plan."""
    return RunRecord(**{"backend": "nf4", "label": "NF4", "status": "ok", **changes})


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda at: "absent", UsageError, "no record 'absent'"),
        (lambda at: "", UsageError, "no record ''"),
        (lambda at: at, UsageError, "holds no record"),
        (
            lambda at: written(at / "x.json", "{]"),
            StoreError,
            "x.json is no record: it is not JSON",
        ),
        (lambda at: written(at / "x.json", '{"a": 1}'), StoreError, "x.json is not a RunRecord"),
        (
            lambda at: written(at / "x.json", '{"rows": 1}'),
            StoreError,
            "x.json is not a Comparison",
        ),
        (lambda at: bare(status="failed"), UsageError, "holds no row that ran"),
        (lambda at: bare(), UsageError, "the row nf4 records no plan"),
    ],
    ids=["absent", "empty", "folder", "no JSON", "other JSON", "rows", "failed", "no plan"],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], error: type[LlmfitError], says: str
) -> None:
    """Each is one error that names what was given, before anything runs."""
    with pytest.raises(error, match=says):
        reproduce(make(tmp_path), keeping=Keeping(runs_dir=str(tmp_path)))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def written(path: Path, text: str) -> Path:
    """A file with this text."""
    path.write_text(text)
    return path


def test_the_public_name() -> None:
    """``llmfit.reproduce`` is the function, also after its module was imported."""
    assert llmfit.reproduce is reproduce
