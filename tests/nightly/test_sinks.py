"""Trackers get the figures: read back from a real MLflow store, and from an offline wandb run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.errors import StoreError, UsageError
from llmfit.nightly import sinks
from llmfit.records import TaskMetric, TaskResult
from llmfit.testing import make_comparison, make_model, make_record
from llmfit.trend_records import Report

pytestmark = pytest.mark.slow


@pytest.fixture
def report() -> Report:
    """Two rows that ran and one that did not."""
    failed = replace(make_record("int8"), status="failed", reason="no kernel")
    rows = [make_record("bf16", tokens_per_s=40), make_record("nf4", tokens_per_s=50), failed]
    return Report(
        title="x",
        made_at="2026-01-05T03:00:00",
        comparisons=(make_comparison(rows, run_id="r1"),),
        series=(),
        regressions=(),
        baseline="history",
    )


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store, whose tables take some seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_mlflow_has_a_run_for_each_row(report: Report, uri: str) -> None:
    """With its figures, and what it ran on."""
    mlflow = pytest.importorskip("mlflow")
    sinks.log_to_mlflow(report, uri)
    sinks.log_to_mlflow(report, uri)  # the experiment is there already
    client = mlflow.MlflowClient(tracking_uri=uri)
    number = client.get_experiment_by_name("llmfit").experiment_id
    runs = client.search_runs([number])
    assert len(runs) == 4
    found = {run.data.params["backend"]: run.data.metrics for run in runs}
    assert found["nf4"]["decode.tokens_per_s"] == 50.0 and set(found) == {"bf16", "nf4"}
    assert runs[0].data.params["version.torch"] == "2.13.0"


HOSTILE = "../../x\n\x1b[31m=" + "y" * 7000
"""A name that is a path, holds controls, and is longer than MLflow takes."""


def test_names_that_trackers_do_not_take_are_made_ones_that_they_take(uri: str) -> None:
    """Every row arrives, on one line, whatever a model, a package or a task is called."""
    mlflow = pytest.importorskip("mlflow")
    metric = TaskMetric(name=HOSTILE, filter="..", value=0.5, higher_is_better=True)
    task = TaskResult(task=HOSTILE, version=None, n=1, num_fewshot=0, metrics=(metric,))
    made = make_comparison([make_record("bf16", tasks=(task,))], model=make_model(name=HOSTILE))
    machine = replace(made.environment, packages={HOSTILE: HOSTILE}, gpu=HOSTILE)
    report = Report(
        title="x",
        made_at="2026-01-05T03:00:00",
        comparisons=(replace(made, environment=machine, run_id=HOSTILE),),
        series=(),
        regressions=(),
        baseline="history",
    )
    sinks.log_to_mlflow(report, uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("llmfit").experiment_id])
    (run,) = [r for r in runs if r.data.params["model"].startswith(r"../../x \x1b[31m=y")]
    assert 0.5 in run.data.metrics.values() and 40.0 in run.data.metrics.values()
    texts = [run.info.run_name, *run.data.params, *run.data.params.values(), *run.data.metrics]
    assert not any(char < " " for text in texts for char in text)


def test_mlflow_that_is_not_there_is_an_error(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of ours, at once."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match="did not take"):
        sinks.log_to_mlflow(report, "http://127.0.0.1:1")


def test_wandb_writes_runs_offline(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file for each row, which ``wandb sync`` sends; the figures are in it.

    The command line is not, in which a password may be, nor what else wandb gathers.
    """
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llmfit", "--store", "postgresql://me:PLANTEDpg@host/x"])
    sinks.log_to_wandb(report, "llmfit")
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        assert b"decode.tokens_per_s" in file.read_bytes()
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(b"PLANTEDpg" in file.read_bytes() for file in written)
    assert not {"requirements.txt", "wandb-metadata.json"} & {file.name for file in written}


def test_a_package_that_is_missing_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the line that installs it."""
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--wandb needs the package wandb") as refused:
        sinks.check_sinks(mlflow=None, wandb="x")
    assert "pip install wandb" in str(refused.value)
    sinks.check_sinks(mlflow=None, wandb=None)
