"""4-bit weights by HQQ."""

from __future__ import annotations

from typing import Any

from llmfit.backends._hf import (
    SYNTHETIC_NOTE,
    HfModel,
    TorchBackend,
    fused_attention,
    linear_kernel,
    load_causal_lm,
    plan_config,
    require_quantized,
    run_one_token,
    share_note,
)
from llmfit.backends._synthetic import random_causal_lm
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import weights_bytes
from llmfit.backends.base import TORCH, LoadedModel, LoadInfo, Package, Progress, no_progress
from llmfit.records import Kernel, Plan

BITS = 4
GROUP_SIZE = 64


class Hqq(TorchBackend):
    """Weights in 4-bit integers, groups of 64 with a scale and a zero point; bf16 arithmetic.

    Without calibration: scales are fitted to the weights alone.
    Source: Badri and Shaji, Half-Quadratic Quantization, 2023, mobiusml.github.io/hqq_blog.
    """

    id = "hqq"
    label = "HQQ INT4"
    packages = (*TORCH, Package("hqq", "hqq"), Package("accelerate", "accelerate"))
    extra = "kv"

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        attention, notes = fused_attention(plan_config(plan))
        if plan.weights == "synthetic":
            model: Any = random_causal_lm(plan, plan_config(plan), attention=attention)
            notes = (SYNTHETIC_NOTE, *notes)
        else:
            model = load_causal_lm(plan.model.path, plan, attention=attention)
        quantized = _quantize(model, plan, progress)
        run_one_token(model, hint=f"--backends without {plan.backend}")
        values = sum(layer.in_features * layer.out_features for layer in quantized)
        share = values / (values + sum(_values(model)))
        require_quantized(share, plan)
        about = f"groups of {GROUP_SIZE}, made in 16 bits first; head and embeddings in bf16"
        info = LoadInfo(
            kernel=Kernel(linear=linear_kernel(model), attention=attention),
            dtype=self.id,
            weights_bytes=weights_bytes(model),
            quantized_share=share,
            notes=(about, *notes, share_note(share)),
        )
        return HfModel(
            model,
            tokenizer=tokenizer_of(plan),
            info=info,
            context_length=plan.model.max_position_embeddings,
            kv_cache_dtype=plan.kv_cache_dtype,
        )


def _quantize(model: Any, plan: Plan, progress: Progress) -> list[Any]:
    """Put HQQ's layers in the place of all linear ones but the head; those layers."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    head = model.get_output_embeddings()
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == "Linear"
        and child is not head
        and child.in_features % GROUP_SIZE == 0
    ]
    layers = []
    for done, (parent, name, child) in enumerate(found):
        progress("quantize", done, len(found))
        config = BaseQuantizeConfig(nbits=BITS, group_size=GROUP_SIZE)
        layer = HQQLinear(child, config, compute_dtype=torch.bfloat16, device=plan.device)
        setattr(parent, name, layer)
        layers.append(layer)
    return layers


def _values(model: Any) -> list[int]:
    """Numbers of values of all parameters that are not packed."""
    packed = {
        id(parameter)
        for module in model.modules()
        if type(module).__name__ == "HQQLinear"
        for parameter in module.parameters(recurse=False)
    }
    return [p.numel() for p in model.parameters() if id(p) not in packed]
