"""Rope scaling in GGUF: what becomes metadata, and what a tensor of factors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmfit.quantize.gguf_shape import GgufShape, refuse

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter


def write_rope(writer: GGUFWriter, shape: GgufShape) -> None:
    """Add the rope's metadata. Raises ModelLoadError for settings that GGUF has no key for."""
    import gguf

    rope, kind = shape.rope, shape.rope["rope_type"]
    trained = rope["original_max_position_embeddings"] or shape.context_length
    writer.add_rope_dimension_count(shape.rotary_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    if shape.rope_local_theta is not None:
        writer.add_rope_freq_base_swa(shape.rope_local_theta)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(trained)
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
    elif kind == "yarn":
        # These change yarn's temperature in ways that GGUF has no key for.
        unusual = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key)]
        refuse(bool(unusual), f"rope scaling with {' and '.join(unusual)}")
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(trained)
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def rope_tensors(shape: GgufShape) -> dict[str, torch.Tensor]:
    """Divisors of the rotary frequencies by tensor name, float32[rotary_dim / 2] each."""
    import torch

    kind = shape.rope["rope_type"]
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(shape)}
    if kind != "longrope":
        return {}
    factors = {}
    for length in ("long", "short"):
        values = shape.rope[f"{length}_factor"]
        count = shape.rotary_dim // 2
        refuse(len(values) != count, f"{len(values)} factors for {count} rotary frequencies")
        factors[f"rope_factors_{length}.weight"] = torch.tensor(values, dtype=torch.float32)
    return factors


def _llama3_factors(shape: GgufShape) -> torch.Tensor:
    """The divisors of Llama 3's scaling.

    Source: the Llama 3.1 release; frequencies whose wavelength exceeds the trained context over
    ``low_freq_factor`` are divided by ``factor``, those below the context over
    ``high_freq_factor`` stay, and between them the two are blended.
    """
    import torch

    factor, low, high = (
        float(shape.rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    trained = float(shape.rope["original_max_position_embeddings"])
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    turns = trained * shape.rope_theta**-exponents / (2 * math.pi)  # over the trained context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 / (keep + (1.0 - keep) / factor)).float()
