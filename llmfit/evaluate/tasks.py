"""lm-eval task definitions over local files, and by lm-eval's own names.

A HellaSwag file is the official JSON-lines form. A text file is plain text; documents are parted
by lines that hold only ``<|endoftext|>``, and a file without one is a single document.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmfit.errors import EvaluationError

HELLASWAG_KEYS = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
_SEPARATOR = re.compile(r"^<\|endoftext\|>\s*$", re.MULTILINE)


def read_hellaswag(path: Path) -> list[dict[str, Any]]:
    """The questions of a HellaSwag JSON-lines file. Raises EvaluationError naming the line."""
    docs = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            docs.append(_question(line, f"{path}, line {number}"))
    if not docs:
        raise EvaluationError(f"{path} holds no question.", hint="a HellaSwag JSON-lines file")
    return docs


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        doc = json.loads(line)
    except json.JSONDecodeError as exc:
        raise EvaluationError(f"{where} is not JSON: {exc}.") from exc
    missing = [key for key in HELLASWAG_KEYS if not isinstance(doc, dict) or key not in doc]
    if missing:
        raise EvaluationError(f"{where} has no {', '.join(missing)}.")
    endings, label = doc["endings"], str(doc["label"])
    if not isinstance(endings, list) or len(endings) < 2:
        raise EvaluationError(f"{where}: endings must be a list of at least two texts.")
    if not label.isdigit() or int(label) >= len(endings):
        raise EvaluationError(f"{where}: label {doc['label']!r} names none of the endings.")
    return {key: doc[key] for key in HELLASWAG_KEYS} | {"label": label}


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, stripped. Raises EvaluationError where there are none."""
    documents = [part.strip() for part in _SEPARATOR.split(_read(path))]
    documents = [document for document in documents if document]
    if not documents:
        raise EvaluationError(f"{path} holds no text.", hint="a UTF-8 text file")
    return documents


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise EvaluationError(f"cannot read {path}: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise EvaluationError(f"{path} is not UTF-8 text: {exc.reason}.") from exc


def hellaswag_task(path: Path | None) -> dict[str, Any] | str:
    """lm-eval's ``hellaswag``, with its questions from ``path`` where one is given."""
    if path is None:
        return "hellaswag"
    from lm_eval.tasks.hellaswag.utils import process_docs

    return {
        "task": "hellaswag_local",
        "custom_dataset": _in_memory(read_hellaswag(path)),
        "dataset_path": str(path),
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "process_docs": process_docs,
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def text_task(path: Path | None) -> dict[str, Any] | str:
    """lm-eval's ``wikitext``, or the same measures over the documents of ``path``."""
    if path is None:
        return "wikitext"
    documents = [{"page": document} for document in read_documents(path)]
    return {
        "task": "text_local",
        "custom_dataset": _in_memory(documents),
        "dataset_path": str(path),
        "output_type": "loglikelihood_rolling",
        "validation_split": "validation",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "process_results": _text_results,
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        "metadata": {"version": 1.0},
    }


def _text_results(doc: dict[str, str], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """lm-eval's wikitext measures: log-likelihood with the words and bytes it spreads over."""
    (loglikelihood,) = results
    words = len(re.split(r"\s+", doc["page"]))
    size = len(doc["page"].encode())
    return {"word_perplexity": (loglikelihood, words), "bits_per_byte": (loglikelihood, size)}


def _in_memory(docs: list[dict[str, Any]]) -> Any:
    """A dataset factory of the form lm-eval calls, over documents already read."""

    def make(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"validation": Dataset.from_list(docs)}

    return make
