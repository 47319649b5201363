"""A study in a process of its own: what it returns, how it fails, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmfit.errors import StoreError, StudyError, UsageError
from llmfit.records import from_json
from llmfit.studies.registry import STUDIES, get_study
from llmfit.study import StudyOptions, run_study, write_study
from llmfit.study_records import Series, StudyPlot, StudyResult

FINISHED = StudyResult(
    study="onnx",
    title="ONNX",
    question="Is it faster?",
    preset="default",
    device="cpu",
    plots=(
        StudyPlot(
            title="Step",
            kind="bars",
            x_label="runtime",
            y_label="ms",
            series=(Series(name="here", x=("eager", "onnxruntime"), y=(2.0, 1.0)),),
        ),
    ),
)


def test_every_study_is_a_module_with_a_title_and_a_question() -> None:
    """The registry's names lead to what ``base.Study`` promises."""
    for name in STUDIES:
        study = get_study(name)
        assert study.TITLE and study.QUESTION.endswith("?")
        assert callable(study.run)


def test_an_unknown_study_names_the_nearest() -> None:
    """The error is one of usage, and its hint can be run."""
    with pytest.raises(UsageError, match="'attenton'") as error:
        run_study("attenton")
    assert error.value.hint == "llmfit study attention"


@pytest.mark.slow
def test_a_device_that_is_not_here_is_the_users_error() -> None:
    """The child's own refusal arrives as what it is, with its hint."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(UsageError, match="no CUDA device"):
        run_study("attention", StudyOptions(device="cuda"))


def test_a_time_limit_ends_a_study() -> None:
    """The child is killed, and the error names the limit."""
    with pytest.raises(StudyError, match=r"longer than 0\.2 s"):
        run_study("attention", time_limit_s=0.2)


def test_the_files_hold_the_study(tmp_path: Path) -> None:
    """JSON that reads back, Markdown with the question, and both pictures."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    files = write_study(FINISHED, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["onnx.json", "onnx.md", "onnx.png", "onnx.svg"]
    assert from_json(StudyResult, files[0].read_text()) == FINISHED
    assert next(iter(json.loads(files[0].read_text()))) == "schema_version"
    assert "Is it faster?" in files[1].read_text()


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make"):
        write_study(FINISHED, tmp_path / "file" / "below")
