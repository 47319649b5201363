"""What the two bitsandbytes rows share."""

from __future__ import annotations

import math
from typing import Any

from llmfit.backends._hf import (
    SYNTHETIC_NOTE,
    HfModel,
    fused_attention,
    linear_kernel,
    load_causal_lm,
    plan_config,
    quieten_bitsandbytes,
    require_quantized,
    run_one_token,
    share_note,
)
from llmfit.backends._several import require_on_gpus
from llmfit.backends._synthetic import MadeTensor, Noise, Packed, constant, random_causal_lm, spread
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import weights_bytes
from llmfit.backends.base import TORCH, LoadInfo, Package
from llmfit.records import Kernel, Plan

PACKAGES = (*TORCH, Package("bitsandbytes", "bitsandbytes"), Package("accelerate", "accelerate"))
_PACKED_ROWS = 32  # Source: bitsandbytes 0.50, functional._convert_weight_packed_for_cpu
_INT8_SPREAD = math.sqrt((255**2 - 1) / 12)
"""Standard deviation of evenly distributed integers from -127 to 127."""
_NESTED_BLOCK = 256
"""Block statistics quantised together. Source: bitsandbytes 0.50, functional.quantize_4bit."""
_QUANTIZED_CLASSES = ("Linear4bit", "Linear8bitLt")


def load_bnb(plan: Plan, quantization: Any | None, dtype: str, notes: tuple[str, ...]) -> HfModel:
    """Load with a ``BitsAndBytesConfig``, or None for a checkpoint that carries its own."""
    from llmfit.backends._int8_rows import fuse_int8_rows
    from llmfit.backends._unpacked_rows import unpack_for_many_rows

    quieten_bitsandbytes()
    config = plan_config(plan)
    attention, attention_notes = fused_attention(config)
    if plan.weights == "synthetic":
        assert quantization is not None  # Backend.check lets no quantised model through
        model = random_causal_lm(
            plan, config, attention=attention, quantization=quantization.to_dict(), pack=_pack
        )
        notes = (SYNTHETIC_NOTE, *notes)
    else:
        options = {} if quantization is None else {"quantization_config": quantization}
        model = load_causal_lm(plan.model.path, plan, attention=attention, **options)
    notes += require_on_gpus(model, plan) + attention_notes + keep_odd_layers_unpacked(model)
    share, stored_bytes = quantized_share(model), weights_bytes(model)
    require_quantized(share, plan)
    # A CPU's kernels repack the weights then.
    run_one_token(model, hint=f"--backends without {plan.backend}")
    notes += fuse_int8_rows(model) + unpack_for_many_rows(model)
    info = LoadInfo(
        kernel=Kernel(linear=linear_kernel(model), attention=attention),
        dtype=dtype,
        weights_bytes=stored_bytes,
        quantized_share=share,
        notes=(*notes, share_note(share)),
    )
    return HfModel(
        model,
        tokenizer=tokenizer_of(plan),
        info=info,
        context_length=plan.model.max_position_embeddings,
        may_compile=True,
        kv_cache_dtype=plan.kv_cache_dtype,
    )


def _pack(layer: Any, noise: Noise) -> Packed:
    """Random tensors of a bitsandbytes layer as its checkpoints hold them; none for another."""
    kind = type(layer).__name__
    if kind not in _QUANTIZED_CLASSES:
        return {}
    packed = _random_4bit(layer, noise) if kind == "Linear4bit" else _random_8bit(layer, noise)
    if layer.bias is not None:
        std = spread(layer.in_features)
        packed["bias"] = noise.normal(layer.bias.shape, layer.bias.dtype, std)
    return packed


def _random_8bit(layer: Any, noise: Noise) -> dict[str, MadeTensor]:
    """Integers of a byte, and for each output row the magnitude that 127 stands for."""
    import torch

    shape = (layer.out_features, layer.in_features)
    row_absmax = spread(layer.in_features) * 127 / _INT8_SPREAD
    return {
        "weight": noise.integers(shape, torch.int8, -127, 127),
        "SCB": noise.about(shape[:1], torch.float32, row_absmax),
    }


def _random_4bit(layer: Any, noise: Noise) -> dict[str, MadeTensor]:
    """Codes of four bits, and for each block of them the magnitude that the code 1.0 stands for."""
    import torch
    from bitsandbytes.functional import QuantState, get_4bit_type

    parameter = layer.weight
    code = get_4bit_type(parameter.quant_type, device="cpu")
    values = layer.out_features * layer.in_features
    blocks = math.ceil(values / parameter.blocksize)
    magnitude = spread(layer.in_features) / float(code.std())
    nested = _nested(blocks, magnitude) if parameter.compress_statistics else {}
    state = QuantState(
        absmax=torch.empty(blocks, device="meta"),
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=code,
        blocksize=parameter.blocksize,
        quant_type=parameter.quant_type,
        dtype=torch.bfloat16,
        **nested,
    )
    tensors = {
        f"weight.{name}": constant(part) for name, part in state.as_dict(packed=True).items()
    }
    if nested:
        groups = tuple(nested["state2"].absmax.shape)
        tensors["weight.absmax"] = noise.integers((blocks,), torch.uint8, 0, 255)
        tensors["weight.nested_absmax"] = noise.about(groups, torch.float32, magnitude / 8)
    else:
        tensors["weight.absmax"] = noise.about((blocks,), torch.float32, magnitude)
    tensors["weight"] = noise.nibbles((math.ceil(values / 2), 1), torch.uint8, 0, 15)
    return tensors


def _nested(blocks: int, magnitude: float) -> dict[str, Any]:
    """The second level of double quantisation: 8-bit codes around the magnitudes' mean."""
    import torch
    from bitsandbytes.functional import QuantState, create_dynamic_map

    second = QuantState(
        absmax=torch.empty(math.ceil(blocks / _NESTED_BLOCK), device="meta"),
        code=create_dynamic_map(),
        blocksize=_NESTED_BLOCK,
        dtype=torch.float32,
    )
    return {"offset": torch.tensor(magnitude), "state2": second}


def keep_odd_layers_unpacked(model: Any) -> tuple[str, ...]:
    """Send 4-bit layers that bitsandbytes' packed CPU kernel cannot take through its general one.

    The packed kernel wants output rows in multiples of 32 and whole blocks in each row, and
    fails on its first call otherwise. The weights stay in 4 bits either way. Returns the note.
    """
    odd = [
        module
        for module in model.modules()
        if type(module).__name__ == "Linear4bit"
        and getattr(module, "support_avx512bf16_for_cpu", False)
        and (
            module.out_features % _PACKED_ROWS
            or module.in_features % module.weight.quant_state.blocksize
        )
    ]
    for module in odd:
        module.support_avx512bf16_for_cpu = False
    if not odd:
        return ()
    shapes = sorted({f"{module.in_features}→{module.out_features}" for module in odd})
    return (
        f"{len(odd)} layers ({', '.join(shapes)}) do not divide by the packed CPU kernel's blocks: "
        "4-bit, run by the slower general kernel",
    )


def quantized_share(model: Any) -> float:
    """Share of the parameters that sit in bitsandbytes layers, 0…1, tied tensors counted once."""
    quantized = sum(
        module.in_features * module.out_features
        for module in model.modules()
        if type(module).__name__ in _QUANTIZED_CLASSES
    )
    inside = {
        id(module.weight)
        for module in model.modules()
        if type(module).__name__ in _QUANTIZED_CLASSES
    }
    other = sum(
        parameter.numel() for parameter in model.parameters() if id(parameter) not in inside
    )
    return float(quantized / (quantized + other))
