"""The decoder against transformers.generate and against forward passes without a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoding import PROMPTS, continue_with
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
)
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmfit.backends.registry import get_backend
from llmfit.decode.base import Sampling
from llmfit.decode.graph_step import attends_itself
from llmfit.decode.sampling import filtered_logits
from llmfit.decode.torch_decoder import TorchDecoder, check_cacheable
from llmfit.errors import ModelLoadError, UsageError
from llmfit.kernels.build import why_no_kernels
from llmfit.models import data_path, resolve
from llmfit.records import ModelSpec, Plan

NEW = 20


def generate(model: torch.nn.Module, prompts: list[list[int]], new: int) -> list[list[int]]:
    """The same by transformers, prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[:, longest:].tolist()


@pytest.mark.parametrize("prompts", [PROMPTS[:1], [PROMPTS[0]] * 2, PROMPTS])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_tokens_equal_generate(
    model: torch.nn.Module, attention: str, prompts: list[list[int]]
) -> None:
    """One prompt, a batch, and a batch of unequal lengths continue as transformers does."""
    model.set_attn_implementation(attention)
    decoder = TorchDecoder(model, batch=len(prompts), capacity=64)
    assert continue_with(decoder, prompts, NEW) == generate(model, prompts, NEW)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_compiled_step_equals_generate(model: torch.nn.Module, prompts: list[list[int]]) -> None:
    """The compiled step over constant shapes chooses the same tokens."""
    model.set_attn_implementation("sdpa")
    decoder = TorchDecoder(model, batch=len(prompts), capacity=64, compiled=True)
    expected = generate(model, prompts, NEW)
    assert continue_with(decoder, prompts, NEW) == expected
    assert continue_with(decoder, prompts, NEW) == expected, "the second run reuses the cache"


@pytest.mark.parametrize("backend", ["bf16", "sdpa", "int8", "nf4"])
def test_every_row_continues_as_generate(embedded: ModelSpec, backend: str) -> None:
    """Each row's own weights give the tokens that transformers.generate gives on them."""
    with get_backend(backend).load(Plan(backend=backend, model=embedded, device="cpu")) as loaded:
        decoder = loaded.decoder(batch=2, capacity=64)
        assert isinstance(decoder, TorchDecoder)
        prompts = PROMPTS[:2]
        assert continue_with(decoder, prompts, NEW) == generate(loaded.model, prompts, NEW)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cached_logits_equal_uncached(model: torch.nn.Module, compiled: bool) -> None:
    """Each step's logits equal those of one pass over the whole text within 1e-4."""
    model.set_attn_implementation("sdpa")
    decoder = TorchDecoder(model, batch=1, capacity=40, compiled=compiled)
    seen: list[torch.Tensor] = []
    choose = decoder._choose
    decoder._choose = lambda logits: (seen.append(logits.clone()), choose(logits))[1]  # type: ignore[method-assign]
    prompt = PROMPTS[0][:10]
    produced = continue_with(decoder, [prompt], 16)[0]
    with torch.inference_mode():
        whole = model(torch.tensor([prompt + produced[:-1]])).logits[0, len(prompt) - 1 :]
    torch.testing.assert_close(torch.cat(seen), whole, atol=1e-4, rtol=1e-4)


def test_sliding_window_model_equals_generate() -> None:
    """A window shorter than the text is honoured by the full-length cache."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=128, sliding_window=8,
    )  # fmt: skip
    windowed = MistralForCausalLM(config).eval()
    decoder = TorchDecoder(windowed, batch=1, capacity=64)
    assert continue_with(decoder, PROMPTS[:1], NEW) == generate(windowed, PROMPTS[:1], NEW)


def test_architecture_without_fused_attention(tmp_path: Path) -> None:
    """Gemma-2 has none: the nf4 row runs eager attention, says so, and decodes as generate does."""
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, vocab_size=2048, max_position_embeddings=128,
        sliding_window=8,
    )  # fmt: skip
    Gemma2ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(tmp_path)
    plan = Plan(backend="nf4", model=resolve(str(tmp_path)), device="cpu")
    with get_backend("nf4").load(plan) as loaded:
        assert loaded.info.kernel.attention == "eager"
        assert any("Gemma2ForCausalLM has no fused one" in note for note in loaded.info.notes)
        decoder = loaded.decoder(batch=1, capacity=64)
        assert isinstance(decoder, TorchDecoder)
        assert continue_with(decoder, PROMPTS[:1], 12) == generate(loaded.model, PROMPTS[:1], 12)


def test_sampling_filters_equal_transformers() -> None:
    """Temperature, top-k and top-p cut the same tokens as transformers' warpers in that order."""
    torch.manual_seed(1)
    logits = torch.randn(4, 200) * 3
    for temperature, top_k, top_p in [(0.7, 0, 1.0), (1.0, 20, 1.0), (1.3, 0, 0.8), (0.9, 50, 0.5)]:
        expected = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        ours = filtered_logits(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        torch.testing.assert_close(ours, expected)


def test_sampling_follows_the_seed(model: torch.nn.Module) -> None:
    """The same seed gives the same text, another seed another, and temperature 0 is greedy."""

    def text(seed: int) -> list[int]:
        decoder = TorchDecoder(model, batch=1, capacity=64)
        decoder.prefill(PROMPTS[:1], Sampling(temperature=1.5, seed=seed))
        tokens = decoder.tokens()
        for _ in range(15):
            decoder.step()
            tokens += decoder.tokens()
        return tokens

    assert text(1) == text(1)
    assert text(1) != text(2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"temperature": -1.0}, "-1"), ({"top_p": 0.0}, "0.0"), ({"top_k": -3}, "-3")],
)
def test_impossible_sampling_is_refused(settings: dict[str, float], named: str) -> None:
    """A setting that cannot be meant is named."""
    with pytest.raises(UsageError, match=named):
        Sampling(**settings)  # type: ignore[arg-type]


def test_wrong_prompts_are_refused(model: torch.nn.Module) -> None:
    """Empty, too long or too many prompts, and a full cache, are errors that say so."""
    decoder = TorchDecoder(model, batch=1, capacity=4)
    with pytest.raises(UsageError, match="empty"):
        decoder.prefill([[]])
    with pytest.raises(UsageError, match="5 tokens, the cache holds 4"):
        decoder.prefill([[1, 2, 3, 4, 5]])
    with pytest.raises(UsageError, match="2 prompts"):
        decoder.prefill([[1], [2]])
    decoder.prefill([[1, 2, 3]])
    decoder.step()
    with pytest.raises(UsageError, match="full"):
        decoder.step()


def test_a_temperature_that_nothing_can_be_divided_by_is_greedy(model: torch.nn.Module) -> None:
    """Infinite logits would be told as a damaged model."""
    tokens = []
    for sampling in (Sampling(), Sampling(temperature=1e-40), Sampling(temperature=1e-5)):
        decoder = TorchDecoder(model, batch=1, capacity=64)
        decoder.prefill(PROMPTS[:1], sampling)
        decoder.step()
        tokens.append(decoder.tokens())
    assert tokens[0] == tokens[1] == tokens[2]


def test_model_with_recurrent_state_is_refused() -> None:
    """A state that is not keys and values is named, not decoded wrongly."""
    from transformers import MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64))
    with pytest.raises(ModelLoadError, match="MambaForCausalLM"):
        check_cacheable(mamba)


def test_a_model_that_ignores_the_cache_is_refused() -> None:
    """GPT-1's layers keep nothing: each next token would know the last one alone."""
    config = AutoConfig.for_model("openai-gpt", n_embd=32, n_layer=1, n_head=2, vocab_size=512)
    decoder = TorchDecoder(AutoModelForCausalLM.from_config(config).eval(), batch=1, capacity=64)
    with pytest.raises(ModelLoadError, match="OpenAIGPTLMHeadModel keeps no keys and values"):
        decoder.prefill(PROMPTS[:1])


FAMILIES: dict[str, tuple[dict[str, object], bool]] = {
    "llama": ({}, True),
    "mistral": ({"sliding_window": 8}, True),
    "nemotron": ({}, False),
    "phimoe": ({"num_local_experts": 2, "sliding_window": 8}, False),
    "gpt_neo": (
        {
            "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
        },
        False,
    ),
}  # fmt: skip
"""Model types, what is particular of them, and whether a step attends by llmfit's kernel."""


@pytest.mark.skipif(why_no_kernels() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_own_attention_is_for_layers_that_tell_what_it_needs(family: str) -> None:
    """Others keep SDPA: layers that hand nothing on, or slide by a mask alone."""
    own, expected = FAMILIES[family]
    torch.manual_seed(0)
    sizes: dict[str, object] = {"hidden_size": 64, "intermediate_size": 96}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        family, **(sizes | ({} if family == "gpt_neo" else heads) | own),
        vocab_size=512, initializer_range=0.2, max_position_embeddings=128,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    made.set_attn_implementation("sdpa")
    assert attends_itself(made) is expected
    decoder = TorchDecoder(made, batch=1, capacity=64, own_attention=True)
    assert continue_with(decoder, PROMPTS[:1], 8) == generate(made, PROMPTS[:1], 8)


def test_local_layers_are_not_compiled() -> None:
    """They look so many places back in the keys, of which a fixed cache gives all."""
    config = AutoConfig.for_model(
        "gpt_neo", hidden_size=32, num_layers=2, num_heads=2, vocab_size=512,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match="GPTNeoForCausalLM has local layers"):
        TorchDecoder(AutoModelForCausalLM.from_config(config), batch=1, capacity=64, compiled=True)


def test_layers_are_counted() -> None:
    """An ordinary Llama has as many cache layers as blocks."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        vocab_size=64,
    )  # fmt: skip
    assert check_cacheable(LlamaForCausalLM(config)) == 3
