"""Tokenizers from strangers: an error of our own, no code of theirs, no token beyond the model."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import wholes
from llmfit.backends._tokenizer import load_tokenizer
from llmfit.deployer import Deployer
from llmfit.errors import EvaluationError, LlmfitError, ModelLoadError, QuantizationError
from llmfit.foreign.errors import LibraryErrors
from llmfit.models import data_path
from llmfit.quantize.gguf_vocab import read_vocabulary

pytest.importorskip("transformers")


def _folder(folder: Path, tokenizer: dict[str, Any], **settings: Any) -> str:
    """A model's folder with this tokenizer.json and tokenizer_config.json."""
    (folder / "config.json").write_text(json.dumps(wholes.SMALL))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return str(folder)


PANICS: dict[str, dict[str, Any]] = {
    "while loading": {
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(b"\xff" * 40).decode(),
        }
    },
    "at a text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {},
        }
    },
    "at an expression that never ends": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a+)+$"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
}


@pytest.mark.parametrize("when", PANICS)
def test_a_panic_of_rust_is_an_error_of_ours(when: str, tmp_path: Path) -> None:
    """pyo3 raises it past every ``except Exception``; a row fails by it and says so."""
    folder = _folder(tmp_path, {**wholes.byte_fallback(), **PANICS[when]})
    with pytest.raises(ModelLoadError, match="PanicException"):
        load_tokenizer(folder).encode("a" * 60 + "b")


def test_what_tokenizers_raises_bare_is_an_error_of_ours(tmp_path: Path) -> None:
    """``Exception`` itself, for a file of another form."""
    folder = _folder(tmp_path, {**wholes.byte_level(), "model": {"type": "Nothing"}})
    with pytest.raises(ModelLoadError, match=r"no tokenizer that transformers can load: Exception"):
        load_tokenizer(folder)
    (tmp_path / "tokenizer.json").write_bytes(b'{"a":' + b"[" * 100_000)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is nested"):
        load_tokenizer(folder)


def test_library_errors_are_translated_and_others_pass() -> None:
    """Its own errors and Ctrl-C go through; whatever else becomes the kind that was asked for."""
    expected = pytest.raises(QuantizationError, match=r"^it fails: ValueError: x+$")
    with expected as raised, LibraryErrors("it fails", kind=QuantizationError):
        raise ValueError("x" * 10_000)
    assert len(str(raised.value)) < 1100 and isinstance(raised.value.__cause__, ValueError)
    for passes in (KeyboardInterrupt(), SystemExit(), LlmfitError("ours")):
        with pytest.raises(type(passes)) as same, LibraryErrors("it fails"):
            raise passes
        assert same.value is passes


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}},
        {"tokenizer_class": "Own", "auto_map": ["own.Own", None]},
        {"tokenizer_class": "own.Own"},
    ],
    ids=["map", "old map", "class"],
)
def test_a_tokenizers_own_code_is_not_run(settings: dict[str, Any], tmp_path: Path) -> None:
    """Whether transformers has a class in its place or not."""
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    folder = _folder(tmp_path, wholes.byte_level(), **settings)
    try:
        load_tokenizer(folder)
    except ModelLoadError as exc:
        assert "own" in str(exc).lower()
    assert not ran.exists()


def test_a_chat_template_is_kept_and_never_rendered(tmp_path: Path) -> None:
    """One that would run for hours is a text like any other, and no part of an encoding."""
    template = "{% for i in range(10 ** 12) %}{{ i }}{% endfor %}"
    folder = _folder(tmp_path, wholes.byte_level(), chat_template=template)
    assert load_tokenizer(folder).encode("a")
    vocabulary = read_vocabulary(tmp_path, vocab_size=wholes.VOCAB_SIZE)
    assert vocabulary.chat_template == template
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelLoadError, match="UnicodeDecodeError"):
        read_vocabulary(tmp_path, vocab_size=wholes.VOCAB_SIZE)


def test_pieces_of_endless_length_are_not_cut_everywhere(tmp_path: Path) -> None:
    """Comparing all cuts of one of 40,000 characters would take minutes; a note says it was not."""
    content = json.loads(json.dumps(wholes.byte_fallback()))
    content["model"]["vocab"]["a" * 40_000] = 270
    _folder(tmp_path, content)
    notes = read_vocabulary(tmp_path, vocab_size=wholes.VOCAB_SIZE).notes
    assert any("may split some words" in note for note in notes)


@pytest.mark.slow
def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    """A text with an added token beyond the vocabulary; others run, padded by a real one."""
    folder = tmp_path / "model"
    shutil.copytree(data_path("embedded"), folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 2048, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<new>"}))
    with Deployer(str(folder), backend="sdpa", device="cpu") as deployed:
        assert deployed.model.tokenizer.eos_id == 2048
        assert deployed.generate("Once upon a time", max_new_tokens=2).new_tokens == 2
        with pytest.raises(EvaluationError, match="the token 2048, the model has 2048"):
            deployed.generate("Once <new>", max_new_tokens=2)


def _ids(**changes: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"]["vocab"].update(changes)


def _merges(*merges: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(merges=list(merges))


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a negative id": (_ids(x=-1), "the token 'x' has the id -1"),
    "an id of half": (_ids(x=0.5), "has the id 0.5"),  # type: ignore[arg-type]
    "an id that is true": (_ids(x=True), "has the id True"),
    "a merge of one": (_merges("ab"), "form that tokenizers writes"),
    "a merge of numbers": (_merges([1, 2]), "the merge"),
    "merges of a number": (lambda content: content["model"].update(merges=3), "form"),
    "no model": (lambda content: content.pop("model"), "form"),
    "a model that is a list": (lambda content: content.update(model=[1]), "form"),
    "added tokens of texts": (lambda content: content.update(added_tokens=["a"]), "form"),
    "steps that are numbers": (lambda content: content.update(post_processor=3), "form"),
    "one text under two ids": (
        lambda content: content["added_tokens"].append(
            {**content["added_tokens"][0], "id": 5, "content": "a"}
        ),
        "the token 'a' under two ids",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_vocabulary_is_refused(name: str, tmp_path: Path) -> None:
    """By our own reader, before a GGUF is written that llama.cpp would end the process over."""
    damage, said = DAMAGES[name]
    content = json.loads(json.dumps(wholes.byte_level()))
    damage(content)
    _folder(tmp_path, content)
    with pytest.raises(ModelLoadError) as refused:
        read_vocabulary(tmp_path, vocab_size=wholes.VOCAB_SIZE)
    assert said in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize(("told", "ends"), [([0, 690], {0, 690}), (690, {0, 690}), (None, {0})])
def test_all_ends_of_a_text_end_it(
    tmp_path: Path, told: list[int] | int | None, ends: set[int]
) -> None:
    """generation_config.json names those that transformers stops at, the tokenizer one of them."""
    shutil.copytree(data_path("embedded"), tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({} if told is None else {"eos_token_id": told}))
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert tokenizer.eos_id == 0 and tokenizer.end_ids == ends
    with Deployer(str(path.parent), backend="bf16", device="cpu") as model:
        made = model.generate("Once upon a time", max_new_tokens=40)
        assert made.token_ids[-1] in ends or made.finish == "length"
        assert not ends & set(made.token_ids[:-1])
