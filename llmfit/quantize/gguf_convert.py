"""A Hugging Face model folder as a GGUF file, tensor by tensor.

    config.json ──► ``GgufShape`` ──► metadata ─┐
    tokenizer   ──► ``GgufVocabulary`` ─────────┼─► GGUF
    *.safetensors ──► ``SourceTensor`` ─────────┘

One tensor is in memory at a time. Matrices take the type asked for, vectors stay in float32, as
llama.cpp expects.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmfit.errors import ModelLoadError
from llmfit.quantize.gguf_rope import rope_tensors, write_rope
from llmfit.quantize.gguf_shape import GgufShape, read_shape
from llmfit.quantize.gguf_tensors import SourceTensor, open_tensors, plan_tensors
from llmfit.quantize.gguf_vocab import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from gguf import GGUFWriter

FloatType = Literal["f32", "f16", "bf16"]

FLOAT_FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 32}
"""Source: llama.cpp's enum llama_ftype."""

NOTES_KEY = "llmfit.notes"
"""Metadata key under which the converter's notes travel with the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written."""

    path: Path
    tensors: int
    notes: tuple[str, ...]


def convert(
    folder: Path,
    target: Path,
    *,
    dtype: FloatType,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write the model in ``folder`` to the GGUF file ``target`` with matrices of ``dtype``.

    Raises ModelLoadError for an architecture, a rope scaling or a tokenizer that cannot be
    said in GGUF (naming it) and for a float16 overflow, ModelNotFound for missing files.
    """
    import gguf

    shape = read_shape(folder)
    vocabulary = read_vocabulary(folder, vocab_size=shape.vocab_size)
    writer = gguf.GGUFWriter(path=target, arch=shape.architecture.name)
    write_metadata(writer, shape, name=_named(folder.name), file_type=FLOAT_FILE_TYPES[dtype])
    vocabulary.write(writer)
    notes = shape.notes + vocabulary.notes
    writer.add_array(NOTES_KEY, notes)
    with contextlib.ExitStack() as stack:
        stack.callback(writer.close)
        tensors = plan_tensors(folder, shape, stack)
        factors = rope_tensors(shape)
        for tensor in tensors:
            _announce(writer, tensor.target, tensor.shape, dtype)
        for name, values in factors.items():
            _announce(writer, name, tuple(values.shape), dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(tensors, start=1):
            writer.write_tensor_data(_payload(tensor, tensor.read(), dtype))
            if progress is not None:
                progress("convert", done, len(tensors))
        for values in factors.values():
            writer.write_tensor_data(values.numpy())
    return Conversion(path=target, tensors=len(tensors), notes=notes)


def _named(folder: str) -> str:
    """A name by which llama.cpp does not take the vocabulary for Phi-3's, which it then changes.

    Source: llama.cpp, llama-vocab.cpp, which looks for ``phi3`` and ``phi-3`` in the model's name.
    """
    return re.sub(r"(?i)(phi)-?(3)", r"\1 \2", folder)


def stored_dtype(folder: Path) -> FloatType:
    """The type that holds the checkpoint's widest matrix without loss."""
    with contextlib.ExitStack() as stack:
        found = {
            str(file.get_slice(name).get_dtype())
            for name, file in open_tensors(folder, stack).items()
            if len(file.get_slice(name).get_shape()) > 1
        }
    if found == {"F16"}:
        return "f16"
    return "bf16" if found == {"BF16"} else "f32"


def write_metadata(writer: GGUFWriter, shape: GgufShape, *, name: str, file_type: int) -> None:
    """Add all that llama.cpp wants to know but the vocabulary; ``file_type`` is its own number."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if key in shape.softcaps:
            add(shape.softcaps[key])
    if shape.sliding_window is not None:
        writer.add_sliding_window(shape.sliding_window)
    if shape.sliding_layers:
        writer.add_sliding_window_pattern(shape.sliding_layers)
    if shape.experts is not None and shape.experts_used is not None:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
    write_rope(writer, shape)


def _stored_as(name: str, dims: int, dtype: FloatType) -> FloatType:
    """Vectors, and the matrix that chooses experts, stay as exact as they can be."""
    return "f32" if dims == 1 or name.endswith("ffn_gate_inp.weight") else dtype


def _announce(writer: GGUFWriter, name: str, shape: tuple[int, ...], dtype: FloatType) -> None:
    import gguf
    import numpy as np

    kind = _stored_as(name, len(shape), dtype).upper()
    width = 4 if kind == "F32" else 2
    writer.add_tensor_info(
        name,
        shape,
        np.dtype(np.float32 if kind == "F32" else np.float16),
        math.prod(shape) * width,
        raw_dtype=gguf.GGMLQuantizationType[kind],
    )


def _payload(tensor: SourceTensor, values: torch.Tensor, dtype: FloatType) -> Any:
    """The tensor's bytes as a NumPy array; bfloat16, which NumPy lacks, as int16."""
    import torch

    if not values.dtype.is_floating_point or values.dtype.itemsize < 2:
        raise ModelLoadError(
            f"{tensor.name} is stored as {values.dtype}; the converter needs floating-point "
            "weights of 16 bits or more.",
            hint="the model before its quantisation",
        )
    kind = _stored_as(tensor.target, values.dim(), dtype)
    if kind == "f32":
        return values.float().contiguous().numpy()
    if kind == "bf16":
        return values.bfloat16().contiguous().view(torch.int16).numpy()
    half = values.half()
    if not half.isfinite().all() and values.isfinite().all():
        raise ModelLoadError(
            f"{tensor.name} exceeds float16's range of 65504.", hint="--backends gguf:bf16"
        )
    return half.contiguous().numpy()
