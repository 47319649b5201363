"""What the two bitsandbytes rows share."""

from __future__ import annotations

from typing import Any

from llmfit.backends._hf import (
    HfModel,
    fused_attention,
    linear_kernel,
    load_causal_lm,
    share_note,
    weights_bytes,
)
from llmfit.backends._tokenizer import load_tokenizer
from llmfit.backends.base import TORCH, LoadInfo, Package
from llmfit.records import Kernel, Plan

PACKAGES = (*TORCH, Package("bitsandbytes", "bitsandbytes"), Package("accelerate", "accelerate"))
_PACKED_ROWS = 32  # Source: bitsandbytes 0.50, functional._convert_weight_packed_for_cpu
_QUANTIZED_CLASSES = ("Linear4bit", "Linear8bitLt")


def load_bnb(plan: Plan, quantization: Any | None, dtype: str, notes: tuple[str, ...]) -> HfModel:
    """Load with a ``BitsAndBytesConfig``, or None for a checkpoint that carries its own."""
    options = {} if quantization is None else {"quantization_config": quantization}
    attention, attention_notes = fused_attention(plan.model.path)
    model = load_causal_lm(plan.model.path, plan, attention=attention, **options)
    notes += attention_notes + keep_odd_layers_unpacked(model)
    share = quantized_share(model)
    info = LoadInfo(
        kernel=Kernel(linear=linear_kernel(model), attention=attention),
        dtype=dtype,
        weights_bytes=weights_bytes(model),
        quantized_share=share,
        notes=(*notes, share_note(share)),
    )
    return HfModel(
        model,
        tokenizer=load_tokenizer(plan.model.path),
        info=info,
        kv_cache_dtype=plan.kv_cache_dtype,
    )


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
