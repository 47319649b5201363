"""What was asked of a row, as one key: rows with equal keys are of one series over time."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from llmfit.records import Plan, to_builtins


def settings_key(plan: Plan | None) -> str:
    """A hash of workload, evaluation, budgets and other settings; ``unknown`` without a plan.

    Files that are scored on count by their content and not by their path. Neither what the model is
    made from (its files, a checkpoint, a calibration text) nor versions count: those may change
    along a series, and are then the likely cause of what changes.
    """
    if plan is None:
        return "unknown"
    text = json.dumps(_asked(plan), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _asked(plan: Plan) -> dict[str, Any]:
    evaluation = None
    if plan.evaluation is not None:
        evaluation = to_builtins(plan.evaluation)
        for name in ("include_path", "hellaswag_file", "text_file"):
            path = evaluation.pop(name)
            evaluation[name] = None if path is None else plan.inputs.get(path, "given")
        del evaluation["batch_tokens"]  # bounds memory and changes no result
    several = {} if plan.gpus == 1 else {"gpus": plan.gpus, "split": plan.split}
    return several | {
        "device": plan.device,
        "workload": to_builtins(plan.workload),
        "evaluation": evaluation,
        "weights": plan.weights,
        "checkpoint": plan.checkpoint is not None,
        "calibration": plan.calibration_file is not None,
        "budget_bytes": plan.budget_bytes,
        "ram_budget_bytes": plan.ram_budget_bytes,
        "kv_cache_dtype": plan.kv_cache_dtype,
        "threads": plan.threads,
        "seed": plan.seed,
    }
