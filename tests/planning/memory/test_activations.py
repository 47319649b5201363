"""The working set of a pass against torch's own account of what it allocates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from llmfit.backends.registry import get_backend
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.device.cpu import cpu_flags
from llmfit.planning.architectures import read_shape
from llmfit.planning.memory.activations import EAGER_ONLY, activation_bytes
from llmfit.planning.memory.kv_cache import kv_cache_bytes
from llmfit.planning.memory.prediction import predict_memory, workspace_bytes
from llmfit.records import Hardware, ModelSpec, Plan, Workload
from llmfit.testing import make_model

BASE: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 2000, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "intermediate_size": 1024,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {"model_type": "qwen2"},
    "ungrouped": {"model_type": "llama", "num_key_value_heads": 4, "intermediate_size": 256},
    "narrow": {"model_type": "qwen2", "intermediate_size": 256},
    "window": {"model_type": "mistral", "sliding_window": 200},
    "fused": {"model_type": "phi3", "pad_token_id": 0},
    "capped": {"model_type": "gemma2", "sliding_window": 200, "head_dim": 64},
    "latent": {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 128,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 64, "q_lora_rank": 96,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48,
    },
}  # fmt: skip


def allocated_bytes(model: Any, workload: Workload) -> int:
    """The most that torch's allocator gave out while a decoder ran, from its profiler's events."""
    prompts = [list(range(1, workload.prompt_tokens + 1))] * workload.batch
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        decoder = TorchDecoder(
            model,
            batch=workload.batch,
            capacity=workload.prompt_tokens + workload.new_tokens,
            prefill_chunk=workload.prefill_chunk,
        )
        for _ in range(2):  # as a benchmark does: the cache's buffers are all there from then on
            decoder.prefill(prompts)
            for _ in range(workload.new_tokens - 1):
                decoder.step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 128])
@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cache_and_working_set_are_what_torch_allocates(
    kind: str, attention: str, chunk: int | None
) -> None:
    """KV cache and activations together, within 4 %: eager and fused, whole prompts and chunks.

    A CPU with AMX may hold packed copies of keys and values beside them while it attends.
    """
    facts = {**BASE, **CONFIGS[kind]}
    if attention == "sdpa" and facts["model_type"] in EAGER_ONLY:
        pytest.skip("no fused attention in transformers")
    config = AutoConfig.for_model(**facts)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.bfloat16
    ).eval()
    workload = Workload(prompt_tokens=450, new_tokens=3, batch=2, prefill_chunk=chunk)
    shape = read_shape(facts)
    assert shape is not None
    predicted = kv_cache_bytes(make_model(shape=shape), workload) + activation_bytes(
        shape, "bf16", workload, device="cpu", eager=attention == "eager"
    )
    measured = allocated_bytes(model, workload)
    packed = 0
    if attention == "sdpa" and "amx_bf16" in cpu_flags():
        heads = shape.kinds[0].attention
        assert heads is not None
        values = heads.heads * (heads.key_dim + heads.value_dim)
        tokens = 64 * math.ceil(workload.prompt_tokens / 64)
        packed = 2 * workload.batch * tokens * values
    assert predicted / 1.04 <= measured <= 1.04 * predicted + 1.3 * packed


@pytest.mark.slow
def test_int8_holds_its_products_in_32_bits(embedded: ModelSpec) -> None:
    """LLM.int8() over a long prompt on a CPU: what torch allocates beside the weights, or up to a
    quarter more, which CPUs without AVX-512 take; more than the same model holds in 16 bits."""
    workload = Workload(prompt_tokens=900, new_tokens=3)
    with get_backend("int8").load(Plan(backend="int8", model=embedded, device="cpu")) as loaded:
        measured = allocated_bytes(loaded.model, workload)  # type: ignore[attr-defined]
    parts = predict_memory(embedded, "int8", workload, "cpu")
    assert parts is not None
    predicted = parts.kv_cache_bytes + parts.activation_bytes
    assert 0.96 * measured < predicted < 1.25 * measured
    plain = predict_memory(embedded, "sdpa", workload, "cpu")
    assert plain is not None and parts.activation_bytes > 1.2 * plain.activation_bytes


def test_a_chunked_prompt_holds_a_chunk() -> None:
    """Llama-3.1-8B at 32 k tokens: 3 × 14,336 and 4 × 4,096 values a token of a whole prompt;
    a chunk of 512 holds what the prompt's keys and values take when repeated for 32 heads."""
    shape = make_model().shape
    assert shape is not None
    whole, chunked = (
        activation_bytes(
            shape,
            "sdpa",
            Workload(prompt_tokens=32_768, prefill_chunk=chunk),
            device="cuda",
            eager=False,
        )
        for chunk in (None, 512)
    )
    assert whole == pytest.approx(32_768 * (3 * 14_336 + 4 * 4_096) * 2, rel=0.01)
    assert chunked == pytest.approx(32_768 * 32 * 128 * 2 * 2, rel=0.15)


def test_eager_attention_grows_with_the_square() -> None:
    """Twice the prompt, four times the working set of long prompts; fused attention twice."""
    shape = make_model().shape
    assert shape is not None

    def at(tokens: int, eager: bool) -> int:
        work = Workload(prompt_tokens=tokens)
        return activation_bytes(shape, "sdpa", work, device="cuda", eager=eager)

    assert at(32_768, True) / at(16_384, True) == pytest.approx(4, rel=0.02)
    assert at(32_768, False) / at(16_384, False) == pytest.approx(2, rel=0.02)


def test_models_without_fused_attention_are_those_of_transformers() -> None:
    """``EAGER_ONLY`` names exactly those of the models planned for that transformers refuses."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    planned = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text",
               "phi", "phi3", "gpt_oss", "deepseek_v3", "olmo2", "falcon", "gpt2")  # fmt: skip
    for name in planned:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(name))]
        assert kind._supports_sdpa == (name not in EAGER_ONLY), name


@pytest.mark.parametrize(("name", "mib"), [
    ("RTX 3090", 8.125), ("RTX 4060", 8.125), ("A100 80GB SXM", 8.125), ("L40S", 8.125),
    ("H100 SXM", 32), ("H200", 32), ("H20", 32), ("RTX 5090", 32), ("B200", 32),
    ("RX 7900 XTX", 8.125), ("A10", 8.125),
])  # fmt: skip
def test_workspace_is_the_generation_s(name: str, mib: float) -> None:
    """32 MiB from Hopper on, 8.125 before. Source: PyTorch, parseChosenWorkspaceSize."""
    gpu = Hardware(
        name=name, kind="gpu", memory_bytes=None, bandwidth=None, flops=None, source="a test"
    )
    assert workspace_bytes("cuda", gpu) == mib * 2**20
    assert workspace_bytes("cpu", gpu) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "batch", "chunk"), [
    (1024, 1, None), (3900, 1, None), (1024, 2, 256), (100, 1, None),
])  # fmt: skip
@pytest.mark.parametrize("changes", [
    {}, {"intermediate_size": 4096}, {"intermediate_size": 256}, {"vocab_size": 32_000},
    {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4,
     "num_experts_per_tok": 2},
])  # fmt: skip
def test_llama_cpp_s_graph_is_what_it_reserves(
    changes: dict[str, Any], prompt: int, batch: int, chunk: int | None, tmp_path: Path
) -> None:
    """The compute buffer in llama.cpp's own words, to one hidden state: some widths let its
    allocator reuse one more. Packed inputs and logits lie elsewhere."""
    pytest.importorskip("llama_cpp")
    facts = {**BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
             "hidden_size": 512, "max_position_embeddings": 8192, **changes}  # fmt: skip
    shape = read_shape(facts)
    assert shape is not None
    workload = Workload(prompt_tokens=prompt, new_tokens=50, batch=batch, prefill_chunk=chunk)
    reserved = reserved_bytes(facts, shape, workload, tmp_path / "random.gguf")
    tokens = min(chunk or 512, batch * prompt)
    width = facts["intermediate_size"] * facts.get("num_experts_per_tok", 1)
    beside = tokens * width * 34 // 32 + batch * facts["vocab_size"] * 4
    predicted = activation_bytes(shape, "gguf:q8_0", workload, device="cpu", eager=False)
    hidden_state = tokens * facts["hidden_size"] * 4
    assert reserved <= 1.01 * (predicted - beside)
    assert reserved >= 0.99 * (predicted - beside - hidden_state)


def reserved_bytes(facts: dict[str, Any], shape: Any, workload: Workload, file: Path) -> float:
    """The compute buffer that llama.cpp logs when it makes a context for the workload."""
    from llmfit.decode.llama_cpp import LlamaCppModel
    from llmfit.decode.llama_log import llama_log
    from llmfit.quantize.gguf_synthetic import plan_synthetic, write_synthetic

    planned = plan_synthetic(facts, shape, architecture=facts["architectures"][0], file_type="q8_0")
    write_synthetic(planned, file, name="random", seed=0, progress=lambda *_: None)
    model = LlamaCppModel(file, threads=1)
    lines: list[str] = []
    with llama_log().listening(lines.append):
        model.context(
            sequences=workload.batch,
            capacity=workload.prompt_tokens + workload.new_tokens,
            chunk=min(workload.prefill_chunk or 512, workload.batch * workload.prompt_tokens),
            outputs=workload.batch,
        )
    model.close()
    (line,) = [line for line in lines if "compute buffer size" in line]
    return float(line.partition("=")[2].split()[0]) * 2**20
