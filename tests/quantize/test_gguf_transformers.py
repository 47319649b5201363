"""transformers' own GGUF loader reads back what the converter wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import MODELS, hf_logits, random_ids, save_model

from llmfit.quantize.gguf_convert import convert

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

# The loader of transformers 5.23 knows no Mixtral, rope scaling, biases, layer types or soft caps
# but the default ones, and takes the head size of Qwen3 and the query scale of Gemma for granted.
QWEN3 = {"head_dim": 128}
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 32}
READABLE = {
    name: MODELS[name]
    for name in (
        "llama tied",
        "llama untied, no grouped queries",
        "llama head size apart",
        "mistral",
        "mistral head size apart",
        "qwen2",
        "qwen2 tied",
        "phi3",
        "phi3 tied, no grouped queries",
    )
} | {
    "qwen3": ("Qwen3", QWEN3),
    "qwen3 tied": ("Qwen3", QWEN3 | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2 no grouped queries": ("Gemma2", GEMMA | {"num_key_value_heads": 4}),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7}),
}


@pytest.mark.parametrize("case", READABLE)
def test_read_back(case: str, tmp_path: Path) -> None:
    """Config, every tensor and the logits are those of the model that was converted."""
    family, changes = READABLE[case]
    model = save_model(tmp_path / "model", family, changes)
    convert(tmp_path / "model", tmp_path / "m.gguf", dtype="f32")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    for key in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "vocab_size",
        "tie_word_embeddings",
    ):
        assert getattr(again.config, key) == getattr(model.config, key), key
    assert again.config.rms_norm_eps == pytest.approx(model.config.rms_norm_eps)
    expected = model.state_dict()
    found = again.state_dict()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # Gemma's norms lose 1 and gain it again.
        torch.testing.assert_close(found[name].float(), values, atol=1e-6, rtol=0, msg=name)
    ids = random_ids()  # longer than the sliding window
    np.testing.assert_allclose(hf_logits(again, ids), hf_logits(model, ids), atol=1e-3)
