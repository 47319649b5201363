"""QLoRA: what learns, what rests, and what it holds, by closed forms."""

from __future__ import annotations

import pytest
import torch

from llmfit.errors import BackendUnavailable
from llmfit.studies.techniques import qlora
from llmfit.studies.tuning import TRAINING_TEXT, sequences, text_loss

RANK = 4


@pytest.fixture(scope="module")
def adapted():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    return qlora.load_for_qlora("cpu", rank=RANK)


def projections(config) -> list[tuple[int, int]]:
    """Inputs and outputs of every projection of a Llama, by its config alone."""
    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    layer = [(width, query), (width, key), (width, key), (query, width)]
    layer += [(width, inner), (width, inner), (inner, width)]
    return layer * config.num_hidden_layers


def test_adapters_are_rank_times_inputs_and_outputs(adapted):
    by_config = sum(RANK * (a + b) for a, b in projections(adapted.config))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == by_config == qlora.adapter_parameters(adapted, RANK)


def test_parameters_count_as_if_they_were_unpacked(adapted):
    assert qlora.parameter_count(adapted) == 5_246_208 + qlora.adapter_parameters(adapted, RANK)


@pytest.mark.slow
def test_steps_change_the_adapters_alone_and_the_loss_falls(adapted):
    before = qlora.base_weights(adapted)
    learning = [p for p in adapted.parameters() if p.requires_grad]
    first = [p.detach().clone() for p in learning]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    ids = sequences(TRAINING_TEXT, tokens=64, seed=0)[:4]
    losses = []
    for _ in range(6):
        optimizer.zero_grad(set_to_none=True)
        loss = text_loss(adapted, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(first, learning, strict=True))
    after = qlora.base_weights(adapted)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    optimizer.zero_grad(set_to_none=True)
    held = qlora.held_bytes(adapted, optimizer)
    # NF4: half a byte a weight and a float32 scale for 64 of them; adapters and AdamW's two
    # moments of them in float32; embedding (tied) and norms in float32.
    packed = sum(a * b for a, b in projections(adapted.config))
    rest = 5_246_208 - packed
    adapters = qlora.adapter_parameters(adapted, RANK)
    closed = packed / 2 + packed / 64 * 4 + 4 * rest + 3 * 4 * adapters
    assert held == pytest.approx(closed, rel=0.01)


def test_gradients_are_those_of_the_same_model_with_unpacked_weights(adapted):
    from bitsandbytes.functional import dequantize_4bit

    ids = sequences(TRAINING_TEXT, tokens=32, seed=0)[:2]
    torch.manual_seed(0)
    dense = qlora.load_for_qlora("cpu", rank=RANK)
    dense.load_state_dict(
        {name: value for name, value in adapted.state_dict().items() if "lora" in name},
        strict=False,
    )
    for module in dense.modules():
        base = getattr(module, "base_layer", None)
        if base is not None:
            plain = torch.nn.Linear(base.in_features, base.out_features, bias=False)
            plain.weight = torch.nn.Parameter(
                dequantize_4bit(base.weight.data, base.weight.quant_state).float(), False
            )
            module.base_layer = plain
    gradients = []
    for model in (adapted, dense):
        model.zero_grad(set_to_none=True)
        text_loss(model, ids).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    packed, unpacked = gradients
    lowest = next(name for name in packed if "layers.0." in name and "lora_B" in name)
    assert packed[lowest].abs().max() > 0
    for name, gradient in packed.items():
        apart = (gradient - unpacked[name]).norm() / unpacked[name].norm().clamp(min=1e-9)
        assert apart < 0.1 or gradient.norm() < 1e-9, name  # bf16 against float32 arithmetic


def test_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(qlora, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(BackendUnavailable, match=r"peft is not installed.*llmfit\[studies\]"):
        qlora.require_packages()
