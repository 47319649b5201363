"""lm-eval's tasks: the two with columns of their own, and any other by its name.

settings ─► check_tasks (before any row)
        └─► hellaswag_task, text_task ─► run_task ─► HellaSwag, Perplexity
        └─► task_index ────────────────► run_named ─► TaskResult
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmfit.child import variables
from llmfit.device.execution import is_out_of_memory
from llmfit.errors import EvaluationError, NotFinite, TaskUnavailable, UsageError
from llmfit.evaluate.datasets_ import (
    Text,
    load_questions,
    local_datasets,
    read_documents,
    read_hellaswag,
)
from llmfit.files import expanded
from llmfit.records import EvaluationSettings, TaskMetric, TaskResult

HELLASWAG = "hellaswag"
WIKITEXT = "wikitext"
COLUMNS = (HELLASWAG, WIKITEXT)
"""Tasks that have columns of their own."""

_BOOTSTRAP_ITERATIONS = 1000
"""For standard errors of medians, F1, BLEU and the like; those of means are a formula."""
_SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234}
"""lm-eval's defaults, fixed."""
_NEAR = 3
_NO_VERSION = "Yaml"
"""What lm-eval calls the version of a task that states none."""


# ---------------------------------------------------------------- what is asked for


def check_tasks(settings: EvaluationSettings) -> None:
    """Raise what can be known to be wrong with ``settings`` before any row runs.

    UsageError for no task, a repeated or unknown one, a missing folder or file, or a file that no
    task reads; EvaluationError naming a damaged file's line. Imports lm-eval's index (no torch;
    some seconds) only for tasks other than the two with columns.
    """
    if not settings.tasks:
        raise UsageError("no task is named.", hint="--no-eval to score nothing")
    for number, least in (("limit", 1), ("ppl_window", 2), ("batch_tokens", 1)):
        value = getattr(settings, number)
        if value is not None and value < least:
            raise UsageError(f"{number} must be {least} or more, not {value}.")
    for name in settings.tasks:
        if settings.tasks.count(name) > 1:
            raise UsageError(f"task {name!r} is named twice.")
    _check_file(settings, "--hellaswag-file", settings.hellaswag_file, HELLASWAG)
    _check_file(settings, "--text-file", settings.text_file, WIKITEXT)
    _include_path(settings)
    if find_spec("lm_eval") is not None:  # without it, each row says so itself
        task_index(settings)


def _check_file(settings: EvaluationSettings, flag: str, given: str | None, task: str) -> None:
    if given is None:
        return
    if task not in settings.tasks:
        raise UsageError(f"{flag} is given, and {task} is not among the tasks.", hint="drop one")
    path = expanded(given)
    if not (path.is_file() or path.is_dir()):
        raise UsageError(f"{flag}: there is no file or folder {path}.")
    if path.is_file():
        (read_hellaswag if task == HELLASWAG else read_documents)(path)
    elif not any(path.iterdir()):
        raise UsageError(f"{flag}: the folder {path} is empty.")


def _include_path(settings: EvaluationSettings) -> Path | None:
    if settings.include_path is None:
        return None
    folder = expanded(settings.include_path)
    if not folder.is_dir():
        raise UsageError(
            f"--include-path: there is no folder {folder}.",
            hint="the folder that holds your tasks' YAML files",
        )
    return folder.resolve()


def other_tasks(settings: EvaluationSettings) -> tuple[str, ...]:
    """The tasks without columns of their own."""
    return tuple(name for name in settings.tasks if name not in COLUMNS)


def task_index(settings: EvaluationSettings) -> Any:
    """lm-eval's TaskManager with all of ``other_tasks``; None where nothing needs one.

    Only the folder of own tasks is indexed where it alone will do: lm-eval's own tasks are
    14,000 names and take seconds. Raises UsageError naming an unknown task and its neighbours.
    """
    names = other_tasks(settings)
    folder = _include_path(settings)
    if not names and folder is None:
        return None
    from lm_eval.tasks import TaskManager

    _quieten()
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        for name in set(COLUMNS) & set(own.all_tasks):
            raise UsageError(
                f"{folder} defines {name!r}, which is the name of a column of its own.",
                hint=f"another name for that task, e.g. my_{name}",
            )
        # Groups and tags may have members among lm-eval's own tasks.
        if set(names) <= set(own.all_subtasks):
            return own
    index = TaskManager(include_path=folder)
    for name in names:
        if name not in index.task_index:
            raise _unknown(name, index.all_tasks, folder)
    return index


def _unknown(name: str, known: Sequence[str], folder: Path | None) -> UsageError:
    near = get_close_matches(name, known, n=_NEAR)
    message = f"lm-eval has no task {name!r}"
    message += f"; near it are {', '.join(near)}" if near else ""
    broken = [] if folder is None else list(_unreadable(folder))
    message += "".join(f"; {reason}" for reason in broken)
    where = "--include-path FOLDER for tasks of your own"
    if folder is not None:
        where = f"`task: {name}` in a YAML file in {folder}"
    return UsageError(f"{message}.", hint=f"`lm-eval ls tasks` for all names, or {where}")


def _unreadable(folder: Path) -> Iterator[str]:
    """Why files of own tasks were passed over: lm-eval's index does so in silence."""
    import yaml  # type: ignore[import-untyped]

    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            yield f"{path} is not readable YAML ({' '.join(str(exc).split())})"


# ---------------------------------------------------------------- definitions


def hellaswag_task(path: Path | None) -> dict[str, Any]:
    """lm-eval's ``hellaswag`` over the questions of a file or folder; None: caches or the hub.

    ``metadata.notes`` holds what to know about the data. Raises as ``load_questions`` does.
    """
    from lm_eval.tasks.hellaswag.utils import process_docs

    questions = load_questions(path)
    return {
        "task": HELLASWAG if path is None else "hellaswag_local",
        "custom_dataset": _in_memory(process_docs(_dataset(questions.rows))),
        "dataset_path": str(path),
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0, "notes": questions.notes},
    }


def text_task(path: Path | None, text: Text, limit: int | None) -> dict[str, Any]:
    """lm-eval's ``wikitext`` over the first ``limit`` documents of ``text``, read from ``path``."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    pairs = zip(text.originals[:limit], text.documents[:limit], strict=True)
    return {
        "task": WIKITEXT if path is None else "text_local",
        "custom_dataset": _in_memory(
            _dataset([{"page": page, "text": scored} for page, scored in pairs])
        ),
        "dataset_path": str(path),
        "output_type": "loglikelihood_rolling",
        "validation_split": "validation",
        "doc_to_text": "",
        "doc_to_target": _scored_text,
        "process_results": process_results,
        "metric_list": [
            {"metric": metric} for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
        "metadata": {"version": 2.0},
    }


def _scored_text(doc: dict[str, str]) -> str:
    return doc["text"]  # a template would take a text in brackets for a Python list


def _dataset(docs: Sequence[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(list(docs))


def _in_memory(dataset: Any) -> Any:
    """A dataset factory of the form lm-eval calls, over documents as its task takes them."""
    return lambda **_: {"validation": dataset}


# ---------------------------------------------------------------- running


def run_task(adapter: Any, task: dict[str, Any], settings: EvaluationSettings) -> dict[str, Any]:
    """lm-eval's ``results`` and ``samples`` of one task given by its definition.

    Raises NotFinite for logits that are no finite numbers.
    """
    from lm_eval.tasks import TaskManager

    output = _simple_evaluate(adapter, task, settings, TaskManager(include_defaults=False))
    name = task["task"]
    return {"results": output["results"][name], "samples": output["samples"][name]}


def run_named(
    adapter: Any, name: str, settings: EvaluationSettings, index: Any
) -> tuple[tuple[TaskResult, ...], tuple[str, ...]]:
    """Results of a task, group or tag of lm-eval, groups before their members, with notes.

    Raises TaskUnavailable where its data are not here or its own code fails, and NotFinite for
    logits that are no finite numbers.
    """
    try:
        with local_datasets():
            output = _simple_evaluate(adapter, name, settings, index)
    except (TaskUnavailable, NotFinite):
        raise
    except Exception as exc:
        # A task is YAML and Python of anyone's: it may raise anything.
        if is_out_of_memory(exc):
            raise
        raise TaskUnavailable(
            f"it could not be run ({type(exc).__name__}: {exc}).",
            hint="its YAML, its data and the model's context length",
        ) from exc
    groups = set(output["group_subtasks"])
    ordered = sorted(output["results"], key=lambda member: member not in groups)
    results, notes = [], []
    for member in ordered:
        result, found = _task_result(member, output)
        notes += found
        if result.metrics:
            results.append(result)
    return tuple(results), tuple(notes)


def _simple_evaluate(
    adapter: Any, task: dict[str, Any] | str, settings: EvaluationSettings, index: Any
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    _quieten()
    with _one_process(), _no_needless_work():
        output = simple_evaluate(
            model=adapter,
            tasks=[task],
            task_manager=index,
            limit=settings.limit,
            bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            log_samples=True,
            **_SEEDS,
            fewshot_random_seed=settings.fewshot_seed,
        )
    if output is None:
        raise EvaluationError(f"lm-eval gave no result for {task}.")
    return output


def _quieten() -> None:
    """Leave out what lm-eval says about every task of its index."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _one_process() -> AbstractContextManager[None]:
    """Keep lm-eval's bootstrap from forking this process, which holds a model and its threads.

    Of processes that share a model, each scores for itself, so each takes itself for the first:
    lm-eval gives the others no result.
    """
    return variables({"DISABLE_MULTIPROC": "1", "LOCAL_RANK": "0"})


@contextmanager
def _no_needless_work() -> Iterator[None]:
    """Without what takes lm-eval a second a task and nobody here reads.

    It lists the machine's packages, by running pip, for a file that is not written; and it compiles
    a task's templates anew for every document.
    """
    from lm_eval import evaluator, utils

    list_packages, compile_template = evaluator.add_env_info, utils.env.from_string
    evaluator.add_env_info = lambda storage: None
    utils.env.from_string = functools.lru_cache(maxsize=256)(compile_template)
    try:
        yield
    finally:
        evaluator.add_env_info = list_packages
        del utils.env.from_string


def _task_result(name: str, output: dict[str, Any]) -> tuple[TaskResult, list[str]]:
    """One task's or group's result, and a note for each metric that is no finite number."""
    results = output["results"][name]
    better = output["higher_is_better"].get(name) or {}
    metrics, notes = [], []
    for key, value in results.items():
        metric, comma, chosen_filter = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        number = _number(value)
        if number is None:
            notes.append(f"{name}: {metric} is {value!r}, not a number, and left out")
            continue
        metrics.append(
            TaskMetric(
                name=metric,
                filter=chosen_filter,
                value=number,
                stderr=_number(results.get(f"{metric}_stderr,{chosen_filter}")),
                higher_is_better=better.get(metric),
            )
        )
    version = output["versions"].get(name)
    return (
        TaskResult(
            task=name,
            version=None if version in (None, _NO_VERSION) else str(version),
            n=results.get("sample_len"),
            num_fewshot=output["n-shot"].get(name),
            metrics=tuple(metrics),
        ),
        notes,
    )


def _number(value: Any) -> float | None:
    """A finite number as a float; None for anything else, as lm-eval's ``N/A``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
