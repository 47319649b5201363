"""Trackers get the figures: read back from a real MLflow store, and from an offline wandb run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.errors import StoreError, UsageError
from llmfit.nightly import sinks
from llmfit.testing import make_comparison, make_record
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


def test_mlflow_has_a_run_for_each_row(report: Report, tmp_path: Path) -> None:
    """With its figures, and what it ran on."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sinks.log_to_mlflow(report, uri)
    sinks.log_to_mlflow(report, uri)  # the experiment is there already
    client = mlflow.MlflowClient(tracking_uri=uri)
    number = client.get_experiment_by_name("llmfit").experiment_id
    runs = client.search_runs([number])
    assert len(runs) == 4
    found = {run.data.params["backend"]: run.data.metrics for run in runs}
    assert found["nf4"]["decode.tokens_per_s"] == 50.0 and set(found) == {"bf16", "nf4"}
    assert runs[0].data.params["version.torch"] == "2.13.0"


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
    """A file for each row, which ``wandb sync`` sends; the figures are in it."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    sinks.log_to_wandb(report, "llmfit")
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(b"decode.tokens_per_s" in file.read_bytes() for file in files)


def test_a_package_that_is_missing_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the line that installs it."""
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--wandb needs the package wandb") as refused:
        sinks.check_sinks(mlflow=None, wandb="x")
    assert "pip install wandb" in str(refused.value)
    sinks.check_sinks(mlflow=None, wandb=None)
