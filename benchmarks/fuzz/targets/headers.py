"""Readers of JSON, and of what stands before the weights in their files."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz import wholes
from benchmarks.fuzz.gguf_bytes import ARRAY, FLOAT32, INT32, STRING, UINT32, numbers, strings, text
from benchmarks.fuzz.targets.base import Target, as_files

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


# ---------------------------------------------------------------- JSON


def _read_json(folder: Path) -> None:
    from llmfit.foreign.json import read_json

    read_json(folder / "some.json")


def _any_json() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st

    from benchmarks.fuzz.values import as_json, odd_values

    return st.one_of(
        odd_values.map(as_json),
        st.dictionaries(st.text(max_size=4), odd_values, max_size=5).map(as_json),
        st.binary(max_size=40),
    )


# ---------------------------------------------------------------- weights' headers


def _tensor_shapes(folder: Path) -> None:
    """llmfit's own reading; what passes is read by the library too, or refused in its words."""
    from safetensors import SafetensorError, safe_open

    from llmfit.foreign.files import weight_files
    from llmfit.models import tensor_shapes

    shapes = tensor_shapes(folder)
    for file in weight_files(folder):
        with suppress(SafetensorError), safe_open(file, "numpy") as opened:  # e.g. unused bytes
            assert set(opened.keys()) <= set(shapes)


def _structured_safetensors() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import changed

    return changed([wholes.TENSORS], ["more", "__metadata__"]).map(
        lambda tensors: wholes.safetensors(tensors, wholes.TENSOR_BYTES)
    )


_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_INDEX = {"metadata": {"total_size": 128}, "weight_map": dict(zip("ab", _SHARDS, strict=True))}


def _shards(folder: Path) -> None:
    for name in _SHARDS:
        content = wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)
        (folder / name).write_bytes(content)
    (folder / "weights.bin").write_bytes(b"a pickle")


def _structured_index() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st

    from benchmarks.fuzz.values import as_json, changed

    names = st.sampled_from([
        "../model.safetensors", "/etc/passwd", "weights.bin", "a/b.safetensors", "..", "", "\x00",
        "..\\x.safetensors", "C:x.safetensors", "x" * 300 + ".safetensors", "gone.safetensors",
        *_SHARDS,
    ])  # fmt: skip
    odd = st.dictionaries(st.text(max_size=5), names, max_size=4).map(lambda m: {"weight_map": m})
    return st.one_of(changed([_INDEX], ["weight_map"]), odd).map(as_json)


# ---------------------------------------------------------------- GGUF


def _read_gguf(folder: Path) -> None:
    """The check of the header, and ggml's own reader for what passes it."""
    from llmfit.quantize.gguf_types import read_types

    read_types(folder / "model.gguf")


def _warm_gguf() -> None:
    from llmfit.decode.llama_log import llama_log
    from llmfit.quantize.gguf_types import _library

    llama_log()
    _library()


@functools.cache
def _gguf_header() -> bytes:
    whole = wholes.gguf()
    return whole.build()[: -len(whole.data)]


def _gguf_seeds() -> list[bytes]:
    import copy

    small = copy.deepcopy(wholes.gguf())
    few = [f"t{i}".encode() for i in range(4)]
    small.set("tokenizer.ggml.tokens", ARRAY, strings(few))
    small.set("tokenizer.ggml.token_type", ARRAY, numbers(INT32, "i", [1] * 4))
    small.set("tokenizer.ggml.merges", ARRAY, strings(few))
    small.set("general.alignment", UINT32, (32).to_bytes(4, "little"))
    header = small.build()[: -len(small.data)]
    return [header, header, _gguf_header()]


def _structured_gguf() -> SearchStrategy[bytes]:
    import copy
    import struct

    from hypothesis import strategies as st

    numbers_ = st.sampled_from(
        [0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    )

    @st.composite
    def files(draw: Any) -> bytes:
        file = copy.deepcopy(wholes.gguf())
        file.data = b""
        keys = [key.decode() for key in file.values]
        keys += ["split.count", "general.alignment", "llmfit.notes", "new.key"]
        for _ in range(draw(st.integers(0, 3))):
            key, kind = draw(st.sampled_from(keys)), draw(st.integers(0, 14))
            if kind == STRING:
                file.set(key, kind, text(draw(st.binary(max_size=20))))
            elif kind == ARRAY:
                inner = draw(st.sampled_from([UINT32, FLOAT32, STRING, ARRAY, 13]))
                count = draw(numbers_)
                file.set(key, kind, struct.pack("<IQ", inner, count) + draw(st.binary(max_size=40)))
            else:
                file.set_number(key, draw(numbers_), draw(st.sampled_from([0, 2, 4, 5, 6, 7, 10])))
                file.values[key.encode()] = (kind, file.values[key.encode()][1])
        for _ in range(draw(st.integers(0, 2))):
            tensor = draw(st.sampled_from(file.tensors))
            what = draw(st.sampled_from(["dims", "kind", "offset", "name", "many"]))
            if what == "dims":
                tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(numbers_)
            elif what == "kind":
                tensor.kind = draw(st.integers(0, 45))
            elif what == "offset":
                tensor.offset = draw(numbers_)
            elif what == "name":
                tensor.name = draw(st.binary(max_size=100))
            else:
                tensor.dims = tensor.dims * draw(st.integers(0, 5))
        if draw(st.booleans()) and draw(st.booleans()):
            file.counts = (draw(numbers_), draw(numbers_))
        file.version = draw(st.sampled_from([3, 3, 3, 3, 2, 1, 0, 4, 2**24]))
        return file.build()

    return files()


TARGETS = (
    Target(
        name="JSON", file="some.json", run=_read_json, structured=_any_json,
        seeds=lambda: as_files(lambda: [wholes.SMALL, wholes.QUANTIZATIONS[0]]),
    ),
    Target(
        name="safetensors header", file="model.safetensors", run=_tensor_shapes,
        seeds=lambda: [wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)],
        structured=_structured_safetensors,
    ),
    Target(
        name="index of shards", file="model.safetensors.index.json", run=_tensor_shapes,
        furnish=_shards, seeds=lambda: as_files(lambda: [_INDEX]), structured=_structured_index,
    ),
    Target(
        name="GGUF header", file="model.gguf", run=_read_gguf, warm=_warm_gguf, seeds=_gguf_seeds,
        structured=_structured_gguf, hot=3000, padded_bytes=11_000_000,
    ),
)  # fmt: skip
