"""Knowledge distillation: its loss by closed forms, its student, and the folder it is saved in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmfit.errors import UsageError
from llmfit.models import resolve
from llmfit.studies.base import Distilling
from llmfit.studies.techniques.distillation import distil, distillation_loss, evenly_spaced
from llmfit.studies.tuning import (
    TRAINING_TEXT,
    Draws,
    Training,
    keep_layers,
    load_model,
    save_model,
    sequences,
)

SHAPE = (2, 5, 11)  # [B, T, V]


@pytest.fixture(scope="module")
def teacher():
    return load_model("cpu", in_float32=True)


@pytest.fixture
def logits():
    made = torch.Generator().manual_seed(1)
    student = torch.randn(SHAPE, generator=made, requires_grad=True)
    teacher = 3 * torch.randn(SHAPE, generator=made)
    ids = torch.randint(SHAPE[-1], SHAPE[:2], generator=made)
    return student, teacher, ids


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("mixing", [0.0, 0.3, 1.0])
def test_loss_is_the_formula_summed_by_hand(logits, temperature, mixing):
    student, teacher, ids = logits
    q = softmax(student.detach().double().numpy()[:, :-1] / temperature)
    p = softmax(teacher.double().numpy()[:, :-1] / temperature)
    soft = (p * np.log(p / q)).sum(-1).mean()
    plain = softmax(student.detach().double().numpy()[:, :-1])
    hard = -np.mean([np.log(plain[b, t, ids[b, t + 1]]) for b in range(2) for t in range(4)])
    loss = distillation_loss(
        student, teacher, ids, Distilling(temperature=temperature, mixing=mixing)
    )
    assert loss.item() == pytest.approx(
        mixing * temperature**2 * soft + (1 - mixing) * hard, rel=1e-5
    )


def test_gradient_without_mixing_is_that_of_plain_cross_entropy(logits):
    student, teacher, ids = logits
    distillation_loss(student, teacher, ids, Distilling(mixing=0.0)).backward()
    found = student.grad.clone()
    student.grad = None
    torch.nn.CrossEntropyLoss()(student[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1)).backward()
    torch.testing.assert_close(found, student.grad)


def test_student_that_says_what_the_teacher_says_has_no_soft_loss(logits):
    _, teacher, ids = logits
    options = Distilling(temperature=3.0, mixing=1.0)
    assert distillation_loss(teacher, teacher, ids, options).item() == pytest.approx(0, abs=1e-6)


def test_temperature_and_mixing_change_the_loss(logits):
    student, teacher, ids = logits
    losses = {
        distillation_loss(student, teacher, ids, Distilling(temperature=t, mixing=m)).item()
        for t in (1.0, 2.0, 4.0)
        for m in (0.25, 0.75)
    }
    assert len(losses) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"mixing": 1.5},
        {"mixing": -0.1},
    ],
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(UsageError, match=r"temperature|mixing"):
        Distilling(**options)


def test_layers_are_evenly_spaced_with_both_ends():
    # DistilBERT takes layers 0, 2, 4, 7, 9 and 11 of 12 (Sanh et al. 2019, its script).
    assert evenly_spaced(6, 12) == (0, 2, 4, 7, 9, 11)
    assert evenly_spaced(2, 6) == (0, 5)
    assert evenly_spaced(1, 6) == (0,)
    with pytest.raises(UsageError, match="7 layers"):
        evenly_spaced(7, 6)


def test_all_layers_kept_give_the_same_logits(teacher):
    ids = torch.arange(40).view(2, 20)
    whole = keep_layers(teacher, range(6))
    torch.testing.assert_close(whole(ids).logits, teacher(ids).logits)
    assert whole.lm_head.weight.data_ptr() == whole.model.embed_tokens.weight.data_ptr()


def test_kept_layers_are_numbered_anew(teacher):
    short = keep_layers(teacher, (1, 4))
    assert [layer.self_attn.layer_idx for layer in short.model.layers] == [0, 1]
    torch.testing.assert_close(
        short.model.layers[1].mlp.up_proj.weight, teacher.model.layers[4].mlp.up_proj.weight
    )
    assert short.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 6
    with pytest.raises(UsageError, match="cannot be kept"):
        keep_layers(teacher, (5, 6))


@pytest.mark.slow
def test_student_learns_and_its_folder_is_an_ordinary_model(teacher, tmp_path: Path):
    data = sequences(TRAINING_TEXT, tokens=64, seed=0)
    made = distil(
        teacher,
        Draws(data, 4, seed=0, device="cpu"),
        Training(steps=12, batch=4, tokens=64, learning_rate=1e-3),
        Distilling(),
        layers=2,
        progress=lambda done, total: None,
    )
    assert made.layers == (0, 5)
    assert sum(made.losses[-3:]) < sum(made.losses[:3])
    save_model(made.student, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("Otto hid the letter.", return_tensors="pt")
    expected = made.student.bfloat16()(**ids).logits
    torch.testing.assert_close(loaded(**ids).logits, expected, rtol=0.05, atol=0.5)
    spec = resolve(str(tmp_path))
    assert spec.num_hidden_layers == 2
    assert spec.parameters == sum(p.numel() for p in made.student.parameters())
