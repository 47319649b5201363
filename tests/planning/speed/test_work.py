"""Bytes and arithmetic of decode and prefill, against models that transformers and torch ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmfit.models import resolve, spec_from_config
from llmfit.planning.speed.work import bytes_per_step, decode_work, prefill_work
from llmfit.records import ModelSpec, Workload

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen2": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": False},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "head_dim": 4,  # of the rotary part
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 4,
        "v_head_dim": 20,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def _config(family: str) -> dict[str, Any]:
    return {
        "model_type": family,
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
        "vocab_size": 320,
        "max_position_embeddings": 512,
        **SMALL[family],
    }


def _spec(family: str) -> ModelSpec:
    return spec_from_config(
        _config(family),
        name=family,
        path=family,
        source="local",
        parameters=None,
        quantization=None,
    )


def _model(family: str) -> Any:
    """transformers' own model of the config, in bf16 with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**_config(family))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if hasattr(config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # torch does not count the grouped kernel
    return model.bfloat16().eval()


def _counted_flops(model: Any, *, cached: int, tokens: int) -> int:
    """What torch counts for ``tokens`` after ``cached`` ones."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(320, (1, cached + tokens))
    with torch.no_grad():
        past = model(ids[:, :cached], use_cache=True).past_key_values if cached else None
        with FlopCounterMode(display=False) as counter:
            model(ids[:, cached:], past_key_values=past, use_cache=True, logits_to_keep=1)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", SMALL)
def test_a_decode_step_has_the_flops_that_torch_counts(family: str) -> None:
    """The 41st token's products, attention over 41 and head included, exactly."""
    work = decode_work(_spec(family), "bf16", Workload(prompt_tokens=40, new_tokens=2))
    assert work is not None
    assert work.flops == _counted_flops(_model(family), cached=40, tokens=1)


@pytest.mark.parametrize("family", SMALL)
def test_a_prefill_has_the_flops_that_torch_counts(family: str) -> None:
    """A pass over 48 tokens with the masked half of its scores, logits of the last one alone."""
    spec = _spec(family)
    work = prefill_work(spec, "bf16", Workload(prompt_tokens=48))
    assert work is not None
    assert work.flops == _counted_flops(_model(family), cached=0, tokens=48)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_a_chunked_prefill_has_the_flops_of_its_chunks(family: str) -> None:
    """Three chunks of 16 tokens: torch's counts of each, less the two heads that are not needed."""
    spec, model = _spec(family), _model(family)
    work = prefill_work(spec, "bf16", Workload(prompt_tokens=48, prefill_chunk=16))
    assert work is not None and spec.shape is not None
    counted = sum(_counted_flops(model, cached=start, tokens=16) for start in (0, 16, 32))
    assert work.flops == counted - 2 * (2 * spec.shape.head.parameters)
    assert work.layer_runs == 3 * 3


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_step_reads_the_tensors_that_a_step_touches(family: str) -> None:
    """All of transformers' bf16 parameters but the embedding's other rows, and its KV cache."""
    import torch

    model, spec = _model(family), _spec(family)
    workload = Workload(prompt_tokens=40, new_tokens=16)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    tied = model.config.tie_word_embeddings  # then the table is the head and is read whole
    table = model.get_input_embeddings().weight
    unread = 0 if tied else table.numel() * 2 - 64 * 2
    with torch.no_grad():
        cache = model(torch.randint(320, (1, 48)), use_cache=True).past_key_values
    cached = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    expected = parameters - unread + cached
    assert bytes_per_step(spec, "sdpa", workload) == pytest.approx(expected, abs=2 * 64)


def test_only_the_experts_of_the_token_are_read_and_multiplied() -> None:
    """Mixtral 8x7B: 12.9 of 46.7 B parameters serve a token, as Mistral AI announced."""
    spec = resolve("mistralai/Mixtral-8x7B-v0.1", weights=False)
    work = decode_work(spec, "sdpa", Workload(prompt_tokens=1, new_tokens=2))
    assert work is not None
    embedding = 32_000 * 4096
    assert work.read_bytes / 2 + embedding == pytest.approx(12.9e9, rel=0.005)
    assert work.flops / 2 + embedding == pytest.approx(12.9e9, rel=0.005)


def test_a_batch_shares_the_weights_and_not_the_cache() -> None:
    """A step of 8 sequences reads 7 more caches and embedding rows than one of one, no weight."""
    spec = _spec("llama")
    one = bytes_per_step(spec, "sdpa", Workload(prompt_tokens=40, new_tokens=16))
    eight = bytes_per_step(spec, "sdpa", Workload(prompt_tokens=40, new_tokens=16, batch=8))
    assert one is not None and eight is not None
    cache = 3 * 2 * 2 * 16 * 48 * 2  # layers × (keys, values) × heads × size × tokens × bytes
    assert eight - one == 7 * (cache + 64 * 2)


def test_a_sliding_window_bounds_the_attention() -> None:
    """Beyond the window more context costs no more arithmetic."""
    spec = _spec("llama")
    assert spec.shape is not None
    attention = spec.shape.kinds[0].attention
    assert attention is not None
    kinds = (replace(k, attention=replace(attention, window=32)) for k in spec.shape.kinds)
    windowed = replace(spec, shape=replace(spec.shape, kinds=tuple(kinds)))

    def flops(model: ModelSpec, prompt_tokens: int) -> float:
        work = decode_work(model, "sdpa", Workload(prompt_tokens=prompt_tokens, new_tokens=2))
        assert work is not None
        return work.flops

    assert flops(windowed, 400) == flops(windowed, 32)
    assert flops(windowed, 20) < flops(windowed, 32)
    assert flops(spec, 400) > flops(spec, 32)


def test_nf4_unpacks_its_weights_for_more_than_one_token() -> None:
    """16 bits written and read a packed weight in each pass of a prefill, none at batch 1."""
    spec = _spec("llama")
    packed = 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 176)
    step = decode_work(spec, "nf4", Workload(prompt_tokens=40, new_tokens=16))
    prefill = prefill_work(spec, "nf4", Workload(prompt_tokens=40, prefill_chunk=20))
    assert step is not None and prefill is not None
    assert (step.detour_bytes, prefill.detour_bytes) == (0, 2 * 4 * packed)


def test_eager_attention_moves_its_scores_and_repeated_keys() -> None:
    """Of 4 heads that share 2: 48 tokens' keys and values in 16 bits written and read for each of
    4, and 20 bytes a score; fused attention moves neither."""
    spec, workload = _spec("llama"), Workload(prompt_tokens=48, new_tokens=2)
    layers, heads, size = 3, 4, 16
    step, prefill = (count(spec, "bf16", workload) for count in (decode_work, prefill_work))
    fused, fused_prefill = (count(spec, "sdpa", workload) for count in (decode_work, prefill_work))
    assert step is not None and prefill is not None
    assert fused is not None and fused_prefill is not None
    repeated = 2 * 2 * layers * heads * 2 * size
    assert step.detour_bytes == 49 * repeated
    assert prefill.detour_bytes == 48 * repeated + 48 * 48 * layers * heads * 20
    assert fused.detour_bytes == fused_prefill.detour_bytes == 0


def test_what_is_not_known_is_none() -> None:
    """No shape, or a format without a known layout, has no work."""
    spec = _spec("llama")
    assert decode_work(replace(spec, shape=None), "sdpa", Workload()) is None
    assert prefill_work(replace(spec, shape=None), "sdpa", Workload()) is None
    assert bytes_per_step(spec, "gguf:no_such_type", Workload()) is None
