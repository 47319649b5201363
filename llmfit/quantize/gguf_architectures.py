"""The architectures that llmfit converts to GGUF: one table, one entry each.

An entry states what llama.cpp's graph computes, so that what it does not compute is refused.
Source: llama.cpp's src/models/*.cpp; the defaults are those of transformers' config classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_NORMS = ("attn_norm", "ffn_norm")
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_FFN = ("ffn_gate", "ffn_up", "ffn_down")
_POST_NORMS = ("post_attention_norm", "post_ffw_norm")
_QK_NORMS = ("attn_q_norm", "attn_k_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How llama.cpp computes one class of models, and how its checkpoints are written."""

    name: str
    """llama.cpp's own name."""
    layer_tensors: tuple[str, ...] = (*_NORMS, *_ATTENTION, *_FFN)
    """The weights that every layer must have, by their names in GGUF."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What keys mean that config.json leaves out."""
    activation: str = "silu"
    interleaved_rope: bool = False
    """Whether dimension 2i turns with 2i + 1; else i turns with i + d/2, as in transformers."""
    partial_rope: bool = False
    """Whether a part of each head may stay without rotation."""
    rope_types: frozenset[str] = frozenset(("default", "linear", "yarn"))
    square_attention: bool = False
    """Whether heads × head size must be the hidden size."""
    output_bias: bool = False
    """Whether the attention's output projection may have a bias."""
    must_tie: bool = False
    """Whether the output matrix is always the embedding."""
    norm_offset: float = 0.0
    """What transformers adds to the weights of norms and llama.cpp does not."""
    full_attention_every: int | None = None
    """Sliding windows are computed layer by layer, and by default each n-th layer has none.
    None: attention is full in every layer."""
    softcaps: Mapping[str, bool] = field(default_factory=dict)
    """Soft caps of config.json that are computed, and whether each is always."""
    scaled_by_width: int | None = None
    """The layer count at which queries are scaled by hidden size / heads, not by head size."""
    text_part: bool = False
    """Whether it is the language model inside a multimodal checkpoint."""


_LLAMA = Architecture(
    name="llama",
    interleaved_rope=True,
    rope_types=frozenset(("default", "linear", "yarn", "llama3")),
    output_bias=True,
)
_GEMMA2 = Architecture(
    name="gemma2",
    layer_tensors=(*_NORMS, *_ATTENTION, *_FFN, *_POST_NORMS),
    defaults={
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    activation="gelu_pytorch_tanh",
    rope_types=frozenset(("default", "linear")),
    must_tie=True,
    norm_offset=1.0,
    full_attention_every=2,
    softcaps={"attn_logit_softcapping": True, "final_logit_softcapping": True},
    scaled_by_width=46,
)
_GEMMA3 = replace(
    _GEMMA2,
    name="gemma3",
    layer_tensors=(*_NORMS, *_ATTENTION, *_FFN, *_POST_NORMS, *_QK_NORMS),
    defaults={
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    must_tie=False,
    full_attention_every=6,
    softcaps={"final_logit_softcapping": False},
    scaled_by_width=62,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    # llama.cpp computes Mistral and Mixtral as Llamas.
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": replace(
        _LLAMA,
        layer_tensors=(
            *_NORMS,
            *_ATTENTION,
            "ffn_gate_inp",
            *(f"{part}_exps" for part in _FFN),
        ),
        defaults={
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-5,
        },
    ),
    "Qwen2ForCausalLM": Architecture(name="qwen2", square_attention=True),
    "Qwen3ForCausalLM": Architecture(
        name="qwen3",
        layer_tensors=(*_NORMS, *_ATTENTION, *_FFN, *_QK_NORMS),
        defaults={"head_dim": 128},
    ),
    "Phi3ForCausalLM": Architecture(
        name="phi3",
        # Queries, keys and values are one matrix, as are gate and up.
        layer_tensors=(*_NORMS, "attn_qkv", "attn_output", "ffn_up", "ffn_down"),
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        partial_rope=True,
        rope_types=frozenset(("default", "linear", "longrope")),
        square_attention=True,
    ),
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": replace(_GEMMA3, text_part=True),
}
"""Class name in config.json to llama.cpp's computation of it."""
