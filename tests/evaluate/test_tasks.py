"""Local evaluation files: what is read, and what is refused by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmfit.errors import EvaluationError
from llmfit.evaluate.datasets_ import read_documents, read_hellaswag

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
