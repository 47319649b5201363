"""The quality of a loaded model: HellaSwag, a text, and any other task of lm-eval.

LoadedModel ─┬► ModelAdapter ─► lm-eval ─► HellaSwag, TaskResult ─┬► Evaluation
             └► score_text ─► Perplexity, Divergence ─────────────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.errors import TaskUnavailable
from llmfit.evaluate.datasets_ import (
    HELLASWAG_DATASET,
    WIKITEXT_CONFIG,
    WIKITEXT_DATASET,
    load_text,
)
from llmfit.evaluate.divergence import Reference
from llmfit.evaluate.perplexity import WINDOW_TOKENS, TextScores, score_text
from llmfit.evaluate.tasks import (
    HELLASWAG,
    WIKITEXT,
    hellaswag_task,
    other_tasks,
    run_named,
    run_task,
    task_index,
    text_task,
)
from llmfit.files import expanded
from llmfit.models import data_path
from llmfit.records import (
    Evaluation,
    EvaluationSettings,
    HellaSwag,
    ModelSpec,
    Perplexity,
    TaskResult,
)

if TYPE_CHECKING:
    from llmfit.decode.base import Window, WindowScore
    from llmfit.evaluate.adapter import ModelAdapter

T = TypeVar("T")


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
    """Files or folders of the HellaSwag questions and the text; None means lm-eval's own data.

    The embedded model is scored on the embedded files unless others are given.
    """
    embedded = spec.source == "embedded"

    def choose(given: str | None, name: str) -> Path | None:
        if given is not None:
            return expanded(given)
        return data_path(name) if embedded else None

    return (
        choose(settings.hellaswag_file, "hellaswag.jsonl"),
        choose(settings.text_file, "text.txt"),
    )


def hub_data(spec: ModelSpec, settings: EvaluationSettings) -> tuple[tuple[str, str | None], ...]:
    """Datasets of the tasks with columns that no file stands for: hub id and configuration."""
    questions, text = evaluation_files(spec, settings)
    columns = {
        HELLASWAG: (questions, (HELLASWAG_DATASET, None)),
        WIKITEXT: (text, (WIKITEXT_DATASET, WIKITEXT_CONFIG)),
    }
    asked = [columns[task] for task in settings.tasks if task in columns]
    return tuple(dataset for file, dataset in asked if file is None)


def may_need_hub(spec: ModelSpec, settings: EvaluationSettings) -> bool:
    """True when data of some task might have to come from the hub."""
    return bool(other_tasks(settings) or hub_data(spec, settings))


def evaluate(
    model: LoadedModel,
    spec: ModelSpec,
    settings: EvaluationSettings,
    progress: Progress = no_progress,
    *,
    reference: Reference | None = None,
) -> Evaluation:
    """Score ``model`` on the tasks of ``settings``; the text also against ``reference``.

    A task whose data is not here and not on a reachable hub, or whose own code fails, leaves a
    note and the others go on. Raises TaskUnavailable where lm-eval is missing, UsageError for an
    unknown task, and EvaluationError for a damaged file or scores that are not numbers.
    """
    require_lm_eval()
    started = time.perf_counter()
    index = task_index(settings)
    questions, text = evaluation_files(spec, settings)
    scoring = _Scoring(model, settings, progress)
    hellaswag = texts = None
    if HELLASWAG in settings.tasks:
        hellaswag = scoring.attempt("HellaSwag", partial(scoring.hellaswag, questions))
    if WIKITEXT in settings.tasks:
        texts = scoring.attempt("perplexity", partial(scoring.text, text, reference))
    tasks: dict[str, TaskResult] = {}
    for name in other_tasks(settings):
        for result in scoring.attempt(name, partial(scoring.named, name, index)) or ():
            tasks.setdefault(result.task, result)  # a task may come again as a group's member
    return Evaluation(
        hellaswag=hellaswag,
        perplexity=texts.perplexity if texts else None,
        divergence=texts.divergence if texts else None,
        tasks=tuple(tasks.values()),
        notes=tuple(scoring.notes),
        seconds=time.perf_counter() - started,
    )


class _Scoring:
    """One model under one settings; ``notes`` gathers what could not be scored, and why."""

    def __init__(
        self, model: LoadedModel, settings: EvaluationSettings, progress: Progress
    ) -> None:
        self._model = model
        self._settings = settings
        self._progress = progress
        self.notes: list[str] = []

    def attempt(self, label: str, score: Callable[[], T]) -> T | None:
        """What ``score`` gives; None with a note where its task is unavailable."""
        try:
            return score()
        except TaskUnavailable as exc:
            self.notes.append(f"{label} not scored: {exc}")
            return None

    def hellaswag(self, path: Path | None) -> HellaSwag:
        """HellaSwag over the questions of ``path``."""
        with _naming("--hellaswag-file"):
            task = hellaswag_task(path)
        self.notes += task["metadata"]["notes"]
        output = run_task(self._adapter(), task, self._settings)
        results, samples = output["results"], output["samples"]
        if len(samples) < 2:
            raise TaskUnavailable(
                "a single question has no standard error.", hint="--limit 2 or more"
            )
        ordered = sorted(samples, key=lambda sample: sample["doc_id"])
        return HellaSwag(
            acc=float(results["acc,none"]),
            acc_norm=float(results["acc_norm,none"]),
            stderr=float(results["acc_norm_stderr,none"]),
            acc_stderr=float(results["acc_stderr,none"]),
            n=len(samples),
            correct=tuple(bool(sample["acc_norm"]) for sample in ordered),
            task=task["task"],
        )

    def text(self, path: Path | None, reference: Reference | None) -> TextScores:
        """Token perplexity and divergence on the text, with lm-eval's measures beside them."""
        with _naming("--text-file"):
            text = load_text(path)
        scores = score_text(
            self._model,
            text.documents[: self._settings.limit],
            self._settings,
            reference=reference,
            progress=self._progress,
        )
        self.notes += (*text.notes, *scores.notes)
        task = text_task(path, text, self._settings.limit)
        measured = self._by_words_and_bytes(scores.perplexity, task, scores.known)
        return replace(scores, perplexity=measured)

    def _by_words_and_bytes(
        self,
        perplexity: Perplexity,
        task: dict[str, Any],
        known: Mapping[Window, WindowScore],
    ) -> Perplexity:
        """``perplexity`` with lm-eval's measures of the same text."""
        perplexity = replace(perplexity, task=task["task"])
        try:
            results = run_task(self._adapter(known), task, self._settings)["results"]
        except OverflowError:
            self.notes.append(
                "lm-eval's perplexity per word or byte is too large for a number; a text whose "
                "words are not parted by spaces has too few of them"
            )
            return perplexity
        return replace(
            perplexity,
            word=float(results["word_perplexity,none"]),
            byte=float(results["byte_perplexity,none"]),
            bits_per_byte=float(results["bits_per_byte,none"]),
        )

    def named(self, name: str, index: Any) -> tuple[TaskResult, ...]:
        """Results of a task, group or tag of lm-eval's ``index``."""
        results, notes = run_named(self._adapter(), name, self._settings, index)
        self.notes += notes
        return results

    def _adapter(self, known: Mapping[Window, WindowScore] | None = None) -> ModelAdapter:
        from llmfit.evaluate.adapter import ModelAdapter

        protocol_window = self._settings.ppl_protocol == "window" and self._settings.ppl_window
        return ModelAdapter(
            self._model,
            window=protocol_window or WINDOW_TOKENS,
            batch_tokens=self._settings.batch_tokens,
            progress=self._progress,
            known=known,
        )


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Let the hint of a dataset that is not here begin with the ``flag`` that takes it."""
    try:
        yield
    except TaskUnavailable as exc:
        raise TaskUnavailable(
            exc.message, hint=f"{flag} with a file or a dataset folder, or {exc.hint}"
        ) from exc
