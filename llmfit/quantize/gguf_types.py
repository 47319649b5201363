"""What the tensors of a GGUF file are stored as, read from its header.

Through llama.cpp's own reader: the gguf package's takes seconds for a large vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.files import check_gguf
from llmfit.quantize.gguf_convert import FLOAT_FILE_TYPES, NOTES_KEY

_FLOATS = ("F32", "F16", "BF16", "F64")
_MAX_DIMS = 4
_STRING, _ARRAY = 8, 9
"""Source: gguf.h, enum gguf_type."""
_MOST_NOTES, _LONGEST_NOTE = 32, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTypes:
    """What a GGUF file's tensors are stored as."""

    parameters: Mapping[str, int]
    """Parameters by type, e.g. ``Q4_K``; most first."""
    weights_bytes: int
    widths: tuple[int, ...]
    """Row lengths of the matrices, ascending."""
    notes: tuple[str, ...]
    """What the converter had to say, where the file is llmfit's own."""

    @property
    def quantized_share(self) -> float:
        """Share of the parameters in block-quantised types, 0…1."""
        total = sum(self.parameters.values())
        return 1 - sum(self.parameters.get(kind, 0) for kind in _FLOATS) / total

    def linear(self) -> str:
        """The types of at least a tenth of the parameters each, e.g. ``Q4_K/Q6_K``."""
        total = sum(self.parameters.values())
        main = [kind for kind, count in self.parameters.items() if count >= 0.1 * total]
        return "/".join(main)

    def shares(self) -> str:
        """All types with their shares, e.g. ``Q5_0 54 %, F16 40 %``."""
        total = sum(self.parameters.values())
        return ", ".join(f"{k} {100 * n / total:.3g} %" for k, n in self.parameters.items())


def read_types(file: Path) -> GgufTypes:
    """Read the headers of a GGUF file, and of those that the model goes on in.

    Raises ModelLoadError for a broken one, before ggml opens it: that is native code.
    """
    counts: dict[str, int] = {}
    widths: set[int] = set()
    weights_bytes = 0
    notes: tuple[str, ...] = ()
    for part in check_gguf(file):
        with _header(part) as (ggml, header):
            for index in range(ggml.gguf_get_n_tensors(header)):
                shape = ggml.gguf_get_tensor_ne(header, index)[:_MAX_DIMS]
                kind = ggml.ggml_type_name(ggml.gguf_get_tensor_type(header, index))
                name = kind.decode().upper()
                counts[name] = counts.get(name, 0) + math.prod(shape)
                weights_bytes += ggml.gguf_get_tensor_size(header, index)
                if math.prod(shape) > shape[0]:
                    widths.add(shape[0])
            notes += _strings(ggml, header, NOTES_KEY)
    if not counts:
        raise ModelLoadError(f"{file} holds no tensors, only a vocabulary.")
    return GgufTypes(
        parameters=dict(sorted(counts.items(), key=lambda item: -item[1])),
        weights_bytes=weights_bytes,
        widths=tuple(sorted(widths)),
        notes=notes,
    )


class _InitParams(ctypes.Structure):
    """``struct gguf_init_params`` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@contextmanager
def _header(file: Path) -> Iterator[tuple[Any, int]]:
    """ggml's library and the opened header of ``file``."""
    from llmfit.decode.llama_log import llama_log

    log = llama_log()
    log.forget()
    ggml = _library()
    header = ggml.gguf_init_from_file(str(file).encode(), _InitParams(no_alloc=True, ctx=None))
    if not header:
        raise ModelLoadError(f"{file} cannot be read as GGUF: {log.complaints()}.")
    try:
        yield ggml, header
    finally:
        ggml.gguf_free(header)


@functools.cache
def _library() -> Any:
    """ggml's library with the signatures used here. Source: gguf.h and ggml.h."""
    from llama_cpp._ggml import libggml

    pointer, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, (text, _InitParams)),
        ("gguf_free", None, (pointer,)),
        ("gguf_get_n_tensors", number, (pointer,)),
        ("gguf_get_tensor_ne", ctypes.POINTER(number), (pointer, number)),
        ("gguf_get_tensor_type", ctypes.c_int, (pointer, number)),
        ("gguf_get_tensor_size", ctypes.c_size_t, (pointer, number)),
        ("ggml_type_name", text, (ctypes.c_int,)),
        ("gguf_find_key", number, (pointer, text)),
        ("gguf_get_kv_type", ctypes.c_int, (pointer, number)),
        ("gguf_get_arr_type", ctypes.c_int, (pointer, number)),
        ("gguf_get_arr_n", ctypes.c_size_t, (pointer, number)),
        ("gguf_get_arr_str", text, (pointer, number, ctypes.c_size_t)),
    ):
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, arguments
    return libggml


def _strings(ggml: Any, header: int, key: str) -> tuple[str, ...]:
    """The first of a metadata array of strings; () where the file has none.

    ggml ends the process where another type than the value's is asked for.
    """
    index = ggml.gguf_find_key(header, key.encode())
    if index < 0 or ggml.gguf_get_kv_type(header, index) != _ARRAY:
        return ()
    if ggml.gguf_get_arr_type(header, index) != _STRING:
        return ()
    count = min(_MOST_NOTES, ggml.gguf_get_arr_n(header, index))
    texts = (ggml.gguf_get_arr_str(header, index, i) for i in range(count))
    return tuple(text.decode(errors="replace")[:_LONGEST_NOTE] for text in texts)


def fallback_note(file_type: str, types: GgufTypes) -> str | None:
    """What llama.cpp stored instead where ``file_type``'s blocks do not divide a row, or None.

    Source: llama.cpp's src/llama-quant.cpp: K-quants and IQ4_XS have blocks of 256, the other
    quantised types of 32; a tensor that does not fit takes a type with blocks of 32, or F16.
    """
    if file_type in FLOAT_FILE_TYPES:
        return None
    name = file_type.upper()
    wide = "_K" in name or name == "IQ4_XS"
    block = 256 if wide else 32
    odd = [width for width in types.widths if width % block]
    if not odd:
        return None
    total = sum(types.parameters.values())
    fitting = sum(n for kind, n in types.parameters.items() if kind.endswith("_K") or kind == name)
    held = f"{100 * fitting / total:.3g} % of parameters in {'K-quants' if '_K' in name else name}"
    widths = " and ".join(map(str, odd))
    reason = f"row length {widths} is" if len(odd) == 1 else f"row lengths {widths} are"
    return f"{name}: {held} ({reason} not divisible by {block}): {types.shares()}"
