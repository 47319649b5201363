"""A tiny random model as a folder, to be spoilt in one way or another."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmfit.models import data_path

CONTEXT = 256
VOCABULARY = 2048


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Its weights in bfloat16, by name."""
    torch.manual_seed(seed)
    state = LlamaForCausalLM(_config()).state_dict()
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}


def write(folder: Path, weights: dict[str, torch.Tensor] | None = None, **changes: object) -> Path:
    """A folder with config, the embedded model's tokenizer, and weights; ``changes`` its config."""
    folder.mkdir(parents=True)
    config = {**_config().to_dict(), "dtype": "bfloat16", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights or tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    for file in data_path("embedded").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        bos_token_id=0,
        eos_token_id=0,
    )
