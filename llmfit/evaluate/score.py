"""HellaSwag and perplexity of a loaded model, scored by lm-eval.

LoadedModel ─► ModelAdapter ─► lm-eval simple_evaluate ─► HellaSwag, Perplexity ─► Evaluation
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.errors import EvaluationError, TaskUnavailable
from llmfit.evaluate.tasks import hellaswag_task, text_task
from llmfit.models import data_path
from llmfit.records import Evaluation, EvaluationSettings, HellaSwag, ModelSpec, Perplexity


def require_lm_eval() -> None:
    """Raise TaskUnavailable with the ``pip install`` line where lm-eval is missing."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise TaskUnavailable(
            "lm-eval is not installed, quality cannot be scored.",
            hint="pip install 'llmfit[eval]', or --no-eval",
        )


def evaluation_files(
    spec: ModelSpec, settings: EvaluationSettings
) -> tuple[Path | None, Path | None]:
    """Files of the HellaSwag questions and the text; None means lm-eval's own task on the hub.

    The embedded model is scored on the embedded files unless others are given.
    """
    embedded = spec.source == "embedded"

    def choose(given: str | None, name: str) -> Path | None:
        if given is not None:
            return Path(given).expanduser()
        return data_path(name) if embedded else None

    return (
        choose(settings.hellaswag_file, "hellaswag.jsonl"),
        choose(settings.text_file, "text.txt"),
    )


def evaluate(
    model: LoadedModel,
    spec: ModelSpec,
    settings: EvaluationSettings,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score ``model`` on HellaSwag and on a text.

    A task whose data is not here and not on a reachable hub is None, with a note. Raises
    TaskUnavailable where lm-eval is missing, and EvaluationError for a damaged file or scores
    that are not numbers.
    """
    require_lm_eval()
    from llmfit.evaluate.adapter import ModelAdapter

    started = time.perf_counter()
    questions, text = evaluation_files(spec, settings)
    adapter = ModelAdapter(
        model,
        window=settings.ppl_window or 2048,
        batch_tokens=settings.batch_tokens,
        progress=progress,
    )
    hellaswag = perplexity = None
    notes = []
    try:
        hellaswag = _hellaswag(
            _run(adapter, hellaswag_task(questions), settings, "--hellaswag-file")
        )
    except TaskUnavailable as exc:
        notes.append(f"HellaSwag not scored: {exc}")
    try:
        perplexity = _perplexity(_run(adapter, text_task(text), settings, "--text-file"), adapter)
    except TaskUnavailable as exc:
        notes.append(f"perplexity not scored: {exc}")
    return Evaluation(
        hellaswag=hellaswag,
        perplexity=perplexity,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _run(
    adapter: Any, task: dict[str, Any] | str, settings: EvaluationSettings, flag: str
) -> dict[str, Any]:
    """lm-eval's result of one task: its ``results`` and ``samples``, under the task's name."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = task if isinstance(task, str) else task["task"]
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        output = simple_evaluate(
            model=adapter,
            tasks=[task],
            # Indexing lm-eval's own thousands of tasks takes seconds; a local one needs none.
            task_manager=TaskManager(include_defaults=isinstance(task, str)),
            limit=settings.limit,
            bootstrap_iters=100,
            log_samples=True,
        )
    except (ConnectionError, FileNotFoundError, OSError) as exc:
        raise TaskUnavailable(
            f"lm-eval's task {name} could not be loaded ({type(exc).__name__}: {exc}).",
            hint=f"{flag} FILE for a local file, or --no-eval",
        ) from exc
    if output is None:
        raise EvaluationError(f"lm-eval gave no result for {name}.")
    return {"name": name, "results": output["results"][name], "samples": output["samples"][name]}


def _hellaswag(output: dict[str, Any]) -> HellaSwag:
    results, samples = output["results"], output["samples"]
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return HellaSwag(
        acc=float(results["acc,none"]),
        acc_norm=float(results["acc_norm,none"]),
        stderr=float(results["acc_norm_stderr,none"]),
        acc_stderr=float(results["acc_stderr,none"]),
        n=len(samples),
        correct=tuple(bool(sample["acc_norm"]) for sample in ordered),
        task=output["name"],
    )


def _perplexity(output: dict[str, Any], adapter: Any) -> Perplexity:
    samples = output["samples"]
    # Each sample carries its text's log-likelihood beside the words it spreads over.
    loglikelihood = sum(sample["word_perplexity"][0] for sample in samples)
    tokens = adapter.rolling_tokens
    if not math.isfinite(loglikelihood):
        raise EvaluationError(
            "the model's log-probabilities are not finite numbers.",
            hint="another format: this one overflows or is damaged",
        )
    return Perplexity(
        token=math.exp(-loglikelihood / tokens),
        protocol=(
            f"windows of {adapter.window} ids: 1 of context (BOS at a document's start) and "
            f"{adapter.window - 1} scored, a document's last window reaching back for context; "
            "each token scored once; documents apart"
        ),
        n_tokens=tokens,
        word=float(output["results"]["word_perplexity,none"]),
        bits_per_byte=float(output["results"]["bits_per_byte,none"]),
        n_documents=len(samples),
        task=output["name"],
    )
