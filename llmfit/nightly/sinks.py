"""The same figures to trackers that a team has already: MLflow, Weights & Biases."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from llmfit.errors import StoreError, UsageError
from llmfit.network import is_offline
from llmfit.planning.trends.figures import figures_of
from llmfit.records import Comparison, RunRecord
from llmfit.redaction import without_passwords
from llmfit.report._text import plain
from llmfit.trend_records import Report

EXPERIMENT = "llmfit"
_LONGEST_NAME, _LONGEST_TEXT = 200, 500
"""Characters that every MLflow server takes (250 and 500). Source: its REST API's limits."""

_FIGURES_ALONE: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""wandb would send the command line too, in which a password may be, and more of the machine."""


def check_sinks(*, mlflow: str | None, wandb: str | None) -> None:
    """Raise UsageError for a tracker whose package is missing, or that is on a network not to use.

    What wandb keeps for later (WANDB_MODE=offline), and MLflow in a file, needs none.
    """
    if is_offline():
        if mlflow is not None and urlsplit(mlflow).scheme not in ("", "file", "sqlite"):
            raise _excluded(f"--mlflow {without_passwords(mlflow)}", "--mlflow sqlite:///FILE")
        if wandb is not None and os.environ.get("WANDB_MODE") != "offline":
            raise _excluded("--wandb", "WANDB_MODE=offline, and wandb sync later")
    for name, wanted in (("mlflow", mlflow), ("wandb", wandb)):
        if wanted is not None and find_spec(name) is None:
            raise UsageError(f"--{name} needs the package {name}.", hint=f"pip install {name}")


def _excluded(tracker: str, instead: str) -> UsageError:
    return UsageError(
        f"--offline and {tracker} exclude each other: that tracker is on the network.", hint=instead
    )


def log_to_mlflow(report: Report, uri: str) -> None:
    """A run in MLflow for each row that ran, in the experiment ``llmfit``. Raises StoreError."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        for comparison, row in _rows(report):
            made = client.create_run(number, run_name=_run_name(comparison, row))
            for name, value in _parameters(comparison, row).items():
                client.log_param(made.info.run_id, name, value)
            for figure in figures_of(row):
                client.log_metric(made.info.run_id, _name(figure.metric), figure.value)
            client.set_terminated(made.info.run_id)
    except MlflowException as exc:
        raise StoreError(f"MLflow at {uri} did not take the rows: {exc}.") from exc


def log_to_wandb(report: Report, project: str) -> None:
    """A run in Weights & Biases for each row that ran, its figures alone. Raises StoreError."""
    import wandb

    try:
        for comparison, row in _rows(report):
            with wandb.init(
                project=project,
                name=_run_name(comparison, row),
                config=_parameters(comparison, row),
                reinit="finish_previous",
                settings=wandb.Settings(**_FIGURES_ALONE),
            ) as made:
                made.log({_name(each.metric): each.value for each in figures_of(row)})
        wandb.teardown()  # waits for its process, which may still be writing the last run
    except wandb.Error as exc:
        raise StoreError(f"Weights & Biases did not take the rows: {exc}.") from exc


def _rows(report: Report) -> Iterator[tuple[Comparison, RunRecord]]:
    for comparison in report.comparisons:
        for row in comparison.rows:
            if row.status == "ok":
                yield comparison, row


def _run_name(comparison: Comparison, row: RunRecord) -> str:
    return plain(f"{comparison.run_id}/{row.backend}")[:_LONGEST_TEXT]


def _parameters(comparison: Comparison, row: RunRecord) -> dict[str, Any]:
    work, machine = comparison.workload, comparison.environment
    texts = {
        "model": comparison.model.name,
        "backend": row.backend,
        "run_id": comparison.run_id,
        "machine": machine.gpu or machine.cpu,
        **{_name(f"version.{name}"): version for name, version in machine.packages.items()},
    }
    return {name: plain(text)[:_LONGEST_TEXT] for name, text in texts.items()} | {
        "batch": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
    }


def _name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. /``, and no path that leads elsewhere."""
    short = name[:_LONGEST_NAME]
    kept = "".join(char if char.isalnum() or char in "_-. /" else "_" for char in short)
    return re.sub(r"(^|/)(?=[./])|(?<=[./])(?=/|$)", r"\1_", kept)
