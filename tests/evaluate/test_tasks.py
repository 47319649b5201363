"""Evaluation files and task names: what is read, and what is refused before any row runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmfit.errors import EvaluationError, UsageError
from llmfit.evaluate.datasets_ import read_documents, read_hellaswag
from llmfit.evaluate.tasks import check_tasks
from llmfit.records import EvaluationSettings

QUESTION = {
    "activity_label": "Baking",
    "ctx_a": "A woman stirs.",
    "ctx_b": "she",
    "endings": ["eats.", "flies.", "sings.", "melts."],
    "label": 0,
}


def test_the_official_form_is_read(shared_data: Path) -> None:
    """All 1,000 questions of the official file are read with their labels."""
    docs = read_hellaswag(shared_data / "hellaswag_val_sample1000.jsonl")
    labels = [doc["label"] for doc in docs]
    assert [labels.count(label) for label in "0123"] == [267, 228, 266, 239]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": 4}, "label 4 names none"),
        ({"label": "x"}, "label 'x'"),
        ({"endings": "eats"}, "endings must be a list"),
        ({"ctx_a": None}, None),
    ],
)
def test_wrong_questions_name_their_line(
    tmp_path: Path, change: dict[str, object], says: str | None
) -> None:
    """A damaged second line is named with what is wrong."""
    wrong = {key: value for key, value in (QUESTION | change).items() if value is not None}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + json.dumps(wrong) + "\n")
    with pytest.raises(EvaluationError, match=f"line 2.*{says or 'has no ctx_a'}"):
        read_hellaswag(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_empty_and_binary_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file without text is an error that names it, for both kinds of file."""
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    for read in (read_hellaswag, read_documents):
        with pytest.raises(EvaluationError, match=r"file\.txt"):
            read(path)


def test_documents_are_parted_by_their_separator(shared_data: Path, tmp_path: Path) -> None:
    """The sample holds five stories; a text without separators is one document."""
    assert len(read_documents(shared_data / "tinystories_sample.txt")) == 5
    plain = tmp_path / "plain.txt"
    plain.write_text("one\n\ntwo <|endoftext|> inside a line\n")
    assert read_documents(plain) == ["one\n\ntwo <|endoftext|> inside a line"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": ()}, "no task is named.*--no-eval"),
        ({"tasks": ("hellaswag", "hellaswag")}, "'hellaswag' is named twice"),
        ({"include_path": "nowhere"}, "--include-path: there is no folder nowhere"),
        ({"hellaswag_file": "no.jsonl"}, "--hellaswag-file: there is no file or folder no.jsonl"),
        (
            {"tasks": ("wikitext",), "hellaswag_file": "x"},
            "--hellaswag-file is given, and hellaswag is not among the tasks",
        ),
    ],
)
def test_wrong_settings_are_refused_before_any_row(changes: dict[str, Any], says: str) -> None:
    """Each names the flag and the value."""
    with pytest.raises(UsageError, match=says):
        check_tasks(EvaluationSettings(**changes))


def test_a_damaged_file_is_refused_before_any_row(tmp_path: Path) -> None:
    """The line is named once, not by every row."""
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n{")
    with pytest.raises(EvaluationError, match=r"line 2 is not JSON"):
        check_tasks(EvaluationSettings(hellaswag_file=str(path)))


def test_a_column_cannot_be_redefined(tmp_path: Path) -> None:
    """An own task called hellaswag would silently give way to the column's: it is refused."""
    (tmp_path / "mine.yaml").write_text("task: hellaswag\ndataset_path: json\n")
    with pytest.raises(UsageError, match="defines 'hellaswag'"):
        check_tasks(EvaluationSettings(include_path=str(tmp_path)))


@pytest.mark.slow
def test_names_are_checked_without_torch() -> None:
    """The defaults import no lm-eval; of a task, group, tag and misprint the last is refused."""
    script = (
        "import sys\n"
        "from llmfit.errors import UsageError\n"
        "from llmfit.evaluate.tasks import check_tasks\n"
        "from llmfit.records import EvaluationSettings\n"
        "check_tasks(EvaluationSettings())\n"
        "assert 'lm_eval' not in sys.modules\n"
        "try:\n"
        "    check_tasks(EvaluationSettings(tasks=('arc_easy', 'mmlu', 'ai2_arc', 'arc_eazy')))\n"
        "except UsageError as exc:\n"
        "    print(exc)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no task 'arc_eazy'; near it are arc_easy" in done.stdout
    assert "lm-eval ls tasks" in done.stdout and "--include-path" in done.stdout
