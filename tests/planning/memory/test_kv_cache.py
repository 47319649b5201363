"""Predicted bytes of the KV cache, by engine and type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmfit.planning.architectures import read_shape
from llmfit.planning.memory.kv_cache import kv_cache_bytes, kv_read_bytes
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import KvCacheDtype, Workload
from llmfit.shape import Attention, LayerShape, ModelShape, State
from llmfit.testing import make_model

VALUES = 2 * 32 * 8 * 128
"""Keys and values that a token of Llama-3.1-8B has."""


def test_kv_cache_is_the_known_figure() -> None:
    """Llama-3.1-8B holds 128 KiB of keys and values per token in 16 bits."""
    workload = Workload(prompt_tokens=1000, new_tokens=24)
    assert kv_cache_bytes(make_model(), workload) == 1024 * 128 * 1024


@pytest.mark.parametrize(("dtype", "block_bytes"), [("q8_0", 34), ("q4_0", 18)])
def test_llama_cpp_holds_blocks(dtype: KvCacheDtype, block_bytes: int) -> None:
    """32 values take 34 or 18 bytes, the whole workload in blocks, in steps of 256 tokens."""
    workload = Workload(prompt_tokens=512, new_tokens=128, batch=2)
    found = kv_cache_bytes(make_model(), workload, backend="gguf:q8_0", kv_cache_dtype=dtype)
    assert found == 2 * 768 * VALUES // 32 * block_bytes


@pytest.mark.parametrize(("head_dim", "overhead"), [(128, 0.5), (96, 1.0)])
@pytest.mark.parametrize(("dtype", "bits"), [("q8_0", 8), ("q4_0", 4)])
def test_pytorch_rows_hold_groups_and_the_newest_tokens(
    head_dim: int, overhead: float, dtype: KvCacheDtype, bits: int
) -> None:
    """Groups of 64 or 32 with 32 bits of scale and zero point; 127 new tokens in 16 bits."""
    spec = make_model(head_dim=head_dim)
    workload = Workload(prompt_tokens=512, new_tokens=1000)
    found = kv_cache_bytes(spec, workload, backend="nf4", kv_cache_dtype=dtype)
    values = 2 * 32 * 8 * head_dim
    assert found == values * (127 * 16 + (1512 - 127) * (bits + overhead)) / 8


@pytest.mark.parametrize("backend", ["sdpa", "gguf"])
def test_predicted_memory_shrinks_with_the_type(backend: str) -> None:
    """Over a long prompt the cache's share of the total falls to about 1/2 and 1/4."""
    workload = Workload(prompt_tokens=8192, new_tokens=128)
    plain, eight, four = (
        predict_memory(make_model(), backend, workload, "cpu", kv_cache_dtype=dtype)
        for dtype in (None, "q8_0", "q4_0")
    )
    assert plain is not None and eight is not None and four is not None
    assert eight.kv_cache_bytes / plain.kv_cache_bytes == pytest.approx(8.5 / 16, rel=0.05)
    assert four.kv_cache_bytes / plain.kv_cache_bytes == pytest.approx(4.5 / 16, rel=0.05)
    assert plain.total_bytes > eight.total_bytes > four.total_bytes


# ---------------------------------------------------------------- the engines' own caches

SMALL: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "intermediate_size": 256,
}  # fmt: skip
GEMMA2 = {"model_type": "gemma2", "sliding_window": 64, "head_dim": 64, "tie_word_embeddings": True,
          "architectures": ["Gemma2ForCausalLM"]}  # fmt: skip
MULTI_QUERY = {"model_type": "llama", "num_key_value_heads": 1,
               "architectures": ["LlamaForCausalLM"]}  # fmt: skip
LATENT = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 64,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 48, "architectures": ["DeepseekV3ForCausalLM"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", [MULTI_QUERY, GEMMA2, LATENT], ids=lambda c: c["model_type"])
def test_the_decoder_s_buffers_are_as_large(config: dict[str, Any]) -> None:
    """Keys and values that the PyTorch decoder allocates: one head, windows, latents."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llmfit.decode.torch_decoder import TorchDecoder

    facts = {**SMALL, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts), dtype=torch.bfloat16)
    decoder = TorchDecoder(model.eval(), batch=3, capacity=110)
    decoder.prefill([list(range(100))] * 3)
    layers = decoder._live_cache().layers
    held = sum(each.keys.nbytes + each.values.nbytes for each in layers)
    workload = Workload(prompt_tokens=100, new_tokens=10, batch=3)
    assert kv_cache_bytes(make_model(shape=read_shape(facts)), workload) == held


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("config", [MULTI_QUERY, GEMMA2], ids=lambda c: c["model_type"])
def test_llama_cpp_s_buffers_are_as_large(
    config: dict[str, Any], dtype: KvCacheDtype | None, tmp_path: Path
) -> None:
    """What llama.cpp says that its caches take, windowed layers too, in steps of 256 tokens."""
    pytest.importorskip("llama_cpp")
    from llmfit.decode.llama_cpp import LlamaCppModel
    from llmfit.decode.llama_log import llama_log
    from llmfit.quantize.gguf_synthetic import plan_synthetic, write_synthetic

    facts, file = {**SMALL, **config}, tmp_path / "random.gguf"
    shape = read_shape(facts)
    assert shape is not None
    planned = plan_synthetic(
        facts, shape, architecture=config["architectures"][0], file_type="q8_0"
    )
    write_synthetic(planned, file, name="random", seed=0, progress=lambda *_: None)
    model = LlamaCppModel(file, threads=1, kv_cache_dtype=dtype)
    lines: list[str] = []
    with llama_log().listening(lines.append):
        model.context(sequences=2, capacity=600, chunk=64, outputs=2)
    model.close()
    said = [line.partition("=")[2].split()[0] for line in lines if "KV buffer size" in line]
    workload = Workload(prompt_tokens=500, new_tokens=100, batch=2)
    found = kv_cache_bytes(
        make_model(shape=shape, head_dim=64), workload, backend="gguf", kv_cache_dtype=dtype
    )
    assert found / 2**20 == pytest.approx(sum(map(float, said)), abs=0.01)


def test_latents_are_the_published_size() -> None:
    """DeepSeek-V3 caches 576 values a token and layer: 70 KiB in 16 bits for its 61 layers.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, section 4.2: 512 of the latent, 64 rotary.
    """
    shape = read_shape({
        **SMALL, **LATENT, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
        "first_k_dense_replace": 3,
    })  # fmt: skip
    workload = Workload(prompt_tokens=900, new_tokens=124)
    for backend in ("sdpa", "gguf"):
        found = kv_cache_bytes(make_model(shape=shape), workload, backend=backend)
        assert found == 1024 * 61 * 576 * 2


def test_a_state_is_as_large_at_any_length() -> None:
    """A recurrent layer holds its state once a sequence; llama.cpp holds it in 32 bits."""
    attention = Attention(heads=4, kv_heads=2, key_dim=64, value_dim=64)
    mamba = LayerShape(matrices=(), vectors=0, state=State(elements=10_000))
    softmax = LayerShape(matrices=(), vectors=0, attention=attention)
    shape = ModelShape(
        hidden_size=256, vocab_size=100, tied=True, kinds=(mamba, softmax), layers=(0, 0, 0, 1)
    )
    spec = make_model(shape=shape)
    for backend, state_bytes in (("sdpa", 2), ("gguf", 4)):
        short, long = (
            kv_cache_bytes(spec, Workload(prompt_tokens=tokens - 128, batch=2), backend=backend)
            for tokens in (512, 1024)
        )
        assert long - short == 2 * 512 * 256 * 2
        assert short - (long - short) == 2 * 3 * 10_000 * state_bytes


def test_a_window_bounds_what_llama_cpp_reads() -> None:
    """Beyond the window llama.cpp reads no more of such a layer; the PyTorch rows mask it."""
    spec = make_model(shape=read_shape({**SMALL, **GEMMA2}))
    per_token = 2 * 2 * 64 * 2
    assert kv_read_bytes(spec, 1000, 3, "gguf") == 3 * per_token * (2 * 64 + 2 * 1000)
    assert kv_read_bytes(spec, 1000, 3, "sdpa") == 3 * per_token * 4 * 1000
