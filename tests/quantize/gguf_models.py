"""Small models of random weights for the tests of GGUF files, and two ways to their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

llama_cpp = pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")

# Both sides compute in float32, in another order of sums; logits here span about ±10.
TOLERANCE = 2e-3
# llama.cpp looks Gemma's GELU up in a table of float16 values.
GELU_TOLERANCE = 5e-3

COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
# For texts of 200 tokens: 6 of a head's 8 frequencies turn, in two stretches of the rope.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 12.0],
}
PHI3 = {"pad_token_id": 0, "eos_token_id": 0, "original_max_position_embeddings": 256}
PHI3_LONG = PHI3 | {
    "rope_parameters": LONGROPE,
    "partial_rotary_factor": 0.75,
    "max_position_embeddings": 1024,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
GEMMA3_ROPE = {
    "full_attention": LINEAR_ROPE | {"rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 8_000.0},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama untied, no grouped queries": ("Llama", {"num_key_value_heads": 4}),
    "llama head size apart": ("Llama", {"head_dim": 32}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "yarn rope": ("Llama", {"rope_parameters": YARN_ROPE}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral head size apart": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN_ROPE}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied, head size apart": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "phi3": ("Phi3", PHI3),
    "phi3 tied, no grouped queries": (
        "Phi3",
        PHI3 | {"tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "phi3 longrope within the trained context": ("Phi3", PHI3_LONG),
    "phi3 longrope beyond the trained context": (
        "Phi3",
        PHI3_LONG | {"original_max_position_embeddings": 128},
    ),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2 head size apart, no grouped queries": (
        "Gemma2",
        GEMMA | {"head_dim": 32, "query_pre_attn_scalar": 32, "num_key_value_heads": 4},
    ),
    "gemma2 tight caps": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2 its own query scale": ("Gemma2", GEMMA | {"query_pre_attn_scalar": 5}),
    "gemma2 its own layer types": (
        "Gemma2",
        GEMMA | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7}),
    "gemma3 its own query scale": ("Gemma3", GEMMA | {"query_pre_attn_scalar": 50}),
    "gemma3 two ropes": (
        "Gemma3",
        GEMMA | {"num_hidden_layers": 6, "rope_parameters": GEMMA3_ROPE},
    ),
    "gemma3 untied, its own layer types, capped": (
        "Gemma3",
        GEMMA
        | {
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention"],
            "final_logit_softcapping": 5.0,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral tied, three of eight experts": (
        "Mixtral",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    ),
}


def save_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """A small byte-level BPE tokenizer with GPT-2's regular expression."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then the other cat ran"], trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)


def save_model(folder: Path, family: str, changes: dict[str, Any]) -> Any:
    """Random weights, vectors included, so that no part of the mapping is invisible."""
    kind = {"Gemma3": "Gemma3Text"}.get(family, family)
    config = getattr(transformers, f"{kind}Config")(**COMMON | changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert parameter.std() > 0, name
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def tolerance(family: str) -> float:
    """How far llama.cpp's logits may be from those of transformers."""
    return GELU_TOLERANCE if family.startswith("Gemma") else TOLERANCE


def random_ids(count: int = 200) -> list[int]:
    """Token ids of a text that means nothing."""
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def llama_logits(file: Path, ids: list[int]) -> np.ndarray:
    """Logits [T, V] by llama-cpp-python's own class, float32 KV cache, no flash attention."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=max(256, len(ids)),
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    try:
        model.eval(ids)
        return np.array(model.scores[: len(ids)])
    finally:
        model.close()


def hf_logits(model: Any, ids: list[int]) -> np.ndarray:
    """Logits [T, V] by transformers in float32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()
