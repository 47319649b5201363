"""Vocabularies of the kinds that Gemma and Phi have: llama.cpp tokenises as transformers does."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf_tokenizers import TEXTS, Vocabulary, converted, corpus, inputs, outputs

from llmfit.quantize.gguf_vocab import read_vocabulary

transformers = pytest.importorskip("transformers")

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT4 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTION
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTION
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT = "<start_of_turn>user\nWhy?  Because.<end_of_turn>\n\n<start_of_turn>model\n"


def texts(shared_data: Path | None = None) -> list[str]:
    """Texts in many scripts; with the reference data also the 46 of llama.cpp's own tests."""
    return [*TEXTS, *corpus(), *(inputs(shared_data) if shared_data else ())]


def require_equal(vocabulary: Vocabulary, hf: Any, checked: list[str]) -> None:
    """Every text has the same ids, with and without the token at its beginning."""
    for text in checked:
        assert vocabulary.encode(text) == hf.encode(text, add_special_tokens=False), text
        assert vocabulary.encode(text, special=True) == hf.encode(text), text


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model with Gemma's settings, as tokenizer.model and, in ``json``, as
    the tokenizer.json that transformers makes of it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("gemma")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in corpus() for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.99,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁▁"],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    transformers.GemmaTokenizer.from_pretrained(folder, add_bos_token=True).save_pretrained(
        folder / "json"
    )
    assert not (folder / "json" / "tokenizer.model").exists()
    return folder


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json", "both"])
def test_gemma(form: str, gemma: Path, shared_data: Path, tmp_path: Path) -> None:
    """In each form: the ids of transformers and of SentencePiece, no space put before the text,
    and the pieces of a chat found."""
    import sentencepiece

    if form != "tokenizer.json":
        shutil.copy(gemma / "tokenizer.model", tmp_path)
    if form != "tokenizer.model":
        for file in (gemma / "json").iterdir():
            shutil.copy(file, tmp_path)
    hf = transformers.GemmaTokenizer.from_pretrained(gemma / "json")
    read = read_vocabulary(tmp_path, vocab_size=1000)
    assert (read.model, read.add_space_prefix) == ("llama", False)
    assert not read.notes
    vocabulary = converted(tmp_path, 1000, tmp_path / "v.gguf")
    checked = texts(shared_data)
    require_equal(vocabulary, hf, checked)
    assert hf.encode("a")[0] == hf.bos_token_id
    assert vocabulary.encode(CHAT, special=True) == hf.encode(CHAT)
    processor = sentencepiece.SentencePieceProcessor(str(gemma / "tokenizer.model"))
    assert [vocabulary.encode(text) for text in checked] == processor.encode(checked)
    vocabulary.close()


def save_phi4(folder: Path, regex: str) -> Any:
    """Byte-level BPE as Phi-4 has it: the split drops what its expression does not match."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(f"<|im_{word}|>", special=True) for word in ("start", "sep", "end")]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize(("regex", "name"), [(GPT4, "smaug-bpe"), (GPT4O, "gpt-4o")])
def test_phi4(regex: str, name: str, shared_data: Path, tmp_path: Path) -> None:
    """GPT-4's and GPT-4o's expressions are known by llama.cpp's names, and the ids are equal."""
    hf = save_phi4(tmp_path, regex)
    assert read_vocabulary(tmp_path, vocab_size=1000).pre == name
    vocabulary = converted(tmp_path, 1000, tmp_path / "v.gguf")
    require_equal(vocabulary, hf, texts(shared_data))
    chat = "<|im_start|>user<|im_sep|>Hi <|im_end|>\n"
    assert vocabulary.encode(chat, special=True) == hf.encode(chat)
    vocabulary.close()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
def test_phi3(form: str, shared_data: Path, tmp_path: Path) -> None:
    """Llama 2's tokenizer with Phi-3's added tokens: the ids of transformers, those that
    llama.cpp expects, and a note on tokens that take the spaces after them."""
    from tokenizers import AddedToken

    pytest.importorskip("google.protobuf")
    source, folder = tmp_path / "source", tmp_path / form
    source.mkdir()
    shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", source)
    hf = transformers.LlamaTokenizer.from_pretrained(source)
    hf.add_tokens(
        [AddedToken(f"<|{word}|>", special=True, rstrip=True) for word in ("user", "end")]
    )
    hf.save_pretrained(folder)
    if form == "tokenizer.model":
        shutil.copy(source / "tokenizer.model", folder)
    notes = read_vocabulary(folder, vocab_size=32_064).notes
    assert any("<|user|>" in note for note in notes)
    vocabulary = converted(folder, 32_064, tmp_path / "v.gguf")
    for text, expected in zip(inputs(shared_data), outputs(shared_data, "llama-spm"), strict=True):
        # Only tokenizer.model says that a text's own first space is kept beside the added one.
        if form == "tokenizer.model" or not text.startswith(" "):
            assert vocabulary.encode(text) == expected, text
    # transformers' own conversion of tokenizer.model parts from SentencePiece on indented lines.
    checked = [text for text in inputs(shared_data) + TEXTS if not text.startswith(" ")]
    require_equal(vocabulary, hf, checked)
    user, end = hf.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    chat = vocabulary.encode("<|user|>Hi<|end|>", special=True)
    assert [chat.count(user), chat.count(end)] == [1, 1]
    vocabulary.close()


@pytest.mark.slow
def test_gpt2_as_tokenizer_json_and_hugging_face(shared_data: Path, tmp_path: Path) -> None:
    """GPT-2: the Hugging Face tokenizer, llama.cpp with the converted file and llama.cpp's
    expected ids agree on all 46 texts."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(shared_data / "tokenizers" / "gguf-vocab" / "ggml-vocab-gpt-2.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    hf = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    hf.save_pretrained(tmp_path / "out")
    vocabulary = converted(tmp_path / "out", len(tokens), tmp_path / "v.gguf")
    expected = outputs(shared_data, "gpt-2")
    checked = inputs(shared_data)
    assert len(checked) == len(expected) == 46
    assert [hf.encode(text) for text in checked] == expected
    assert [vocabulary.encode(text) for text in checked] == expected
    vocabulary.close()
