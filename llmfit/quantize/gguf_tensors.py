"""The tensors of a checkpoint under their GGUF names, each read when it is written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.foreign.files import weight_files
from llmfit.foreign.json import shortened
from llmfit.quantize.gguf_shape import GgufShape, refuse

if TYPE_CHECKING:
    import torch
    from gguf import TensorNameMap

# Computed from the configuration by every runtime; old checkpoints carry it all the same.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(w[123])\.weight")
# Where a multimodal checkpoint keeps its language model, before and after transformers 4.52.
_LANGUAGE_MODEL = {"language_model.": "", "model.language_model.": "model."}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """One tensor of the GGUF file, and what of the checkpoint it is made from."""

    target: str
    shape: tuple[int, ...]
    sources: tuple[tuple[str, Any], ...]
    """Name and open file; of several, one per expert, in their order."""
    heads: int | None = None
    """Rows are to be reordered within so many heads."""
    offset: float = 0.0
    factor: float = 1.0

    @property
    def name(self) -> str:
        """The checkpoint's own name of it, or of the first expert."""
        return self.sources[0][0]

    def read(self) -> torch.Tensor:
        """The values, in llama.cpp's order."""
        import torch

        parts = [file.get_tensor(name) for name, file in self.sources]
        tensor: torch.Tensor = torch.stack(parts) if len(self.shape) == 3 else parts[0]
        if self.offset or self.factor != 1.0:
            tensor = (tensor.float() + self.offset) * self.factor
        if self.heads is None:
            return tensor
        halves = tensor.reshape(self.heads, 2, -1, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)


def plan_tensors(folder: Path, shape: GgufShape, stack: contextlib.ExitStack) -> list[SourceTensor]:
    """Every tensor to write, in the order of the checkpoint, whose files ``stack`` closes.

    Raises ModelLoadError for tensors that are missing or that llama.cpp has no place for,
    ModelNotFound without a checkpoint.
    """
    import gguf

    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == shape.architecture.name)
    names = gguf.get_tensor_name_map(kind, shape.layers)
    tensors = [
        _tensor(name, sources, names, shape)
        for name, sources in _grouped(open_tensors(folder, stack), shape).items()
    ]
    found = {tensor.target for tensor in tensors}
    missing = [name for name in _required(shape) if name not in found]
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} tensors, among them the one for {missing[0]}."
        )
    return tensors


def _grouped(files: Mapping[str, Any], shape: GgufShape) -> dict[str, tuple[tuple[str, Any], ...]]:
    """The checkpoint's tensors by name, experts of one layer and matrix together."""
    grouped: dict[str, list[tuple[int, str, Any]]] = {}
    for own_name, file in files.items():
        name = _within_language_model(own_name) if shape.architecture.text_part else own_name
        if name is None or name.endswith(_IGNORED_SUFFIX):
            continue
        if shape.tied and name == "lm_head.weight":
            continue
        expert = _EXPERT.fullmatch(name)
        if expert:
            name = f"{expert[1]}.{expert[3]}.weight"
        grouped.setdefault(name, []).append((int(expert[2]) if expert else 0, own_name, file))
    return {
        name: tuple((own_name, file) for _, own_name, file in sorted(parts, key=lambda p: p[0]))
        for name, parts in grouped.items()
    }


def _within_language_model(name: str) -> str | None:
    """The name as a language model alone has it; None for a tensor of another part."""
    for prefix, instead in _LANGUAGE_MODEL.items():
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name if name == "lm_head.weight" else None


def _tensor(
    name: str,
    sources: tuple[tuple[str, Any], ...],
    names: TensorNameMap,
    shape: GgufShape,
) -> SourceTensor:
    architecture = shape.architecture
    target = names.get_name(name, try_suffixes=(".weight", ".bias"))
    lost = name.endswith("o_proj.bias") and not architecture.output_bias
    refuse(target is None or lost, f"the tensor {name}")
    assert target is not None
    shapes = {tuple(file.get_slice(own).get_shape()) for own, file in sources}
    own_shape = max(shapes)
    if len(shapes) > 1 or not 1 <= len(own_shape) <= 2:
        raise ModelLoadError(f"{shortened(name)} has the shapes {shortened(sorted(shapes))}.")
    if "_exps." in target:
        if len(sources) != shape.experts:
            raise ModelLoadError(
                f"{name} stands for {len(sources)} experts, config.json says {shape.experts}."
            )
        own_shape = (len(sources), *own_shape)
    normed = "attn_q_norm" in architecture.layer_tensors
    queries = target.endswith("attn_q_norm.weight" if normed else "attn_q.weight")
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    if heads is not None and own_shape[0] != heads * shape.head_dim:
        raise ModelLoadError(
            f"{name} has {own_shape[0]} rows, config.json tells of {heads} heads of "
            f"{shape.head_dim}.",
            hint="all files of the checkpoint, and the config.json that belongs to them",
        )
    return SourceTensor(
        target=target,
        shape=own_shape,
        sources=sources,
        heads=heads if architecture.interleaved_rope else None,
        offset=architecture.norm_offset if name.endswith("norm.weight") else 0.0,
        factor=shape.query_factor if queries else 1.0,
    )


def _required(shape: GgufShape) -> Iterator[str]:
    yield "token_embd.weight"
    yield "output_norm.weight"
    if not shape.tied:
        yield "output.weight"
    for layer in range(shape.layers):
        yield from (f"blk.{layer}.{part}.weight" for part in shape.architecture.layer_tensors)


def open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor names to the open safetensors files that hold them.

    Raises ModelNotFound where there is none, ModelLoadError for a broken one.
    """
    from safetensors import SafetensorError, safe_open

    shards = [file.name for file in weight_files(folder)]
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
