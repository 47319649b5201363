"""Models and texts that are not what they should be: told by name, and no other row suffers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import small_model
import torch
from content_rows import compared
from safetensors.torch import save_file

from llmfit.comparison import compare
from llmfit.decode.base import Sampling
from llmfit.decode.sampling import choose
from llmfit.errors import LlmfitError, ModelLoadError, NotFinite, UsageError
from llmfit.job import Observer
from llmfit.keeping import Keeping
from llmfit.measure import settle_workload
from llmfit.models import data_path, resolve
from llmfit.records import Comparison, EvaluationSettings, Workload, from_json, to_json
from llmfit.runner.forkserver import ForkServer

NOT_FINITE = "logits are not finite"
INNER = "model.layers.1.mlp.up_proj.weight"
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSettings:
    """Four questions and a page of text."""
    folder = tmp_path_factory.mktemp("texts")
    questions = data_path("hellaswag.jsonl").read_text().splitlines(keepends=True)[:4]
    (folder / "questions.jsonl").write_text("".join(questions))
    (folder / "text.txt").write_text(data_path("text.txt").read_text()[:2000])
    return EvaluationSettings(
        hellaswag_file=str(folder / "questions.jsonl"), text_file=str(folder / "text.txt")
    )


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one NaN among its weights."""
    weights = small_model.tensors()
    weights[INNER][3, 5] = float("nan")
    return small_model.write(tmp_path_factory.mktemp("nan") / "spoilt", weights)


# ---------------------------------------------------------------- logits that are no numbers


@slow
@pytest.mark.parametrize("scored", [True, False], ids=["scored", "not scored"])
def test_nan_is_told_and_never_a_figure_or_the_pick(
    spoilt: Path, texts: EvaluationSettings, server: ForkServer, tmp_path: Path, scored: bool
) -> None:
    """Both engines, scored or not: failed with the reason, speed kept, no quality, no pick."""
    evaluation = texts if scored else None
    found = compared(spoilt, tmp_path, "sdpa", "gguf:f16", server=server, evaluation=evaluation)
    for row in found.rows:
        assert row.status == "failed" and NOT_FINITE in str(row.reason), (row.backend, row.reason)
        assert row.decode is not None and row.decode.tokens_per_s.median > 0
        assert row.perplexity is None and row.hellaswag is None and row.kl_divergence is None
    assert found.verdict.backend is None
    text = to_json(found)
    assert "NaN" not in text and "Infinity" not in text
    assert from_json(Comparison, text) == found


@slow
def test_a_reference_of_nan_costs_the_others_only_their_divergence(
    spoilt: Path, texts: EvaluationSettings, server: ForkServer, tmp_path: Path
) -> None:
    """Another file of the model is sound: that row has its perplexity, KL is null and says why."""
    sound = small_model.write(tmp_path / "sound")
    (made,) = compared(sound, tmp_path, "gguf", server=server).rows
    found = compared(
        spoilt, tmp_path, "bf16", "gguf", server=server, checkpoint=made.artifact,
        evaluation=EvaluationSettings(tasks=("wikitext",), text_file=texts.text_file),
    )  # fmt: skip
    reference, row = found.rows
    assert reference.status == "failed" and NOT_FINITE in str(reference.reason)
    assert row.status == "ok" and row.perplexity is not None, row.reason
    assert row.kl_divergence is None and "bf16 left no logits" in " ".join(row.notes)
    assert found.verdict.backend == "gguf"
    assert not list((tmp_path / "runs").rglob("*logits*"))


def test_nothing_is_drawn_from_logits_that_are_no_numbers() -> None:
    """As ``llmfit generate --temperature`` would: an error in words, not torch's."""
    spoilt = torch.full((1, 8), float("nan"))
    with pytest.raises(NotFinite, match=NOT_FINITE):
        choose(spoilt, Sampling(temperature=1.0), None)


# ---------------------------------------------------------------- weights


def half_precision(weights: dict[str, torch.Tensor]) -> None:
    weights[INNER] = weights[INNER].half()
    weights["lm_head.weight"] = weights["lm_head.weight"].float()


def without_one(weights: dict[str, torch.Tensor]) -> None:
    del weights[INNER]


def with_another(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.9.extra.weight"] = torch.ones(3)


def of_another_shape(weights: dict[str, torch.Tensor]) -> None:
    weights[INNER] = torch.ones(64, 64, dtype=torch.bfloat16)


@slow
@pytest.mark.parametrize(
    ("change", "sdpa", "gguf"),
    [
        (half_precision, None, None),
        (without_one, f"lacks 1 tensors of the model, {INNER}", "lacks 1 tensors"),
        (of_another_shape, f"{INNER} has the shape [64, 64]", "wrong shape"),
        (with_another, None, "no place for the tensor model.layers.9"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(
    change: Callable[[dict[str, torch.Tensor]], None],
    sdpa: str | None,
    gguf: str | None,
    server: ForkServer,
    tmp_path: Path,
) -> None:
    """Mixed types run, a tensor that lacks or has another shape fails by name, one more is told."""
    weights = small_model.tensors()
    change(weights)
    model = small_model.write(tmp_path / "model", weights)
    rows = compared(model, tmp_path, "sdpa", "gguf", server=server).rows
    for row, reason in zip(rows, (sdpa, gguf), strict=True):
        assert (row.status, reason is None) in {("ok", True), ("failed", False)}, row.reason
        assert reason is None or reason in str(row.reason)
    noted = "model.layers.9.extra.weight among them" in " ".join(rows[0].notes)
    assert noted is (change is with_another)


def no_bytes(model: Path) -> str:
    (model / "model.safetensors").write_bytes(b"")
    return "model.safetensors"


def cut_short(model: Path) -> str:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "model.safetensors"


def without_a_shard(model: Path) -> str:
    (model / "model.safetensors").unlink()
    weights = small_model.tensors()
    first = dict(list(weights.items())[:5])
    save_file(first, model / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    places = {name: f"model-0000{1 if name in first else 2}-of-00002" for name in weights}
    index = {"weight_map": {name: f"{place}.safetensors" for name, place in places.items()}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("spoil", [no_bytes, cut_short, without_a_shard])
def test_files_that_are_not_whole_end_it_before_anything_runs(
    spoil: Callable[[Path], str], tmp_path: Path
) -> None:
    """An error that names the file; no run is begun."""
    model = small_model.write(tmp_path / "model")
    name = spoil(model)
    with pytest.raises(ModelLoadError) as caught:
        compare(str(model), keeping=Keeping(runs_dir=str(tmp_path / "runs")))
    assert name in caught.value.message
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- tokenizer, context


@slow
def test_a_tokenizer_that_lacks_or_is_of_another_model_is_named(
    server: ForkServer, tmp_path: Path, texts: EvaluationSettings
) -> None:
    """Each row says so; one whose tokenizer is larger than the model fails where it is scored."""
    bare = small_model.write(tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    for row in compared(bare, tmp_path, "sdpa", "gguf", server=server).rows:
        assert row.status == "failed" and "no tokenizer" in str(row.reason), row.reason
    weights = small_model.tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:1000].contiguous()
    smaller = small_model.write(tmp_path / "smaller", weights, vocab_size=1000)
    (row,) = compared(smaller, tmp_path, "sdpa", server=server, evaluation=texts).rows
    assert row.status == "failed" and row.decode is not None
    assert "the model has 1000" in str(row.reason) and "IndexError" not in str(row.reason)


def test_a_prompt_beyond_the_context_is_refused_unless_it_may_be_cut(tmp_path: Path) -> None:
    """64 tokens of context and 512 asked for: a wrong argument, before anything runs."""
    model = small_model.write(tmp_path / "model", max_position_embeddings=64)
    with pytest.raises(UsageError, match="model's context of 64") as caught:
        compare(
            str(model),
            workload=Workload(prompt_tokens=512, new_tokens=8),
            keeping=Keeping(runs_dir=str(tmp_path / "runs")),
        )
    assert caught.value.exit_code == 2 and "--prompt-tokens" in str(caught.value.hint)
    cut, notes = settle_workload(Workload(prompt_tokens=512), True, resolve(str(model)))
    assert cut.prompt_tokens + cut.new_tokens == 64 and "the model's context is 64" in notes[0]
    assert not (tmp_path / "runs").exists()


@slow
def test_texts_longer_than_the_context_are_scored_within_it(
    server: ForkServer, tmp_path: Path, texts: EvaluationSettings
) -> None:
    """A context of 64: windows of 64, questions that lose their beginning, no error."""
    model = small_model.write(tmp_path / "model", max_position_embeddings=64)
    (row,) = compared(model, tmp_path, "sdpa", server=server, evaluation=texts).rows
    assert row.status == "ok" and row.hellaswag is not None, row.reason
    assert row.perplexity is not None and row.perplexity.protocol.startswith("window 64")


# ---------------------------------------------------------------- evaluation files


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2 * 2**30)


def bad_line(file: Path) -> None:
    lines = data_path("hellaswag.jsonl").read_text().splitlines()[:20]
    lines[16] = lines[16][:50]
    file.write_text("\n".join(lines))


def label_beyond(file: Path) -> None:
    lines = data_path("hellaswag.jsonl").read_text().splitlines()[:20]
    lines[16] = json.dumps({**json.loads(lines[16]), "label": "7"})
    file.write_text("\n".join(lines))


@pytest.mark.parametrize("task", ["wikitext", "hellaswag"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_text(""), "holds no"),
        (lambda file: file.write_text("\n  \n\n"), "holds no"),
        (lambda file: file.write_bytes(b"caf\xe9 \xff\xfe"), "not UTF-8"),
        (sparse, "more than 100,000,000 characters"),
        (lambda file: None, "no file or folder"),
        (lambda file: file.mkdir(), "is empty"),
        (os.mkfifo, "no file or folder"),
    ],
    ids=["empty", "blank lines", "Latin-1", "2 GiB", "absent", "empty folder", "pipe"],
)
def test_a_file_without_a_text_is_refused_before_anything_runs(
    task: str, make: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    """The error names the file; nothing is begun."""
    file = tmp_path / "given"
    make(file)
    with pytest.raises(LlmfitError, match=says) as caught:
        begin(task, file, tmp_path)
    assert str(file) in caught.value.message


@pytest.mark.parametrize("spoil", [bad_line, label_beyond])
def test_a_bad_question_is_named_by_its_line(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    """Line 17 of 20 is not JSON, or its label names no ending."""
    spoil(tmp_path / "questions.jsonl")
    with pytest.raises(LlmfitError, match=r"questions\.jsonl, line 17"):
        begin("hellaswag", tmp_path / "questions.jsonl", tmp_path)


def begin(task: str, file: Path, folder: Path) -> None:
    """Ask for a comparison with that file; what it raises comes before any run."""
    settings = (
        EvaluationSettings(tasks=(task,), text_file=str(file))
        if task == "wikitext"
        else EvaluationSettings(tasks=(task,), hellaswag_file=str(file))
    )
    try:
        compare(evaluation=settings, keeping=Keeping(runs_dir=str(folder / "runs")))
    finally:
        assert not (folder / "runs").exists()


@slow
def test_a_text_of_one_token_has_a_perplexity(server: ForkServer, tmp_path: Path) -> None:
    """And no interval, which takes more."""
    model = small_model.write(tmp_path / "model")
    (tmp_path / "one.txt").write_text("a")
    one = EvaluationSettings(tasks=("wikitext",), text_file=str(tmp_path / "one.txt"))
    (row,) = compared(model, tmp_path, "sdpa", server=server, evaluation=one).rows
    assert row.status == "ok" and row.perplexity is not None, row.reason
    assert row.perplexity.n_tokens == 1 and row.perplexity.low is None


class _Replacing(Observer):
    """Puts an empty folder in a file's place as a row begins."""

    def __init__(self, row: str, file: Path) -> None:
        self._row, self._file = row, file

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        if backend == self._row:
            self._file.unlink()
            self._file.mkdir()


@slow
def test_files_that_vanish_while_rows_run_cost_the_rows_after(
    server: ForkServer, tmp_path: Path, texts: EvaluationSettings
) -> None:
    """The row before is kept; the next one names what is gone; the comparison ends as usual."""
    model = small_model.write(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(Path(str(texts.text_file)).read_text())
    found = compared(
        model, tmp_path, "sdpa", "gguf", server=server,
        evaluation=EvaluationSettings(tasks=("wikitext",), text_file=str(text)),
        observer=_Replacing("gguf", text),
    )  # fmt: skip
    sdpa, gguf = found.rows
    assert sdpa.status == "ok", sdpa.reason
    assert gguf.status == "failed" and "text.txt" in str(gguf.reason), gguf.reason
    assert found.verdict.backend == "sdpa" and found.store_error is None
