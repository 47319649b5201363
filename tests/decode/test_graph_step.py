"""The compiled step: the logits of an uncompiled one, over the very buffers, whatever the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from llmfit.backends._hf import HfModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Sampling
from llmfit.decode.cache import StaticKVCache
from llmfit.decode.graph_step import (
    ATTENTION,
    CapturedStep,
    CompiledWhereItCan,
    FixedStep,
    why_not_captured,
)
from llmfit.decode.step_linears import StepLinears, choose_step_linears
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.kernels.build import find_compiler
from llmfit.records import ModelSpec, Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler"),
]
PROMPT = [(7 * at) % 199 for at in range(21)]
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 199,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def make(kind: type, config: type, **changes: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**{**SHAPE, **changes})).to(torch.bfloat16).eval()


def step_logits(decoder: TorchDecoder, fed: list[int]) -> torch.Tensor:
    """Logits [n, V] after a prompt and each of the tokens ``fed`` in turn."""
    seen: list[torch.Tensor] = []
    given = iter([*fed, 0])

    def choose(logits: torch.Tensor) -> None:
        seen.append(logits[0].float().clone())
        decoder._ids.fill_(next(given))

    decoder._choose = choose  # type: ignore[method-assign]
    decoder.prefill([PROMPT])
    for _ in fed:
        decoder.step()
    return torch.stack(seen)


@pytest.mark.parametrize(
    ("kind", "config", "changes"),
    [
        (LlamaForCausalLM, LlamaConfig, {}),
        (MistralForCausalLM, MistralConfig, {"sliding_window": 8, "head_dim": 48}),
    ],
)
def test_logits_are_those_of_whole_passes(kind: type, config: type, changes: Any) -> None:
    """Own kernels, own attention and inductor together: within bfloat16's rounding of float32."""
    model, fed = make(kind, config, **changes), [(3 * at) % 199 for at in range(20)]
    decoder = TorchDecoder(
        model, batch=1, capacity=48, compiled=True, linears=choose_step_linears(model)
    )
    found = step_logits(decoder, fed)
    with torch.inference_mode():
        exact = model.float()(torch.tensor([PROMPT + fed])).logits[0, len(PROMPT) - 1 :]
    assert (found - exact).norm() / exact.norm() < 2**-6
    decoder.close()


@pytest.mark.parametrize(
    ("attention", "adds"), [("eager", False), ("eager", True), ("sdpa", False)]
)
def test_an_untraced_fixed_step_is_that_of_whole_passes(attention: str, adds: bool) -> None:
    """What a CUDA graph records, run as it is: constant shapes, all that is not held masked.

    Eager attention's mask is transformers', or on a GPU a sum that asks nothing of the host.
    """
    model = make(LlamaForCausalLM, LlamaConfig).float()
    model.set_attn_implementation(attention)
    cache = StaticKVCache(2, 40, torch.device("cpu"))
    ids, fed = torch.zeros((1, 1), dtype=torch.int64), [5, 190, 33]
    step = FixedStep(model, cache, ids, slots=None, padding=None)
    assert not step._adds  # on a CPU nothing is captured
    step._adds = adds
    with torch.inference_mode():
        model(torch.tensor([PROMPT]), past_key_values=cache, use_cache=True)
        cache.fix()
        found = []
        for token in fed:
            ids.fill_(token)
            found.append(step()[0])
        exact = model(torch.tensor([PROMPT + fed])).logits[0, len(PROMPT) :]
    torch.testing.assert_close(torch.stack(found), exact, atol=1e-4, rtol=1e-4)
    assert int(cache.position) == len(PROMPT) + len(fed)


def test_the_attention_of_the_model_is_as_before_and_the_layers_too() -> None:
    """Tracing changes a setting and forwards; afterwards the model is as it was loaded."""
    model = make(LlamaForCausalLM, LlamaConfig)
    linears = choose_step_linears(model)
    decoder = TorchDecoder(model, batch=1, capacity=32, compiled=True, linears=linears)
    step_logits(decoder, [1, 2])
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    cache = decoder._live_cache()
    step = FixedStep(model, cache, decoder._ids, slots=None, padding=None)  # type: ignore[arg-type]
    with step.own_attention() as used:
        assert used and model.config._attn_implementation == ATTENTION
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_many_compiled_decoders_live_at_once() -> None:
    """More than Dynamo would trace of one function; each says what the first one does."""
    model = make(LlamaForCausalLM, LlamaConfig)
    decoders = [TorchDecoder(model, batch=1, capacity=32, compiled=True) for _ in range(10)]
    first, *others = [step_logits(decoder, [1, 2]) for decoder in decoders]
    for logits in others:
        torch.testing.assert_close(logits, first, rtol=0, atol=0)


def test_the_record_names_the_attention_of_the_steps(embedded: ModelSpec) -> None:
    """Compiled steps attend by llmfit's kernel on a CPU, those of the row sdpa by SDPA."""
    names = {}
    for backend in ("sdpa", "compiled"):
        plan = Plan(backend=backend, model=embedded, device="cpu", threads=1)
        with get_backend(backend).load(plan) as loaded:
            kernel = loaded.info.kernel
            names[backend] = kernel.attention
            decoder = loaded.decoder(batch=1, capacity=32)
            assert isinstance(decoder, TorchDecoder)
            step = FixedStep(
                decoder._model,
                decoder._live_cache(),
                decoder._ids,
                slots=None,
                padding=None,  # type: ignore[arg-type]
            )
            with step.own_attention() as used:
                assert used
    assert names == {"sdpa": "sdpa", "compiled": "sdpa, in steps llmfit"}


def test_a_kernel_that_cannot_be_captured_is_named(embedded: ModelSpec) -> None:
    """LLM.int8() is known to ask the host: no capture is tried, and the step runs as it is."""
    reasons = {}
    for backend in ("int8", "nf4"):
        with get_backend(backend).load(
            Plan(backend=backend, model=embedded, device="cpu", threads=1)
        ) as loaded:
            assert isinstance(loaded, HfModel)
            reasons[backend] = why_not_captured(loaded.model, StepLinears())
            layers = [
                each for each in loaded.model.modules() if "Linear8bit" in type(each).__name__
            ]
            own = StepLinears(dict.fromkeys(layers, lambda x: x))
            assert why_not_captured(loaded.model, own) is None  # it asks nothing
    assert reasons["nf4"] is None
    assert reasons["int8"] is not None and "Linear8bitLt" in reasons["int8"]
    cache = StaticKVCache(1, 8, torch.device("cpu"))
    step = CapturedStep(lambda: torch.ones(1), cache, why_not=reasons["int8"])
    assert step().item() == 1 and step.why_not == reasons["int8"]


def test_a_step_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same linear kernels, and with the reason; the layers are given back."""
    model = make(LlamaForCausalLM, LlamaConfig)
    rows = []

    def head(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return torch.nn.functional.linear(x, model.lm_head.weight)

    def projected(x: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[1])
        return torch.nn.functional.linear(x, layer.weight)

    layer = model.model.layers[0].mlp.up_proj
    logits = {}
    for breaks in (False, True):
        if breaks:
            monkeypatch.setattr(model.lm_head, "forward", head)
        cache = StaticKVCache(2, 40, torch.device("cpu"))
        ids = torch.full((1, 1), 7)
        with torch.inference_mode():
            model(torch.tensor([PROMPT]), past_key_values=cache, use_cache=True)
            cache.fix()
            rows.clear()
            step = FixedStep(model, cache, ids, slots=None, padding=None)
            tried = CompiledWhereItCan(step, StepLinears({layer: projected}))
            logits[breaks] = tried()
        assert "forward" not in vars(layer)
        assert (tried.why_not is not None) == breaks
        assert int(cache.position) == len(PROMPT) + 1
    assert "torch.compile cannot make the decode step" in str(tried.why_not) and rows == [1]
    torch.testing.assert_close(logits[True], logits[False], atol=0.05, rtol=0.05)


def test_a_second_prompt_and_sampling_use_the_same_graph() -> None:
    """Another prompt and another way of choosing compile nothing anew, and agree with eager."""
    model = make(LlamaForCausalLM, LlamaConfig)
    decoder = TorchDecoder(model, batch=1, capacity=48, compiled=True)
    found = []
    for prompt in (PROMPT, PROMPT[:9]):
        decoder.prefill([prompt], Sampling(temperature=1.0, top_k=1))
        decoder.step()
        found.append(decoder.tokens())
    assert len(decoder._graphs) == 1
    eager = TorchDecoder(model, batch=1, capacity=48)
    expected = []
    for prompt in (PROMPT, PROMPT[:9]):
        eager.prefill([prompt])
        eager.step()
        expected.append(eager.tokens())
    assert found == expected


def test_prompts_of_different_length_are_masked() -> None:
    """A batch with padding: each sequence continues as alone (float32, where nothing rounds)."""
    model = make(LlamaForCausalLM, LlamaConfig).float()
    prompts = [PROMPT, PROMPT[:5]]
    together = TorchDecoder(model, batch=2, capacity=40, compiled=True)
    together.prefill(prompts)
    columns = [together.tokens()]
    for _ in range(6):
        together.step()
        columns.append(together.tokens())
    for index, prompt in enumerate(prompts):
        alone = TorchDecoder(model, batch=1, capacity=40)
        alone.prefill([prompt])
        expected = alone.tokens()
        for _ in range(6):
            alone.step()
            expected += alone.tokens()
        assert [column[index] for column in columns] == expected
