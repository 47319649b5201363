"""Scores of windows against a plain forward pass."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

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


@pytest.mark.parametrize("sliding_window", [8, 4096])
def test_caps_and_sliding_windows_are_the_models_own(
    windows: list[Window], sliding_window: int
) -> None:
    """Gemma-2's capped scores and logits and its sliding layers score as in a plain pass."""
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=2048,
        initializer_range=0.3,
        final_logit_softcapping=4.0,
        sliding_window=sliding_window,
        attn_implementation="eager",
    )
    gemma = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for window, score in zip(
        windows, score_windows(gemma, windows, batch_tokens=4096), strict=True
    ):
        assert score.logprobs == pytest.approx(plain(gemma, window).logprobs, abs=1e-4)


def test_windows_that_begin_alike_share_only_what_is_alike(model: torch.nn.Module) -> None:
    """Contexts that part before their end, and endings of one token, score as they do alone."""
    rng = random.Random(5)
    start, middle = ([rng.randrange(2048) for _ in range(count)] for count in (30, 6))
    parted = [
        Window((*start, option, *middle, *ending), 31 + cut)
        for option in (7, 8)
        for cut, ending in ((0, (3,)), (6, (9,)), (6, (10,)), (2, (11, 12)))
    ]
    for window, score in zip(parted, score_windows(model, parted, batch_tokens=4096), strict=True):
        assert score.logprobs == pytest.approx(plain(model, window).logprobs, abs=1e-4)


def test_a_visitor_sees_the_predictions_in_order(
    model: torch.nn.Module, windows: list[Window]
) -> None:
    """The logits visited are those of the scored tokens, at most 256 rows at a time."""
    seen: list[torch.Tensor] = []
    scored = list(
        score_windows(
            model, windows, batch_tokens=300, visit=lambda logits: seen.append(logits.clone())
        )
    )
    assert max(map(len, seen)) <= 256
    wanted = [token for window in windows for token in window.ids[window.score_from :]]
    logprobs = torch.cat(seen).log_softmax(-1)[torch.arange(len(wanted)), torch.tensor(wanted)]
    expected = [value for score in scored for value in score.logprobs]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-5)
