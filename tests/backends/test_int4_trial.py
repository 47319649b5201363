"""The trial of 4-bit kernels for GPUs, run over the kernels that a CPU has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import IDS, llama
from torch import nn

from llmfit.models import resolve
from llmfit.records import Plan, Workload

pytest.importorskip("gptqmodel")

from llmfit.backends import _int4_trial as trial_of
from llmfit.backends._gptqmodel import GptqModelBackend, quantized_share
from llmfit.backends._hf import linear_kernel
from llmfit.backends._packed_int4 import to_packed_int4
from llmfit.backends._synthetic import random_causal_lm
from llmfit.backends._tinygemm import to_tinygemm
from llmfit.backends.registry import get_backend

pytestmark = pytest.mark.slow

METHODS = ("gptq", "awq")
ATEN = {"gptq": "gptq_torch_aten", "awq": "auto"}
"""The kernel that a CPU takes by itself; transformers has no name for AWQ's."""
FACTS = {"bits": 4, "group_size": 128}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of a model of two layers, 256 and 512 wide."""
    folder = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(folder)
    work = Workload(prompt_tokens=8, new_tokens=4)
    return Plan(
        backend="", model=resolve(str(folder)), device="cpu", workload=work, weights="synthetic",
        threads=1,
    )  # fmt: skip


def facts_of(method: str) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint whose layers are all quantised but the head."""
    backend = get_backend(method)
    assert isinstance(backend, GptqModelBackend)
    names = [
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    ]  # fmt: skip
    return {"quant_method": method, **FACTS, **backend.facts(names, ["lm_head"])}


def plain_model(method: str, plan: Plan) -> nn.Module:
    """Random weights under GPTQModel's layers of plain torch operations."""
    backend = get_backend(method)
    assert isinstance(backend, GptqModelBackend)
    return random_causal_lm(
        plan,
        llama().config,
        attention="sdpa",
        quantization={**facts_of(method), "backend": trial_of.PLAIN[method]},
        pack=backend.pack,
    )


def choose(method: str, plan: Plan, names: tuple[str, ...]) -> trial_of.KernelChoice:
    backend = get_backend(method)
    assert isinstance(backend, GptqModelBackend)
    return trial_of.choose_int4_kernel(
        plan,
        llama().config,
        facts_of(method),
        attention="sdpa",
        pack=backend.pack,
        names=names,
    )


@pytest.mark.parametrize("method", METHODS)
def test_tinygemm_holds_the_same_weights(method: str, plan: Plan) -> None:
    """Fed with unit vectors it gives GPTQModel's weights, but for the rounding of a zero."""
    layers: list[Any] = trial_of.int4_layers(plain_model(method, plan))
    assert len(layers) == 14
    for layer in layers[:7]:
        unit = torch.eye(layer.in_features).bfloat16()
        with torch.inference_mode():
            expected, found = layer(unit).float(), to_tinygemm(layer)(unit).float()
        steps = layer.scales.float().repeat_interleave(128, 0)  # [K, N]
        assert ((found - expected).abs() / steps).max() < 2**-3  # codes differ by whole steps
        assert (found - expected).norm() / expected.norm() < 2**-7


@pytest.mark.parametrize("method", METHODS)
def test_llmfits_layer_holds_the_same_weights(method: str, plan: Plan) -> None:
    """Its words and scales, taken apart here, are GPTQModel's weights within their rounding."""
    layers: list[Any] = trial_of.int4_layers(plain_model(method, plan))
    for layer in layers[:7]:
        made: Any = to_packed_int4(layer)
        codes = made.words[:, :, None] >> torch.arange(0, 32, 4) & 15
        halves = made.scales_and_zeros.view(torch.int16).view(layer.out_features, -1, 2)
        scales = halves[..., 0].contiguous().view(layer.scales.dtype).float()
        zeros = halves[..., 1].contiguous().view(torch.float16).float()
        grouped = codes.float().view(layer.out_features, -1, 128) - zeros[..., None]
        weights = (grouped * scales[..., None]).view(layer.out_features, -1)
        with torch.inference_mode():
            expected = layer(torch.eye(layer.in_features).bfloat16()).float().t()
        torch.testing.assert_close(weights, expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_fastest_of_equal_kernels_is_taken(method: str, plan: Plan) -> None:
    """Times of step and prompt are in the record; what cannot run here is a note."""
    names = (trial_of.TINYGEMM, ATEN[method], "marlin")
    choice = choose(method, plan, names)
    step, prompt = choice.trial_s["1 token"], choice.trial_s["8 tokens"]
    tried = {trial_of.PLAIN[method], *names[:2]}
    assert set(step) == set(prompt) == tried
    assert choice.kernel == min(tried, key=lambda name: prompt[name] + 3 * step[name])
    (note,) = choice.notes
    assert note.startswith("marlin not tried: ")


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_given_the_kernel(method: str, plan: Plan) -> None:
    """Loaded with plain layers, the model computes the same with tinygemm, and says so."""
    model = plain_model(method, plan)
    share = quantized_share(model)
    choice = trial_of.KernelChoice(method=method, kernel=trial_of.TINYGEMM, trial_s={}, notes=())
    assert choice.backend == trial_of.PLAIN[method]
    with torch.inference_mode():
        expected = model(IDS).logits
        choice.apply(model)
        found = model(IDS).logits
    assert (found - expected).norm() / expected.norm() < 0.02
    assert linear_kernel(model) == "TinyGemmLinear"
    assert quantized_share(model) == share


def test_tinygemm_takes_the_models_type_and_its_biases(plan: Plan) -> None:
    """Float16 in, float16 out, the same within bfloat16's rounding; a bias is held as a buffer."""
    layer: Any = trial_of.int4_layers(plain_model("gptq", plan))[0]
    bias = torch.randn(layer.out_features).bfloat16()
    layer.bias = bias
    made = to_tinygemm(layer)
    x = torch.randn(1, 3, layer.in_features).bfloat16()
    with torch.inference_mode():
        exact, half = made(x), made(x.half())
        layer.bias = None
        without = to_tinygemm(layer)(x)
    assert half.dtype == torch.float16 and exact.dtype == torch.bfloat16
    torch.testing.assert_close(half.bfloat16(), exact, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(exact, without + bias, rtol=2**-6, atol=2**-6)
    assert "bias" in dict(made.named_buffers())


def test_a_kernel_with_other_results_is_refused(plan: Plan) -> None:
    """It is a note, and not among those to choose from."""
    layers = trial_of.int4_layers(plain_model("gptq", plan))
    trial = trial_of._Trial(plan, scale=1)
    with torch.inference_mode():
        trial.measure("right", layers)
        trial.measure("wrong", layers[:-1] + layers[-2:-1])
    assert set(trial.step_s) == {"right"} and trial.fastest() == "right"
    assert trial.notes[0].startswith("kernel not used, as its results differ: wrong (off by ")


def test_the_workload_decides(plan: Plan) -> None:
    """A kernel that is slow at prompts wins where many tokens follow, and only there."""
    for new_tokens, expected in ((2, "prompts"), (1000, "steps")):
        asked = replace(plan, workload=replace(plan.workload, new_tokens=new_tokens))
        trial = trial_of._Trial(asked, scale=1)
        trial.step_s = {"prompts": 0.02, "steps": 0.01}
        trial.prompt_s = {"prompts": 0.1, "steps": 1.0}
        assert trial.fastest() == expected


def test_activation_order_is_refused(plan: Plan) -> None:
    """The groups of both are neighbours."""
    layer: Any = trial_of.int4_layers(plain_model("gptq", plan))[0]
    layer.g_idx = layer.g_idx.flip(0)
    for make in (to_tinygemm, to_packed_int4):
        with pytest.raises(ValueError, match="activation order"):
            make(layer)
