"""Readers of tokenizers: ours for a GGUF's vocabulary, and transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz import wholes
from benchmarks.fuzz.targets.base import Target, as_files

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def _vocabulary(folder: Path) -> None:
    from llmfit.quantize.gguf_vocab import read_vocabulary

    read_vocabulary(folder, vocab_size=wholes.VOCAB_SIZE)


def _tokenizer(folder: Path) -> None:
    """transformers' tokenizer, as every row loads it, and a text there and back."""
    from llmfit.backends._tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    tokenizer.decode(tokenizer.encode("Once upon a time, ab <s> é"))
    tokenizer.encode("ab", special=False)


def _both_tokenizers(folder: Path) -> None:
    _vocabulary(folder)
    _tokenizer(folder)


def _tokenizer_files(folder: Path) -> None:
    (folder / "config.json").write_bytes(json.dumps(wholes.SMALL).encode())
    (folder / "tokenizer.json").write_bytes(json.dumps(wholes.byte_level()).encode())
    (folder / "tokenizer_config.json").write_bytes(
        json.dumps(wholes.TOKENIZER_SETTINGS[0]).encode()
    )
    (folder / "own.py").write_text("raise SystemExit('a model ran code of its own')\n")


def _spm_files(folder: Path) -> None:
    (folder / "config.json").write_bytes(json.dumps(wholes.SMALL).encode())


def _warm_tokenizer() -> None:
    import tempfile

    from benchmarks.fuzz.watch import quiet

    quiet()
    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        _tokenizer_files(Path(folder))
        _tokenizer(Path(folder))


def _tokenizers() -> list[dict[str, Any]]:
    return [wholes.byte_level(), wholes.byte_fallback()]


def _structured_tokenizers() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    return changed(_tokenizers()).map(as_json)


def _structured_settings() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    keys = (
        "bos_token", "eos_token", "unk_token", "pad_token", "added_tokens_decoder", "auto_map",
        "chat_template", "tokenizer_class", "extra_special_tokens", "vocab_file", "tokenizer_file",
        "model_max_length", "padding_side", "extra_ids", "offset",
    )  # fmt: skip
    return changed(wholes.TOKENIZER_SETTINGS, keys).map(as_json)


def _structured_spm() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    @st.composite
    def models(draw: Any) -> bytes:
        proto = model_pb2.ModelProto()
        proto.ParseFromString(wholes.sentencepiece())
        for _ in range(draw(st.integers(0, 4))):
            piece = proto.pieces[draw(st.integers(0, len(proto.pieces) - 1))]
            piece.score = draw(st.floats(width=32))
            piece.type = draw(st.sampled_from([1, 2, 3, 4, 5, 6]))
            piece.piece = draw(st.text(max_size=10))
        proto.trainer_spec.model_type = draw(st.sampled_from([1, 2, 2, 2, 2, 3, 4]))
        proto.trainer_spec.bos_id = draw(st.sampled_from([-1, 1, 10**6, -(2**31), 2**31 - 1]))
        if draw(st.booleans()):
            del proto.pieces[draw(st.integers(0, 260)) :]
        return bytes(proto.SerializeToString())

    return models()


TARGETS = (
    Target(
        name="tokenizer.json to GGUF vocabulary", file="tokenizer.json", run=_vocabulary,
        furnish=_tokenizer_files, seeds=lambda: as_files(_tokenizers),
        structured=_structured_tokenizers,
    ),
    Target(
        name="tokenizer.model to GGUF vocabulary", file="tokenizer.model", run=_vocabulary,
        furnish=_spm_files, seeds=lambda: [wholes.sentencepiece()], structured=_structured_spm,
        warm=wholes.sentencepiece, share=0.5,
    ),
    Target(
        name="tokenizer.json by transformers", file="tokenizer.json", run=_tokenizer,
        furnish=_tokenizer_files, seeds=lambda: as_files(_tokenizers), warm=_warm_tokenizer,
        structured=_structured_tokenizers,
    ),
    Target(
        name="tokenizer_config.json", file="tokenizer_config.json", run=_both_tokenizers,
        furnish=_tokenizer_files, seeds=lambda: as_files(lambda: wholes.TOKENIZER_SETTINGS),
        structured=_structured_settings, warm=_warm_tokenizer,
    ),
)  # fmt: skip
