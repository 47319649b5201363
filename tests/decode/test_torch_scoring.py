"""Scores of windows against a plain forward pass."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmfit.decode.base import Window, WindowScore
from llmfit.decode.torch_scoring import score_windows
from llmfit.models import data_path


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """The embedded model in float32."""
    loaded = AutoModelForCausalLM.from_pretrained(data_path("embedded"), dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    """Questions of four endings over one context, and single windows of other lengths."""
    rng = random.Random(3)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2048) for _ in range(count))

    made: list[Window] = []
    for _ in range(6):
        context = tokens(rng.randrange(5, 40))
        made += [Window(context + tokens(rng.randrange(1, 12)), len(context)) for _ in range(4)]
        made.append(Window(tokens(30), rng.randrange(1, 29)))
    return made


def plain(model: torch.nn.Module, window: Window) -> WindowScore:
    """The window's score by one unbatched pass over the whole sequence."""
    with torch.inference_mode():
        scores = model(torch.tensor([window.ids])).logits[0].double().log_softmax(-1)
    places = range(window.score_from - 1, len(window.ids) - 1)
    logprobs = tuple(float(scores[place, window.ids[place + 1]]) for place in places)
    greedy = all(int(scores[place].argmax()) == window.ids[place + 1] for place in places)
    return WindowScore(logprobs, greedy)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_scores_equal_a_plain_loop(
    model: torch.nn.Module, windows: list[Window], batch_tokens: int, attention: str
) -> None:
    """Batching, padding and sharing a context change no log-probability by more than 1e-4."""
    model.set_attn_implementation(attention)
    scored = list(score_windows(model, windows, batch_tokens=batch_tokens))
    assert len(scored) == len(windows)
    for window, score in zip(windows, scored, strict=True):
        expected = plain(model, window)
        assert score.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert score.greedy == expected.greedy


def test_greedy_is_seen(model: torch.nn.Module) -> None:
    """A continuation that the model itself would choose is marked greedy."""
    prompt = torch.tensor([[5, 9, 300, 41]])
    with torch.inference_mode():
        ids = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)
    (score,) = score_windows(model, [Window(tuple(ids[0].tolist()), 4)], batch_tokens=64)
    assert score.greedy
