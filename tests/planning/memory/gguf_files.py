"""Tiny GGUF files of any shape, and llama.cpp's own quantiser over them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llmfit.decode.llama_log import llama_log
from llmfit.planning.memory.gguf_mix import TypedTensor, tensor_types
from llmfit.shape import ModelShape

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

FTYPES: Mapping[str, int] = {
    "q2_k_s": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K_S,
    "iq1_s": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ1_S,
    "iq1_m": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ1_M,
    "iq2_xxs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XXS,
    "iq2_xs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XS,
    "iq2_s": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_S,
    "iq2_m": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_M,
    "iq3_xxs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_XXS,
    "iq3_xs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_XS,
    "iq3_s": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_S,
    "iq3_m": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_M,
}
"""The types that llama.cpp makes with an importance matrix only."""
MXFP4_MOE: int = llama_cpp.LLAMA_FTYPE_MOSTLY_MXFP4_MOE


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor as the quantiser left it."""

    type: str
    size_bytes: int


def full_name(tensor: TypedTensor) -> str:
    """The tensor's name in a file."""
    layer = "" if tensor.layer is None else f"blk.{tensor.layer}."
    return f"{layer}{tensor.name}{'' if tensor.name == 'ssm_a' else '.weight'}"


def write_gguf(
    file: Path, shape: ModelShape, architecture: str, keys: Mapping[str, int | float]
) -> None:
    """All matrices of ``shape`` in float16 with the metadata that the quantiser reads."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(len(shape.layers))
    writer.add_context_length(128)
    writer.add_embedding_length(shape.hidden_size)
    for key, value in keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    draw = np.random.default_rng(0)
    for tensor in tensor_types(shape, "f16") or ():
        dims = (tensor.rows, tensor.columns)
        dims = dims if tensor.count == 1 else (tensor.count, *dims)
        kind = np.float32 if tensor.type == "F32" else np.float16
        writer.add_tensor(full_name(tensor), draw.normal(size=dims).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(
    source: Path, target: Path, ftype: int, shape: ModelShape, *, imatrix: bool
) -> dict[str, Stored]:
    """What llama.cpp's quantiser makes of each tensor; ``imatrix`` weighs all columns alike."""
    llama_log()  # keeps llama.cpp's lines, one a tensor, off the terminal
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = 1
    if imatrix:
        params.imatrix = _even_imatrix(shape)
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0
    return {
        tensor.name: Stored(type=tensor.tensor_type.name, size_bytes=int(tensor.n_bytes))
        for tensor in gguf.GGUFReader(target).tensors
    }


def _even_imatrix(shape: ModelShape) -> ctypes.Array[ctypes.Structure]:
    tensors = tensor_types(shape, "f16") or ()
    entries = (llama_cpp.llama_model_imatrix_data * (len(tensors) + 1))()  # a null name ends it
    for entry, tensor in zip(entries, tensors, strict=False):
        weights = (ctypes.c_float * (tensor.columns * tensor.count))()
        np.ctypeslib.as_array(weights)[:] = 1.0
        entry.name = full_name(tensor).encode()
        entry.data = ctypes.cast(weights, type(entry.data))
        entry.size = len(weights)
    return entries
