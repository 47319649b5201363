"""Tasks by name: own YAML, groups and generation against lm-eval's own transformers model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from transformers import AutoTokenizer

from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import LogitsVisitor, Window, WindowScore
from llmfit.errors import EvaluationError, UsageError
from llmfit.evaluate.score import evaluate, may_need_hub
from llmfit.models import data_path
from llmfit.records import (
    Evaluation,
    EvaluationSettings,
    ModelSpec,
    Plan,
    TaskResult,
    from_json,
    to_json,
)
from llmfit.testing import FakeModel, make_model

COLORS = [
    ("The sky on a clear day is", ["blue", "loud", "seven"], 0),
    ("Fresh grass is", ["an idea", "green"], 1),
    ("Lily was very sad, so she began to", ["cry", "table", "of"], 0),
    ("Tom has a red", ["ball", "the", "sadly"], 0),
    ("Snow is", ["hot", "white", "late"], 1),
    ("The sun is", ["wooden", "in the", "bright and yellow"], 2),
]
STORIES = ["Once upon a time, there was a", "One day, Lily", "Tom and Sam"]

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
{more}
metadata:
  version: 3.1
"""
GENERATE = """\
task: stories
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{start}}}}"
doc_to_target: "{{{{end}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
GROUP = """\
group: mine
task: [colors, colors_again]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata:
  version: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of own tasks over local JSON lines."""
    data = tmp_path / "colors.jsonl"
    rows = [{"question": q, "choices": choices, "answer": a} for q, choices, a in COLORS]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join(json.dumps(row) for row in rows[:2]))
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "colors.yaml").write_text(CHOICE.format(name="colors", data=data, more=""))
    (own / "again.yaml").write_text(CHOICE.format(name="colors_again", data=half, more=""))
    (own / "mine.yaml").write_text(GROUP)
    return own


def load_float32(spec: ModelSpec) -> Any:
    """The SDPA row's model in float32, so that near ties fall as they do elsewhere."""
    loaded: Any = get_backend("sdpa").load(Plan(backend="sdpa", model=spec, device="cpu"))
    loaded.model = loaded.model.float()
    return loaded


def lm_evals_own(model: Any, spec: ModelSpec, folder: Path, task: str, **more: Any) -> Any:
    """lm-eval's results for its own model class over the same weights."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=HFLM(
            pretrained=model.model, tokenizer=AutoTokenizer.from_pretrained(spec.path), batch_size=4
        ),
        tasks=[task],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        **more,
    )


def score(
    model: LoadedModel, spec: ModelSpec, folder: Path, *tasks: str, **more: Any
) -> Evaluation:
    """Our evaluation of the tasks of ``folder``."""
    settings = EvaluationSettings(tasks=tasks, include_path=str(folder), **more)
    return evaluate(model, spec, settings)


def values(result: TaskResult) -> dict[str, float]:
    """Metrics by their names."""
    return {metric.name: metric.value for metric in result.metrics}


def test_own_multiple_choice_equals_lm_evals_own_model(
    stories260k: ModelSpec, folder: Path
) -> None:
    """Accuracies, standard errors and the task's facts are lm-eval's, few-shot too."""
    more = "num_fewshot: 2\nfewshot_split: test"
    data = folder.parent / "colors.jsonl"
    (folder / "shots.yaml").write_text(CHOICE.format(name="shots", data=data, more=more))
    with load_float32(stories260k) as model:
        quality = score(model, stories260k, folder, "colors", "shots")
        theirs = [
            lm_evals_own(model, stories260k, folder, name)["results"][name]
            for name in ("colors", "shots")
        ]
    assert quality.notes == ()
    assert [result.task for result in quality.tasks] == ["colors", "shots"]
    assert [result.num_fewshot for result in quality.tasks] == [0, 2]
    for ours, their in zip(quality.tasks, theirs, strict=True):
        assert (ours.version, ours.n) == ("3.1", len(COLORS))
        assert {metric.filter for metric in ours.metrics} == {"none"}
        for metric in ours.metrics:
            assert metric.value == pytest.approx(their[f"{metric.name},none"])
            assert metric.stderr == pytest.approx(their[f"{metric.name}_stderr,none"])
            assert metric.higher_is_better is True
        assert {"acc", "acc_norm"} <= set(values(ours))
    assert from_json(Evaluation, to_json(quality)) == quality


def test_generation_equals_lm_evals_own_model(stories260k: ModelSpec, folder: Path) -> None:
    """Greedy continuations, cut at their stop string, match the texts that lm-eval's model gave."""
    data = folder.parent / "stories.jsonl"
    rows = [{"start": start, "end": "?"} for start in STORIES]
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / "stories.yaml").write_text(GENERATE.format(data=data))
    with load_float32(stories260k) as model:
        theirs = lm_evals_own(model, stories260k, folder, "stories")["samples"]["stories"]
        # Their texts become the answers, but for one: two of three must then match exactly.
        ends = {sample["doc"]["start"]: sample["resps"][0][0] for sample in theirs}
        ends[STORIES[1]] = "something else"
        data.write_text("\n".join(json.dumps({"start": s, "end": ends[s]}) for s in STORIES))
        quality = score(model, stories260k, folder, "stories")
    (result,) = quality.tasks
    assert (result.n, result.version) == (3, None)
    assert values(result) == {"exact_match": pytest.approx(2 / 3)}
    assert all(len(end) > 3 for end in ends.values())


@pytest.mark.slow
def test_a_group_gives_its_own_and_its_members_results(
    stories260k: ModelSpec, folder: Path
) -> None:
    """The group comes first; its accuracy is its members', weighted by their size."""
    with load_float32(stories260k) as model:
        quality = score(model, stories260k, folder, "mine", "colors")
    group, *members = quality.tasks
    assert [group.task, *[member.task for member in members]] == ["mine", "colors", "colors_again"]
    sizes = [member.n or 0 for member in members]
    assert sizes == [6, 2]
    accuracies = [values(member)["acc"] for member in members]
    weighted = sum(map(math.prod, zip(accuracies, sizes, strict=True))) / sum(sizes)
    assert values(group)["acc"] == pytest.approx(weighted)
    assert (group.version, group.n) == ("2", 8)


def test_the_limit_holds_for_every_task(folder: Path) -> None:
    """--limit is per task and shows in n; the columns stay empty when not asked for."""
    quality = score(FakeModel(), make_model(), folder, "colors", "colors_again", limit=1)
    assert [result.n for result in quality.tasks] == [1, 1]
    assert [metric.stderr for metric in quality.tasks[0].metrics] == [None, None]
    assert quality.hellaswag is None and quality.perplexity is None


def test_one_question_alone_is_no_hellaswag_score(embedded: ModelSpec) -> None:
    """A standard error takes two questions: with one the row says so, and has its perplexity."""
    quality = evaluate(FakeModel(), embedded, EvaluationSettings(limit=1))
    assert quality.hellaswag is None and quality.perplexity is not None
    (note,) = quality.notes
    assert note.startswith("HellaSwag not scored") and "--limit 2" in note


@pytest.mark.slow
def test_a_metric_without_a_formula_has_a_bootstrap_error(folder: Path) -> None:
    """F1's standard error is drawn, with lm-eval's seeds: the same in every run."""
    more = "metric_list:\n  - {metric: f1, aggregation: f1, higher_is_better: true}"
    data = folder.parent / "binary.jsonl"
    rows = [{"question": q, "choices": ["yes", "no"], "answer": a % 2} for q, _, a in COLORS]
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / "binary.yaml").write_text(CHOICE.format(name="binary", data=data, more=more))
    first, second = (score(FakeModel(), make_model(), folder, "binary").tasks for _ in range(2))
    assert first == second
    (metric,) = first[0].metrics
    assert metric.name == "f1" and metric.stderr is not None


def test_a_task_that_fails_leaves_a_note_and_the_others_go_on(folder: Path) -> None:
    """Missing data, damaged data and failing code are notes naming task and cause."""
    missing = folder.parent / "missing.jsonl"
    damaged = folder.parent / "damaged.jsonl"
    damaged.write_text('{"question": ')
    good = folder.parent / "colors.jsonl"
    failing = "process_results: !function mine.fail"
    (folder / "mine.py").write_text("def fail(doc, results):\n    raise RuntimeError('my bug')\n")
    for name, data, more in (
        ("missing", missing, ""),
        ("damaged", damaged, ""),
        ("failing", good, failing),
    ):
        text = CHOICE.format(name=name, data=data, more=more)
        (folder / f"{name}.yaml").write_text(text)
    quality = score(FakeModel(), make_model(), folder, "missing", "damaged", "failing", "colors")
    assert [result.task for result in quality.tasks] == ["colors"]
    notes = quality.notes
    assert len(notes) == 3
    assert "missing not scored" in notes[0] and str(missing) in notes[0]
    assert "damaged not scored" in notes[1] and "could not be run" in notes[1]
    assert "failing not scored" in notes[2] and "RuntimeError: my bug" in notes[2]


def test_a_dataset_that_is_nowhere_is_named_as_lm_eval_names_it(folder: Path) -> None:
    """A task of a hub dataset says which dataset is missing, and where it was looked for."""
    text = CHOICE.format(name="quiz", data="none", more="")
    lines = [line for line in text.splitlines() if "data_files" not in line]
    lines = [line for line in lines if "dataset_kwargs" not in line]
    text = "\n".join(lines).replace("dataset_path: json", "dataset_path: acme/quiz")
    (folder / "quiz.yaml").write_text(text)
    (note,) = score(FakeModel(), make_model(), folder, "quiz").notes
    assert note.startswith("quiz not scored: dataset acme/quiz was not found")
    assert "datasets--acme--quiz" in note and "HF_HOME=FOLDER" in note


def test_a_metric_that_is_no_number_is_left_out_with_a_note(folder: Path) -> None:
    """A task's own NaN does not reach the record, which could not be read back."""
    (folder / "mine.py").write_text(
        "def results(doc, results):\n    return {'acc': 1.0, 'odd': float('nan')}\n"
    )
    metrics = "".join(
        f"\n  - {{metric: {name}, aggregation: mean, higher_is_better: true}}"
        for name in ("acc", "odd")
    )
    more = f"process_results: !function mine.results\nmetric_list:{metrics}"
    data = folder.parent / "colors.jsonl"
    (folder / "odd.yaml").write_text(CHOICE.format(name="odd", data=data, more=more))
    quality = score(FakeModel(), make_model(), folder, "odd")
    assert values(quality.tasks[0]) == {"acc": 1.0}
    assert quality.notes == ("odd: odd is nan, not a number, and left out",)


class BrokenModel(FakeModel):
    """A model whose logits have overflowed."""

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        for window in windows:
            lost = (math.nan,) * (len(window.ids) - window.score_from)
            yield WindowScore(lost, greedy=False)


@pytest.mark.parametrize("task", ["hellaswag", "wikitext", "colors"])
def test_log_probabilities_that_are_not_numbers_are_an_error(folder: Path, task: str) -> None:
    """No accuracy is made of NaN: the row fails instead, for every kind of task."""
    files: dict[str, str] = {
        "hellaswag": {"hellaswag_file": str(data_path("hellaswag.jsonl"))},
        "wikitext": {"text_file": str(data_path("text.txt"))},
    }.get(task, {})
    with pytest.raises(EvaluationError, match="not finite"):
        score(BrokenModel(), make_model(), folder, task, limit=4, **files)


@pytest.mark.slow
def test_an_unknown_name_is_refused_with_what_may_have_hidden_it(folder: Path) -> None:
    """Its neighbours are named, and own files that lm-eval passes over because they are damaged."""
    (folder / "colours.yaml").write_text("task: colours\n  output_type: [")
    with pytest.raises(UsageError, match="no task 'colours'; near it are colors") as caught:
        score(FakeModel(), make_model(), folder, "colours")
    assert "colours.yaml is not readable YAML" in str(caught.value)
    assert "lm-eval ls tasks" in str(caught.value)


@pytest.mark.parametrize("place", ["saved folder", "parquet folder", "downloaded", "by its README"])
def test_own_yaml_reads_datasets_wherever_they_lie(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Folders of the datasets library, and a hub dataset's config among the downloaded files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    data = datasets.load_dataset("json", data_files=str(tmp_path / "colors.jsonl"), split="train")
    path, name = str(tmp_path / "here"), "null"
    if place == "saved folder":
        datasets.DatasetDict(test=data).save_to_disk(path)
    elif place == "parquet folder":
        data.to_parquet(str(tmp_path / "here" / "test.parquet"))
    else:
        path, name = "acme/quiz", "easy"
        repository = tmp_path / "home" / "hub" / "datasets--acme--quiz"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        snapshot = repository / "snapshots" / ("0" * 40)
        data.to_parquet(str(snapshot / "easy" / "test-00000-of-00001.parquet"))
        data.select([0]).to_parquet(str(snapshot / "hard" / "test-00000-of-00001.parquet"))
        if place == "by its README":
            configs = "".join(
                f"- config_name: {config}\n  data_files:\n  - split: test\n"
                f"    path: {config}/test-*\n"
                for config in ("hard", "easy", "never_downloaded")
            )
            (snapshot / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    text = CHOICE.format(name="quiz", data="x", more="")
    text = text.replace("dataset_kwargs:\n  data_files: {test: x}", f"dataset_name: {name}")
    (folder / "quiz.yaml").write_text(text.replace("path: json", f"path: {path}"))
    quality = score(FakeModel(), make_model(), folder, "quiz")
    assert quality.notes == ()
    assert quality.tasks[0].n == len(COLORS)


def test_the_hub_is_asked_for_only_where_it_may_be_needed(embedded: ModelSpec) -> None:
    """Given or embedded files for both columns need none; other tasks and models may."""
    assert not may_need_hub(embedded, EvaluationSettings())
    assert may_need_hub(embedded, EvaluationSettings(tasks=("hellaswag", "arc_easy")))
    assert may_need_hub(make_model(), EvaluationSettings())
    given = EvaluationSettings(tasks=("hellaswag",), hellaswag_file="questions.jsonl")
    assert not may_need_hub(make_model(), given)
