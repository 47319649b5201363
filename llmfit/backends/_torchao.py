"""What the torchao rows share: weights quantised by torchao inside ordinary linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmfit.backends._hf import (
    SYNTHETIC_NOTE,
    HfModel,
    fused_attention,
    load_causal_lm,
    plan_config,
    require_quantized,
    run_one_token,
    share_note,
)
from llmfit.backends._synthetic import random_causal_lm
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import weights_bytes
from llmfit.backends.base import TORCH, LoadInfo, Package
from llmfit.records import Kernel, Plan

if TYPE_CHECKING:
    from torch import nn

PACKAGES = (*TORCH, Package("torchao", "torchao"), Package("accelerate", "accelerate"))


def load_torchao(plan: Plan, config: Any, dtype: str, notes: tuple[str, ...]) -> HfModel:
    """Load in bf16 and quantise by a torchao ``config``, layer by layer as they are read.

    Random weights are quantised once all are made. Head and embeddings stay in bf16.
    """
    from torchao.quantization import quantize_
    from transformers import TorchAoConfig

    attention, attention_notes = fused_attention(plan_config(plan))
    if plan.weights == "synthetic":
        model = random_causal_lm(plan, plan_config(plan), attention=attention)
        head = model.get_output_embeddings()  # type: ignore[operator]
        quantize_(model, config, lambda module, _: _is_linear(module) and module is not head)
        notes = (SYNTHETIC_NOTE, "made in 16 bits first", *notes)
    else:
        model = load_causal_lm(
            plan.model.path, plan, attention=attention, quantization_config=TorchAoConfig(config)
        )
    run_one_token(model, hint=f"--backends without {plan.backend}")
    packed = [module for module in model.modules() if _is_linear(module) and _is_packed(module)]
    share = sum(map(_values, packed)) / sum(p.numel() for p in model.parameters())
    require_quantized(share, plan)
    kinds = dict.fromkeys(type(module.weight).__name__ for module in packed)
    info = LoadInfo(
        kernel=Kernel(linear=" + ".join(f"Linear ({kind})" for kind in kinds), attention=attention),
        dtype=dtype,
        weights_bytes=weights_bytes(model),
        quantized_share=share,
        notes=(*notes, *attention_notes, share_note(share)),
    )
    return HfModel(
        model,
        tokenizer=tokenizer_of(plan),
        info=info,
        context_length=plan.model.max_position_embeddings,
        kv_cache_dtype=plan.kv_cache_dtype,
    )


def _is_packed(module: Any) -> bool:
    """True where the weight is made of other tensors, as torchao's are."""
    return hasattr(module.weight, "__tensor_flatten__")


def _is_linear(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear"


def _values(module: Any) -> int:
    return int(module.in_features * module.out_features)
