"""A Hugging Face model folder as a GGUF file, tensor by tensor.

    config.json ──► ``GgufShape`` ──► metadata ─┐
    tokenizer   ──► ``GgufVocabulary`` ─────────┼─► GGUF
    *.safetensors ──► name map, q/k order ──────┘

One tensor is in memory at a time. Matrices take the type asked for, vectors stay in float32, as
llama.cpp expects.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.quantize.gguf_shape import GgufShape, read_shape, refuse
from llmfit.quantize.gguf_vocab import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from gguf import GGUFWriter, TensorNameMap

FloatType = Literal["f32", "f16", "bf16"]

FLOAT_FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 32}
"""Source: llama.cpp's enum llama_ftype."""

NOTES_KEY = "llmfit.notes"
"""Metadata key under which the converter's notes travel with the file."""

# Computed from the configuration by every runtime; old checkpoints carry it all the same.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"


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
    writer = gguf.GGUFWriter(path=target, arch=shape.architecture)
    _write_metadata(writer, shape, name=folder.name, dtype=dtype)
    vocabulary.write(writer)
    notes = shape.notes + vocabulary.notes
    writer.add_array(NOTES_KEY, notes)
    with contextlib.ExitStack() as stack:
        stack.callback(writer.close)
        tensors = _plan_tensors(folder, shape, stack)
        extra = _rope_factors(shape)
        for tensor in tensors:
            _announce(writer, tensor.target, tensor.shape, dtype)
        if extra is not None:
            _announce(writer, "rope_freqs.weight", extra.shape, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(tensors, start=1):
            writer.write_tensor_data(_payload(tensor, tensor.read(shape), dtype))
            if progress is not None:
                progress("convert", done, len(tensors))
        if extra is not None:
            writer.write_tensor_data(extra.numpy())
    return Conversion(path=target, tensors=len(tensors), notes=notes)


def stored_dtype(folder: Path) -> FloatType:
    """The type that holds the checkpoint's widest matrix without loss."""
    with contextlib.ExitStack() as stack:
        found = {
            str(file.get_slice(name).get_dtype())
            for name, file in _open_tensors(folder, stack).items()
            if len(file.get_slice(name).get_shape()) > 1
        }
    if found == {"F16"}:
        return "f16"
    return "bf16" if found == {"BF16"} else "f32"


# ---------------------------------------------------------------- metadata and rope


def _write_metadata(writer: GGUFWriter, shape: GgufShape, *, name: str, dtype: FloatType) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FLOAT_FILE_TYPES[dtype])
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
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    _write_rope_scaling(writer, shape)


def _write_rope_scaling(writer: GGUFWriter, shape: GgufShape) -> None:
    import gguf

    rope, kind = shape.rope, shape.rope["rope_type"]
    if kind in ("default", "llama3"):  # llama3 is the tensor that _rope_factors makes
        return
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
        return
    # These change yarn's temperature in ways that GGUF has no key for.
    unusual = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key)]
    refuse(kind != "yarn" or bool(unusual), f"rope scaling {dict(rope)}")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(
        rope.get("original_max_position_embeddings") or shape.context_length
    )
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _rope_factors(shape: GgufShape) -> torch.Tensor | None:
    """The divisor of each rotary frequency, float32[head_dim / 2], for Llama 3's scaling.

    Source: the Llama 3.1 release; frequencies whose wavelength exceeds the trained context over
    ``low_freq_factor`` are divided by ``factor``, those below the context over
    ``high_freq_factor`` stay, and between them the two are blended.
    """
    import torch

    if shape.rope["rope_type"] != "llama3":
        return None
    factor, low, high = (
        float(shape.rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    trained = float(shape.rope["original_max_position_embeddings"])
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    turns = trained * shape.rope_theta**-exponents / (2 * math.pi)  # over the trained context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 / (keep + (1.0 - keep) / factor)).float()


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor: where it is, what it is called there and in the GGUF file."""

    source: str
    target: str
    shape: tuple[int, ...]
    file: Any

    def read(self, shape: GgufShape) -> torch.Tensor:
        """The tensor, with q and k rows in the order of llama.cpp's rotary embedding.

        Source: transformers rotates dimension i with i + d/2; llama.cpp's "llama" rotates 2i
        with 2i + 1 and its Qwen graphs do as transformers.
        """
        tensor: torch.Tensor = self.file.get_tensor(self.source)
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(self.source.split(".")[-2])
        if shape.architecture != "llama" or heads is None:
            return tensor
        halves = tensor.reshape(heads, 2, shape.head_dim // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)


def _plan_tensors(folder: Path, shape: GgufShape, stack: contextlib.ExitStack) -> list[_Tensor]:
    """Every tensor to write, in the order of the checkpoint."""
    import gguf

    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == shape.architecture)
    names = gguf.get_tensor_name_map(architecture, shape.layers)
    files = _open_tensors(folder, stack)
    tensors = [
        _Tensor(name, _target(name, names, shape), tuple(file.get_slice(name).get_shape()), file)
        for name, file in files.items()
        if not name.endswith(_IGNORED_SUFFIX) and not (shape.tied and name == "lm_head.weight")
    ]
    found = {tensor.target for tensor in tensors}
    missing = [name for name in _required(shape) if name not in found]
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} tensors, among them the one for {missing[0]}."
        )
    return tensors


def _target(name: str, names: TensorNameMap, shape: GgufShape) -> str:
    target = names.get_name(name, try_suffixes=(".weight", ".bias"))
    # llama.cpp's Qwen graphs add no bias after the output projection.
    lost = shape.architecture != "llama" and name.endswith("o_proj.bias")
    refuse(target is None or lost, f"the tensor {name}")
    assert target is not None
    return target


def _required(shape: GgufShape) -> Iterator[str]:
    yield "token_embd.weight"
    yield "output_norm.weight"
    if not shape.tied:
        yield "output.weight"
    parts = ["attn_q", "attn_k", "attn_v", "attn_output", "attn_norm"]
    parts += ["ffn_gate", "ffn_up", "ffn_down", "ffn_norm"]
    if shape.architecture == "qwen3":
        parts += ["attn_q_norm", "attn_k_norm"]
    for layer in range(shape.layers):
        yield from (f"blk.{layer}.{part}.weight" for part in parts)


def _open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor names to the open safetensors files that hold them."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    else:
        shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if not shards:
        raise ModelNotFound(
            f"{folder} holds no *.safetensors.",
            hint="save the model again with model.save_pretrained(FOLDER)",
        )
    found: dict[str, Any] = {}
    for shard in shards:
        try:
            file = stack.enter_context(safe_open(folder / shard, framework="pt"))
        except (OSError, SafetensorError) as exc:
            raise ModelLoadError(f"{folder / shard} cannot be read: {exc}.") from exc
        found |= dict.fromkeys(file.keys(), file)
    return found


def _announce(writer: GGUFWriter, name: str, shape: tuple[int, ...], dtype: FloatType) -> None:
    import gguf
    import numpy as np

    kind = {"f32": "F32", "f16": "F16", "bf16": "BF16"}[dtype] if len(shape) > 1 else "F32"
    width = 4 if kind == "F32" else 2
    writer.add_tensor_info(
        name,
        shape,
        np.dtype(np.float32 if kind == "F32" else np.float16),
        math.prod(shape) * width,
        raw_dtype=gguf.GGMLQuantizationType[kind],
    )


def _payload(tensor: _Tensor, values: torch.Tensor, dtype: FloatType) -> Any:
    """The tensor's bytes as a NumPy array; bfloat16, which NumPy lacks, as int16."""
    import torch

    if not values.dtype.is_floating_point or values.dtype.itemsize < 2:
        raise ModelLoadError(
            f"{tensor.source} is stored as {values.dtype}; the converter needs floating-point "
            "weights of 16 bits or more.",
            hint="the model before its quantisation",
        )
    if values.dim() == 1 or dtype == "f32":
        return values.float().contiguous().numpy()
    if dtype == "bf16":
        return values.bfloat16().contiguous().view(torch.int16).numpy()
    half = values.half()
    if not half.isfinite().all() and values.isfinite().all():
        raise ModelLoadError(
            f"{tensor.source} exceeds float16's range of 65504.", hint="--backends gguf:bf16"
        )
    return half.contiguous().numpy()
