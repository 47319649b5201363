"""Texts to tokenise, and llama.cpp's tokenizer of a converted vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmfit.quantize.gguf_vocab import read_vocabulary

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "",
    " ",
    "   three spaces, then\ttab\n\nand lines\r\n  ",
    "Hello, world! It's 2026; they'LL pay 12345.67 €.",
    "Привет, мир! 你好，世界。 مرحبا 🦙🚀 नमस्ते",
    "camelCaseWords and SHOUTING, <html>&amp;</html> a/b//c\n",
    "ﬁne naïve café é",
]


class Vocabulary:
    """llama.cpp's tokenizer of a GGUF file."""

    def __init__(self, file: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        from llmfit.decode.llama_log import llama_log

        llama_log()  # keeps the terminal clean
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        assert self._model
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; with ``special`` BOS is added and special tokens in the text count."""
        raw = text.encode()
        room = len(raw) + 8
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, room, special, special)
        assert count >= 0
        return list(buffer[:count])

    def close(self) -> None:
        """Free the model."""
        llama_cpp.llama_model_free(self._model)


def converted(folder: Path, vocab_size: int, target: Path) -> Vocabulary:
    """The folder's tokenizer through a GGUF file without tensors."""
    import gguf

    writer = gguf.GGUFWriter(target, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_head_count):
        add(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    read_vocabulary(folder, vocab_size=vocab_size).write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Vocabulary(target)


def inputs(shared_data: Path) -> list[str]:
    """The 46 texts of llama.cpp's own tokenizer tests."""
    file = shared_data / "tokenizers" / "gguf-vocab" / "ggml-vocab-gpt-2.gguf.inp"
    return file.read_text("utf-8").split("\n__ggml_vocab_test__\n")[:-1]


def outputs(shared_data: Path, name: str) -> list[list[int]]:
    """The token ids that llama.cpp's tests expect."""
    file = shared_data / "tokenizers" / "gguf-vocab" / f"ggml-vocab-{name}.gguf.out"
    return [[int(token) for token in line.split()] for line in file.read_text().splitlines()]


def corpus() -> Iterator[str]:
    """Texts to train small tokenizers on: the source of the converter."""
    for file in sorted(Path(__file__).parents[2].glob("llmfit/quantize/gguf*.py")):
        yield file.read_text("utf-8")
