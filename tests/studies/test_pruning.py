"""Depth pruning: influences by brute force, layers that do nothing, and the folder it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmfit.errors import UsageError
from llmfit.models import resolve
from llmfit.studies.techniques.pruning import block_influences, kept_layers, prune
from llmfit.studies.tuning import (
    TRAINING_TEXT,
    Draws,
    Training,
    keep_layers,
    load_model,
    save_model,
    sequences,
)


@pytest.fixture
def model():
    return load_model("cpu", in_float32=True)


@pytest.fixture(scope="module")
def data():
    return sequences(TRAINING_TEXT, tokens=48, seed=0)


def silence(layer) -> None:
    """Let the layer hand on its input unchanged."""
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)


def test_influences_are_those_of_every_token_one_by_one(model, data):
    batches = data[:4].split(2)
    found = block_influences(model, batches)
    model.model.norm = torch.nn.Identity()  # else the last hidden state is the normed one
    total = np.zeros(6)
    for ids in batches:
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
        for layer in range(6):
            for row in range(2):
                for token in range(48):
                    a = states[layer][row, token].double().numpy()
                    b = states[layer + 1][row, token].double().numpy()
                    total[layer] += 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found == pytest.approx(total / (4 * 48), rel=1e-3)
    least = int(np.argmin(total))
    assert kept_layers(found, 1) == tuple(layer for layer in range(6) if layer != least)


def test_layer_that_does_nothing_goes_first_and_is_not_missed(model, data):
    silence(model.model.layers[3])
    influences = block_influences(model, [data[:2]])
    assert influences[3] == pytest.approx(0, abs=1e-6)
    kept = kept_layers(influences, 1)
    assert kept == (0, 1, 2, 4, 5)
    ids = data[:2]
    torch.testing.assert_close(keep_layers(model, kept)(ids).logits, model(ids).logits)


def test_layers_of_least_influence_go_whatever_their_order():
    assert kept_layers((0.5, 0.1, 0.4, 0.05, 0.3), 2) == (0, 2, 4)
    assert kept_layers((0.5, 0.1), 0) == (0, 1)
    with pytest.raises(UsageError, match="2 layers cannot be dropped of 2"):
        kept_layers((0.5, 0.1), 2)


@pytest.mark.slow
def test_pruned_model_recovers_and_its_folder_is_an_ordinary_model(model, data, tmp_path: Path):
    made = prune(
        model,
        [data[:4]],
        Draws(data, 4, seed=0, device="cpu"),
        Training(steps=12, batch=4, tokens=48, learning_rate=5e-4),
        dropped=2,
        progress=lambda done, total: None,
    )
    assert len(made.layers) == 4
    assert sum(made.losses[-3:]) < sum(made.losses[:3])
    save_model(made.model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == 4
    for name, tensor in made.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.bfloat16())
    spec = resolve(str(tmp_path))
    assert spec.num_hidden_layers == 4
    assert spec.parameters == sum(p.numel() for p in made.model.parameters())
