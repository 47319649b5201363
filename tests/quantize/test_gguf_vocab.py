"""Vocabularies: llama.cpp tokenises with the converted file as the model's tokenizer does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf_tokenizers import TEXTS, converted, corpus, inputs, outputs

from llmfit.errors import ModelLoadError
from llmfit.quantize.gguf_vocab import read_vocabulary

pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_bpe(
    folder: Path, pre_tokenizer: Any, *, ignore_merges: bool = False, normalizer: Any = None
) -> Any:
    """A byte-level BPE tokenizer with the given pre-tokenizer, trained here."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers import trainers as kinds

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = kinds.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken("@@keep@@", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>"
    )
    fast.save_pretrained(folder)
    return fast


def split(regex: str) -> Any:
    """The two steps that Llama 3, Qwen2 and Mistral use: their regex, then bytes."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    return Sequence(
        [Split(Regex(regex), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def byte_level_cases() -> dict[str, tuple[Any, bool]]:
    """llama.cpp's name to (pre-tokenizer, ignore_merges)."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    gpt2 = ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": (gpt2, False),
        "smollm": (Sequence([Digits(individual_digits=True), gpt2]), False),
        "llama-bpe": (split(LLAMA3), True),
        "smaug-bpe": (split(LLAMA3), False),
        "qwen2": (split(QWEN2), False),
        "tekken": (split(TEKKEN), True),
    }


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken"])
def test_byte_level_bpe(name: str, tmp_path: Path) -> None:
    """Each known pre-tokenizer is recognised, and llama.cpp's ids are those of tokenizers."""
    pre_tokenizer, ignore_merges = byte_level_cases()[name]
    hf = save_bpe(tmp_path, pre_tokenizer, ignore_merges=ignore_merges)
    assert read_vocabulary(tmp_path, vocab_size=1000).pre == name
    vocabulary = converted(tmp_path, 1000, tmp_path / "v.gguf")
    for text in [*TEXTS, *corpus(), "a @@keep@@ b"]:
        expected = hf.encode(text, add_special_tokens=False)
        assert vocabulary.encode(text) == expected, text
        assert vocabulary.encode(text, special=True) == [hf.bos_token_id, *expected], text
    assert vocabulary.encode("x<|eos|>", special=True)[-1] == hf.eos_token_id
    assert hf.eos_token_id not in vocabulary.encode("x<|eos|>")
    vocabulary.close()


def test_byte_level_bpe_on_the_texts_of_llama_cpp(shared_data: Path, tmp_path: Path) -> None:
    """The same over the 46 texts that llama.cpp tests its tokenizers with, and stories."""
    texts = [*inputs(shared_data), (shared_data / "tinystories_sample.txt").read_text()]
    for name, (pre_tokenizer, ignore_merges) in byte_level_cases().items():
        folder = tmp_path / name
        hf = save_bpe(folder, pre_tokenizer, ignore_merges=ignore_merges)
        vocabulary = converted(folder, 1000, folder / "v.gguf")
        for text in texts:
            assert vocabulary.encode(text) == hf.encode(text, add_special_tokens=False), (
                name,
                text,
            )
        vocabulary.close()


def test_merges_as_strings_and_as_pairs(tmp_path: Path) -> None:
    """Both forms of merges in tokenizer.json give one vocabulary."""
    save_bpe(tmp_path, byte_level_cases()["gpt-2"][0])
    file = tmp_path / "tokenizer.json"
    parts = json.loads(file.read_text())
    pairs = read_vocabulary(tmp_path, vocab_size=1000)
    assert isinstance(parts["model"]["merges"][0], list)
    parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]
    file.write_text(json.dumps(parts))
    assert read_vocabulary(tmp_path, vocab_size=1000) == pairs


@pytest.mark.slow
def test_gpt2(shared_data: Path, tmp_path: Path) -> None:
    """GPT-2's vocabulary, from tokens and merges to tokenizer.json to GGUF, gives llama.cpp's
    expected ids."""
    import gguf
    from tokenizers import Tokenizer, models, pre_tokenizers

    file = shared_data / "tokenizers" / "gguf-vocab" / "ggml-vocab-gpt-2.gguf"
    reader = gguf.GGUFReader(file)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in merges],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = converted(tmp_path, len(tokens), tmp_path / "v.gguf")
    expected = outputs(shared_data, "gpt-2")
    assert [vocabulary.encode(text) for text in inputs(shared_data)] == expected
    vocabulary.close()


def test_sentencepiece(shared_data: Path, tmp_path: Path) -> None:
    """Llama 2's tokenizer.model gives sentencepiece's ids, and those that llama.cpp expects."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", tmp_path)
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    vocabulary = converted(tmp_path, 32_000, tmp_path / "v.gguf")
    texts = inputs(shared_data)
    assert [vocabulary.encode(text) for text in texts] == outputs(shared_data, "llama-spm")
    for text in [*texts, *TEXTS, (shared_data / "tinystories_sample.txt").read_text()]:
        assert vocabulary.encode(text) == processor.encode(text), text
    assert vocabulary.encode("a", special=True)[0] == processor.bos_id()
    vocabulary.close()


def test_sentencepiece_with_added_tokens(shared_data: Path, tmp_path: Path) -> None:
    """Tokens that the folder adds have their place, and unused ids fill the vocabulary."""
    pytest.importorskip("google.protobuf")
    shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 32000}')
    vocabulary = converted(tmp_path, 32_064, tmp_path / "v.gguf")
    assert 32_000 in vocabulary.encode("x<|im_start|>y", special=True)
    tokens = read_vocabulary(tmp_path, vocab_size=32_064)
    assert len(tokens.tokens) == 32_064
    assert tokens.types[32_001] == 5
    vocabulary.close()
    small = read_vocabulary(tmp_path, vocab_size=32_000)
    assert "1 tokens" in small.notes[0]


@pytest.mark.slow
def test_llama2_as_tokenizer_json(shared_data: Path, tmp_path: Path) -> None:
    """Llama 2 as BPE with byte fallback, the way transformers writes it: the same ids again."""
    pytest.importorskip("google.protobuf")
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", source)
    hf = transformers.LlamaTokenizer.from_pretrained(source)
    hf.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    vocabulary = converted(tmp_path, 32_000, tmp_path / "v.gguf")
    assert "begins with a space" in read_vocabulary(tmp_path, vocab_size=32_000).notes[0]
    for text in [*inputs(shared_data), *TEXTS]:
        if not text.startswith(" "):
            assert vocabulary.encode(text) == hf.encode(text, add_special_tokens=False), text
    vocabulary.close()


def test_byte_fallback_bpe_of_a_trained_model(shared_data: Path, tmp_path: Path) -> None:
    """stories260k has only a tokenizer.json with merges: llama.cpp's ids equal tokenizers'."""
    folder = shared_data / "stories260k"
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = converted(folder, 512, tmp_path / "v.gguf")
    assert not read_vocabulary(folder, vocab_size=512).notes
    for text in [
        *inputs(shared_data),
        *TEXTS,
        (shared_data / "tinystories_sample.txt").read_text(),
    ]:
        expected = hf.encode(text, add_special_tokens=False)
        assert vocabulary.encode(text) == expected, text
        assert vocabulary.encode(text, special=True) == [1, *expected], text
    vocabulary.close()


def test_merges_that_scores_cannot_say_are_noted(shared_data: Path, tmp_path: Path) -> None:
    """Where a piece has a split that is no merge, the note says that llama.cpp may differ."""
    for file in (shared_data / "stories260k").glob("*.json"):
        shutil.copy(file, tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    parts["model"]["merges"].remove(["▁th", "e"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    assert "may split some words" in read_vocabulary(tmp_path, vocab_size=512).notes[0]


def test_unknown_tokenizers_are_refused(tmp_path: Path) -> None:
    """What llama.cpp has no equal of is an error that names it."""
    from tokenizers import normalizers
    from tokenizers.pre_tokenizers import ByteLevel

    gpt2 = ByteLevel(add_prefix_space=False)
    cases = [
        (split(r"\p{L}+|\P{L}+"), None, r"\\p\{L\}\+"),
        (ByteLevel(add_prefix_space=True), None, "add_prefix_space"),
        (gpt2, normalizers.Lowercase(), "Lowercase"),
    ]
    for number, (pre_tokenizer, normalizer, named) in enumerate(cases):
        save_bpe(tmp_path / str(number), pre_tokenizer, normalizer=normalizer)
        with pytest.raises(ModelLoadError, match=named):
            read_vocabulary(tmp_path / str(number), vocab_size=1000)
    save_bpe(tmp_path / "nfc", gpt2, normalizer=normalizers.NFC())
    assert "NFC" in read_vocabulary(tmp_path / "nfc", vocab_size=1000).notes[0]
    (tmp_path / "nfc" / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelLoadError):
        read_vocabulary(tmp_path / "nfc", vocab_size=1000)
