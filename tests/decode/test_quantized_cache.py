"""The decoder over a quantised KV cache, against transformers.generate and by its bytes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from decoding import PROMPTS, continue_with
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from llmfit.backends.registry import get_backend
from llmfit.decode.quantized_cache import quantized_cache
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.errors import ModelLoadError, UsageError
from llmfit.records import KvCacheDtype, ModelSpec, Plan

pytest.importorskip("hqq")

BITS: dict[KvCacheDtype, int] = {"q8_0": 8, "q4_0": 4}


def generate(
    model: Any, prompts: list[list[int]], new: int, dtype: KvCacheDtype
) -> list[list[int]]:
    """The same by transformers over its own quantised cache, prompts padded on the left."""
    longest = max(map(len, prompts))
    output = model.generate(
        torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation="quantized",
        cache_config={
            "backend": "hqq", "nbits": BITS[dtype], "axis_key": 1, "axis_value": 1,
            "q_group_size": 32, "residual_length": 128,
        },
    )  # fmt: skip
    return output[:, longest:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_greedy_tokens_equal_generate(
    model: Any, dtype: KvCacheDtype, prompts: list[list[int]]
) -> None:
    """150 tokens, more than stay unquantised, and again with the same decoder."""
    decoder = TorchDecoder(model, batch=len(prompts), capacity=200, kv_cache_dtype=dtype)
    expected = generate(model, prompts, 150, dtype)
    assert continue_with(decoder, prompts, 150) == expected
    continue_with(decoder, [[9, 8, 7]] * len(prompts), 3)
    assert continue_with(decoder, prompts, 150) == expected


@pytest.mark.parametrize("backend", ["bf16", "sdpa", "int8", "nf4"])
def test_every_row_continues_as_generate(embedded: ModelSpec, backend: str) -> None:
    """Each row's own weights over the 4-bit cache give transformers' tokens; its notes say so."""
    plan = Plan(backend=backend, model=embedded, device="cpu", kv_cache_dtype="q4_0")
    with get_backend(backend).load(plan) as loaded:
        assert any("KV cache q4_0: hqq, 4 bits in groups of 32" in n for n in loaded.info.notes)
        decoder = loaded.decoder(batch=1, capacity=64)
        expected = generate(loaded.model, PROMPTS[:1], 20, "q4_0")  # type: ignore[attr-defined]
        assert continue_with(decoder, PROMPTS[:1], 20) == expected


def live_tensor_bytes() -> int:
    """Bytes of all tensors alive in this process, each storage once."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) is torch.Tensor  # parameters stay as they are; a traced one has no bytes
    }
    return sum(storages.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_the_decoder_holds_the_bytes_of_the_type(embedded: ModelSpec, dtype: KvCacheDtype) -> None:
    """Between steps nothing is held but 8 or 4 bits a value, group scales and the newest tokens.

    Closed form: 6 layers × keys and values × 4 heads × 32 values a token; a group of 32 has a
    16-bit scale and zero point. Of 199 + 150 tokens, 22 came after the last quantising.
    """
    plan = Plan(backend="sdpa", model=embedded, device="cpu", kv_cache_dtype=dtype)
    values = 6 * 2 * 4 * 32
    with get_backend("sdpa").load(plan) as loaded:
        before = live_tensor_bytes()
        decoder = loaded.decoder(batch=1, capacity=400)
        continue_with(decoder, [list(range(199))], 151)
        held = live_tensor_bytes() - before
        expected = (199 + 128) * values * (BITS[dtype] + 2 * 16 / 32) / 8 + 22 * values * 2
        assert held == pytest.approx(expected, rel=0.01)
        decoder.close()
        assert live_tensor_bytes() - before < 10_000


def test_a_head_size_without_groups_is_refused() -> None:
    """Heads of 8 values hold no group of 32: the size and the option are named."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=64,
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match=r"head size of 8 .*--kv-cache-dtype"):
        quantized_cache(LlamaForCausalLM(config), "q8_0")


def test_sliding_window_layers_are_refused() -> None:
    """transformers quantises full attention only; the error says which model and what else."""
    config = MistralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match=r"MistralForCausalLM.*--kv-cache-dtype"):
        quantized_cache(Mistral(config), "q8_0")


def test_a_compiled_step_refuses_the_growing_cache(model: Any) -> None:
    """Constant shapes and a growing cache exclude each other."""
    with pytest.raises(UsageError, match="compiled"):
        TorchDecoder(model, batch=1, capacity=8, compiled=True, kv_cache_dtype="q8_0")
