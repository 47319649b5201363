"""transformers' models without values, and the configs and shapes that they are made of."""

from __future__ import annotations

from typing import Any

from llmfit.planning.architectures import read_shape
from llmfit.shape import ModelShape

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256,
    "intermediate_size": 704, "num_hidden_layers": 11, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": 1001, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "large vocabulary": {**LLAMA, "vocab_size": 20_000, "num_hidden_layers": 4},
    "many layers": {**LLAMA, "num_hidden_layers": 40, "vocab_size": 300},
    "qwen2": {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 128, "n_layer": 7,
        "n_head": 4, "n_positions": 256, "vocab_size": 512, "tie_word_embeddings": True,
    },
    "experts": {
        **LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 5,
    },
}  # fmt: skip


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape = read_shape(config)
    assert shape is not None
    return shape


def on_meta(config: dict[str, Any]) -> Any:
    """transformers' model of a config, in bfloat16, without values."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {key: value for key, value in config.items() if key != "architectures"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**known), dtype=torch.bfloat16)
