"""Evaluation data from files, dataset folders and caches: the same items, wherever they lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from llmfit.errors import EvaluationError, TaskUnavailable
from llmfit.evaluate.adapter import ModelAdapter
from llmfit.evaluate.datasets_ import (
    load_questions,
    load_text,
    local_datasets,
    read_documents,
    read_hellaswag,
)
from llmfit.evaluate.score import evaluate
from llmfit.models import data_path
from llmfit.records import EvaluationSettings
from llmfit.testing import FakeModel, make_model

QUESTIONS = read_hellaswag(data_path("hellaswag.jsonl"))[:20]
REVISION = "0123456789abcdef0123456789abcdef01234567"
PAGES = [
    " = Otters = \n An otter ( Lutra lutra ) weighs 5 @-@ 10 kg , sometimes 1 @,@ 000 g .\n",
    " = Rain = \n It rained for three days . The river 's banks held .\n",
]


@pytest.fixture
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HF_HOME, as if set in the environment, and the hub out of reach."""
    home = tmp_path / "hf_home"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return home


def questions_dataset(first: int = 0, last: int = 20) -> datasets.Dataset:
    """Some of the questions as a dataset."""
    return datasets.Dataset.from_list(QUESTIONS[first:last])


def downloaded(home: Path, dataset: str) -> Path:
    """The folder of a dataset's files in the hub client's cache, made by hand."""
    repository = home / "hub" / f"datasets--{dataset.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("form", ["saved", "saved splits", "parquet", "json lines"])
def test_a_dataset_folder_gives_the_files_questions(
    tmp_path: Path, no_caches: Path, form: str
) -> None:
    """Every kind of folder holds the questions of the JSON-lines file that it was made from."""
    folder = tmp_path / "questions"
    train, validation = questions_dataset(0, 3), questions_dataset()
    if form == "saved":
        validation.save_to_disk(str(folder))
    elif form == "saved splits":
        datasets.DatasetDict(train=train, validation=validation).save_to_disk(str(folder))
    elif form == "parquet":
        train.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
        validation.to_parquet(str(folder / "data" / "validation-00000-of-00001.parquet"))
    else:
        validation.to_json(str(folder / "validation.jsonl"))
    found = load_questions(folder)
    assert list(found.rows) == QUESTIONS
    assert found.notes == ()


def test_the_only_split_is_taken_with_a_note_and_several_are_refused(
    tmp_path: Path, no_caches: Path
) -> None:
    """A lone train split serves, and is named; among others the validation split is asked for."""
    questions_dataset().to_parquet(str(tmp_path / "one" / "questions.parquet"))
    assert load_questions(tmp_path / "one").notes == (
        f"{tmp_path / 'one'}: split train is scored, there is no validation",
    )
    splits = datasets.DatasetDict(train=questions_dataset(), test=questions_dataset())
    splits.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(EvaluationError, match="splits train, test; one of validation"):
        load_questions(tmp_path / "two")


def test_wikitext_pages_are_scored_as_lm_evals_own_task_does(
    tmp_path: Path, no_caches: Path
) -> None:
    """Word, byte and bit measures equal those of lm-eval's unchanged task on a prepared cache."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    pages = datasets.Dataset.from_list([{"page": page} for page in PAGES])
    snapshot = downloaded(no_caches, "EleutherAI/wikitext_document_level")
    for split in ("train", "validation", "test"):
        pages.to_parquet(str(snapshot / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet"))
    ours = evaluate(FakeModel(), make_model(), EvaluationSettings(tasks=("wikitext",))).perplexity
    assert ours is not None and ours.task == "wikitext"
    own = Path(lm_eval.__file__).parent / "tasks" / "wikitext"
    with local_datasets():
        output = lm_eval.simple_evaluate(
            model=ModelAdapter(FakeModel(), window=128, batch_tokens=256),
            tasks=["wikitext"],
            task_manager=TaskManager(include_path=own, include_defaults=False),
            bootstrap_iters=0,
        )
    theirs = output["results"]["wikitext"]
    assert ours.word == pytest.approx(theirs["word_perplexity,none"])
    assert ours.byte == pytest.approx(theirs["byte_perplexity,none"])
    assert ours.bits_per_byte == pytest.approx(theirs["bits_per_byte,none"])
    assert ours.n_tokens < sum(map(len, PAGES)), "the detokenised text is shorter than the pages"


def test_a_text_column_is_scored_as_it_stands(tmp_path: Path, no_caches: Path) -> None:
    """Rows are documents; rows that are lines are one text; text files are a document each."""
    rows = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["One ( 1 ) .", "Two."]})
    rows.save_to_disk(str(tmp_path / "rows"))
    assert load_text(tmp_path / "rows").documents == ("One ( 1 ) .", "Two.")
    lines = datasets.Dataset.from_dict({"text": ["", " = Title = \n", "", "It rained .\n"]})
    datasets.DatasetDict(test=lines, train=rows).save_to_disk(str(tmp_path / "lines"))
    assert load_text(tmp_path / "lines").documents == ("\n = Title = \n\nIt rained .\n",)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "test.txt").write_text("First line.\n\nSecond paragraph.\n")
    assert load_text(tmp_path / "files").documents == ("First line.\n\nSecond paragraph.\n",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("validation.parquet", b"PAR1 and then nothing", "could not be loaded as a dataset"),
        ("validation.jsonl", b'{"ctx_a": ', "could not be loaded as a dataset"),
        ("validation.jsonl", b'{"ctx_a": "x"}\n', "row 0 has no activity_label"),
        ("notes.md", b"nothing to load", "could not be loaded as a dataset"),
    ],
)
def test_damaged_folders_are_named(
    tmp_path: Path, no_caches: Path, name: str, content: bytes, says: str
) -> None:
    """A folder without usable questions is an error that names it."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=says) as caught:
        load_questions(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_without_text_is_refused(tmp_path: Path, no_caches: Path) -> None:
    """Columns of numbers are no text, and the columns are named."""
    datasets.Dataset.from_dict({"a": [1], "b": [2]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(EvaluationError, match="no column of texts among a, b"):
        load_text(tmp_path / "numbers")


_SCRIPT = """
import sys
from pathlib import Path
import lm_eval
from lm_eval.tasks import TaskManager
from llmfit.evaluate.adapter import ModelAdapter
from llmfit.evaluate.datasets_ import local_datasets
from llmfit.evaluate.score import evaluate
from llmfit.records import EvaluationSettings, to_json
from llmfit.testing import FakeModel, make_model

quality = evaluate(FakeModel(), make_model(), EvaluationSettings(tasks=("hellaswag",)))
own = Path(lm_eval.__file__).parent / "tasks" / "hellaswag"
with local_datasets():
    output = lm_eval.simple_evaluate(
        model=ModelAdapter(FakeModel(), window=128, batch_tokens=256),
        tasks=["hellaswag"],
        task_manager=TaskManager(include_path=own, include_defaults=False),
    )
sys.stderr.write("RESULT " + to_json(quality.hellaswag, indent=0).replace("\\n", "") + "\\n")
sys.stderr.write("LM_EVAL %r\\n" % output["results"]["hellaswag"]["acc_norm,none"])
"""


def _prepared(home: Path) -> None:
    """HellaSwag in the cache of prepared datasets, as a load from the hub leaves it."""
    source = home.parent / "source"
    for split in ("train", "validation"):
        questions_dataset().to_parquet(str(source / f"{split}.parquet"))
    cache = home / "datasets"
    datasets.load_dataset("parquet", "default", data_dir=str(source), cache_dir=str(cache))
    (made,) = cache.glob("parquet/*/*/*/dataset_info.json")
    place = cache / "Rowan___hellaswag" / "default" / "0.0.0" / made.parent.name
    place.parent.mkdir(parents=True)
    shutil.move(made.parent, place)
    info = json.loads((place / "dataset_info.json").read_text())
    info |= {"dataset_name": "hellaswag", "config_name": "default"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    for arrow in place.glob("parquet-*.arrow"):
        arrow.rename(place / arrow.name.replace("parquet-", "hellaswag-"))
    shutil.rmtree(source)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["downloaded", "prepared"])
def test_the_caches_of_hf_home_serve_offline(tmp_path: Path, cache: str) -> None:
    """With HF_HUB_OFFLINE, HellaSwag and lm-eval's unchanged task run from either cache."""
    home = tmp_path / "hf_home"
    if cache == "downloaded":
        snapshot = downloaded(home, "Rowan/hellaswag")
        for split in ("train", "validation"):
            name = f"{split}-00000-of-00001.parquet"
            questions_dataset().to_parquet(str(snapshot / "data" / name))
    else:
        _prepared(home)
    ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=ours | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if line.startswith(("RESULT ", "LM_EVAL "))]
    lines = dict(line.split(" ", 1) for line in said)
    result: dict[str, Any] = json.loads(lines["RESULT"])
    assert (result["task"], result["n"]) == ("hellaswag", 20)
    assert result["acc_norm"] == pytest.approx(float(lines["LM_EVAL"]))


def test_a_partial_download_serves(no_caches: Path) -> None:
    """The validation file alone is enough for HellaSwag, which scores no other split."""
    snapshot = downloaded(no_caches, "Rowan/hellaswag")
    questions_dataset().to_parquet(str(snapshot / "data" / "validation-00000-of-00001.parquet"))
    assert list(load_questions(None).rows) == QUESTIONS


@pytest.mark.parametrize("form", ["data files", "saved"])
def test_a_folder_with_the_datasets_name_serves(
    tmp_path: Path, no_caches: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """./Rowan/hellaswag in the working directory stands for the dataset of that id."""
    monkeypatch.chdir(tmp_path)
    splits = datasets.DatasetDict(validation=questions_dataset())
    if form == "saved":
        splits.save_to_disk("Rowan/hellaswag")
    else:
        splits["validation"].to_json("Rowan/hellaswag/validation.jsonl")
    assert list(load_questions(None).rows) == QUESTIONS


def test_without_any_data_the_notes_say_what_would_do(no_caches: Path) -> None:
    """Each note names the flag, the dataset as lm-eval calls it, and the places looked at."""
    quality = evaluate(FakeModel(), make_model(), EvaluationSettings())
    assert quality.hellaswag is None and quality.perplexity is None
    questions, text = quality.notes
    for note, flag, dataset in (
        (questions, "--hellaswag-file", "Rowan/hellaswag"),
        (text, "--text-file", "EleutherAI/wikitext_document_level"),
    ):
        owner, name = dataset.split("/")
        assert flag in note
        assert f"dataset {dataset} was not found" in note
        assert str(no_caches / "datasets" / f"{owner}___{name}") in note
        assert str(no_caches / "hub" / f"datasets--{owner}--{name}") in note
        assert f"HF_HOME=FOLDER of a machine that has {dataset}" in note


def test_a_file_reads_as_before(tmp_path: Path) -> None:
    """Files need no datasets library: their items are those of the plain readers."""
    path = data_path("text.txt")
    assert list(load_text(path).documents) == read_documents(path)
    with pytest.raises(EvaluationError, match="cannot read"):
        load_text(tmp_path / "none.txt")


def test_a_snapshot_in_another_form_is_not_hidden(no_caches: Path) -> None:
    """Downloaded files that cannot be read are said to be so, not to be missing."""
    snapshot = downloaded(no_caches, "Rowan/hellaswag")
    (snapshot / "validation.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(TaskUnavailable, match=r"Rowan/hellaswag could not be loaded \(Arrow"):
        load_questions(None)


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    """Unicode's other ends of lines may stand within a text, as they do in JSON."""
    question = QUESTIONS[0] | {"ctx_b": "One\u2028two\u2029three\u0085four."}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(question, ensure_ascii=False) + "\r\n", "utf-8", newline="")
    (read,) = read_hellaswag(path)
    assert read["ctx_b"] == question["ctx_b"]
