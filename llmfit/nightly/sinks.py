"""The same figures to trackers that a team has already: MLflow, Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from llmfit.errors import StoreError, UsageError
from llmfit.planning.trends.figures import figures_of
from llmfit.records import Comparison, RunRecord
from llmfit.trend_records import Report

EXPERIMENT = "llmfit"


def check_sinks(*, mlflow: str | None, wandb: str | None) -> None:
    """Raise UsageError where a tracker is asked for whose package is missing."""
    for name, wanted in (("mlflow", mlflow), ("wandb", wandb)):
        if wanted is not None and find_spec(name) is None:
            raise UsageError(f"--{name} needs the package {name}.", hint=f"pip install {name}")


def log_to_mlflow(report: Report, uri: str) -> None:
    """A run in MLflow for each row that ran, in the experiment ``llmfit``. Raises StoreError."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        for comparison, row in _rows(report):
            made = client.create_run(number, run_name=f"{comparison.run_id}/{row.backend}")
            for name, value in _parameters(comparison, row).items():
                client.log_param(made.info.run_id, name, value)
            for figure in figures_of(row):
                client.log_metric(made.info.run_id, _metric(figure.metric), figure.value)
            client.set_terminated(made.info.run_id)
    except MlflowException as exc:
        raise StoreError(f"MLflow at {uri} did not take the rows: {exc}.") from exc


def log_to_wandb(report: Report, project: str) -> None:
    """A run in Weights & Biases for each row that ran. Raises StoreError."""
    import wandb

    try:
        for comparison, row in _rows(report):
            with wandb.init(
                project=project,
                name=f"{comparison.run_id}/{row.backend}",
                config=_parameters(comparison, row),
                reinit="finish_previous",
            ) as made:
                made.log({figure.metric: figure.value for figure in figures_of(row)})
    except wandb.Error as exc:
        raise StoreError(f"Weights & Biases did not take the rows: {exc}.") from exc


def _rows(report: Report) -> Iterator[tuple[Comparison, RunRecord]]:
    for comparison in report.comparisons:
        for row in comparison.rows:
            if row.status == "ok":
                yield comparison, row


def _parameters(comparison: Comparison, row: RunRecord) -> dict[str, Any]:
    work, machine = comparison.workload, comparison.environment
    return {
        "model": comparison.model.name,
        "backend": row.backend,
        "run_id": comparison.run_id,
        "machine": machine.gpu or machine.cpu,
        "batch": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        **{f"version.{name}": version for name, version in machine.packages.items()},
    }


def _metric(name: str) -> str:
    """MLflow takes letters, digits and ``_-. /`` in a metric's name."""
    return "".join(char if char.isalnum() or char in "_-. /" else "_" for char in name)
