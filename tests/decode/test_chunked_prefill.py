"""A prompt run in chunks is the prompt run in one pass: logits, cache and what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import PROMPTS, continue_with
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    QuantizedCache,
)

from llmfit.backends.registry import get_backend
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.errors import UsageError
from llmfit.measure import measure
from llmfit.records import KvCacheDtype, ModelSpec, Plan, Workload
from llmfit.testing import FakeModel

NEW = 8
CHUNKS = [1, 7, 24, 25, 1000]  # one token, no divisor, all but one, all, more than all


def logits_of(
    model: torch.nn.Module, prompts: list[list[int]], **options: Any
) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits [steps, B, V] of the prefill and the steps after it, and the tokens chosen."""
    decoder = TorchDecoder(model, batch=len(prompts), capacity=64, **options)
    seen: list[torch.Tensor] = []
    choose = decoder._choose
    decoder._choose = lambda logits: (seen.append(logits.clone()), choose(logits))[1]  # type: ignore[method-assign]
    tokens = continue_with(decoder, prompts, NEW)
    return torch.stack(seen), tokens


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "unequal"])
def test_chunks_give_the_logits_of_one_pass(
    model: torch.nn.Module, attention: str, prompts: list[list[int]]
) -> None:
    """Within 1e-5 in float32, at the prompt's end and at every step after it, for any chunk."""
    model.set_attn_implementation(attention)  # type: ignore[operator]
    whole, expected = logits_of(model, prompts)
    for chunk in CHUNKS:
        found, tokens = logits_of(model, prompts, prefill_chunk=chunk)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
        assert tokens == expected


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "unequal"])
def test_a_sliding_window_reaches_over_chunks(prompts: list[list[int]]) -> None:
    """A window of 8 tokens sees the same ones, whether the chunk is smaller or larger than it."""
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=128, sliding_window=8,
    )  # fmt: skip
    windowed = MistralForCausalLM(config).eval()
    whole, _ = logits_of(windowed, prompts)
    for chunk in (3, 8, 11):
        found, _ = logits_of(windowed, prompts, prefill_chunk=chunk)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [20, 60])
def test_a_long_prompt_of_longrope_runs_whole(length: int) -> None:
    """Its first chunks would have the frequencies of a short one; and that is told."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "phi3", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=256, pad_token_id=0,
        original_max_position_embeddings=32, initializer_range=0.2,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8, "original_max_position_embeddings": 32,
        },
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    prompt = [int(i) for i in torch.randint(3, 500, (length,))]
    decoder = TorchDecoder(model, batch=1, capacity=128, prefill_chunk=16)
    (found,) = continue_with(decoder, [prompt], 1)
    with torch.inference_mode():
        expected = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert found == [expected]
    assert any("ran whole" in note for note in decoder.notes) is (length > 32)


@pytest.mark.slow
def test_a_compiled_step_follows_chunks(model: torch.nn.Module) -> None:
    """The fixed-shape step after a chunked prefill gives the logits of that after one pass."""
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    whole, _ = logits_of(model, PROMPTS)
    found, _ = logits_of(model, PROMPTS, prefill_chunk=7, compiled=True)
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_a_quantised_cache_is_read_as_by_transformers(
    model: torch.nn.Module, dtype: KvCacheDtype
) -> None:
    """Chunks read those before them quantised: transformers' chunks over its own cache, exactly."""
    pytest.importorskip("hqq")
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    prompt, chunk = [(7 * at) % 2048 for at in range(300)], 100
    decoder = TorchDecoder(model, batch=1, capacity=320, kv_cache_dtype=dtype, prefill_chunk=chunk)
    ours = continue_with(decoder, [prompt], NEW)
    cache = QuantizedCache(
        backend="hqq", config=model.config, nbits={"q8_0": 8, "q4_0": 4}[dtype], axis_key=1,
        axis_value=1, q_group_size=32, residual_length=128,
    )  # fmt: skip
    theirs = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]), attention_mask=torch.ones(1, 300, dtype=torch.int64),
        past_key_values=cache, prefill_chunk_size=chunk, max_new_tokens=NEW, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    assert ours == theirs[:, 300:].tolist()


def test_llama_cpp_runs_a_prompt_in_chunks(embedded: ModelSpec, artifact_cache: Path) -> None:
    """Any physical batch gives the same tokens, prompts of unequal length included."""
    pytest.importorskip("llama_cpp")
    plan = Plan(
        backend="gguf:f16", model=embedded, device="cpu", cache_dir=str(artifact_cache), threads=1
    )
    with get_backend("gguf").load(plan) as loaded:
        produced = []
        for chunk in (None, 1, 7, 512):
            decoder = loaded.decoder(batch=3, capacity=64, prefill_chunk=chunk)
            produced.append(continue_with(decoder, PROMPTS, NEW))
            decoder.close()
    assert produced[1:] == produced[:1] * 3


@pytest.mark.parametrize("backend", ["sdpa", "gguf:f16"])
def test_a_chunk_without_tokens_is_refused(
    embedded: ModelSpec, artifact_cache: Path, backend: str
) -> None:
    """0 is no chunk; the error names the value and the option."""
    plan = Plan(backend=backend, model=embedded, device="cpu", cache_dir=str(artifact_cache))
    with (
        get_backend(backend).load(plan) as loaded,
        pytest.raises(UsageError, match=r"not 0\..*--prefill-chunk"),
    ):
        loaded.decoder(batch=1, capacity=64, prefill_chunk=0)


def test_the_workload_s_chunk_reaches_the_decoder() -> None:
    """``measure`` asks the model for a decoder with the workload's own chunk."""
    asked: list[int | None] = []

    class Noting(FakeModel):
        def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Any:
            asked.append(prefill_chunk)
            return super().decoder(batch=batch, capacity=capacity, prefill_chunk=prefill_chunk)

    for chunk in (None, 16):
        workload = Workload(prompt_tokens=40, new_tokens=3, repeats=1, prefill_chunk=chunk)
        measure(Noting(), workload, device="cpu")
    assert asked == [None, 16]
