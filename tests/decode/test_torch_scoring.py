"""Scores of windows against a plain forward pass."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, MistralConfig

from llmfit.decode.base import Window, WindowScore
from llmfit.decode.torch_scoring import score_windows
from llmfit.errors import EvaluationError
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


SMALL = {"vocab_size": 2048, "initializer_range": 0.3}
OTHERS: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 64, "word_embed_proj_dim": 32, "ffn_dim": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "init_std": 0.3,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neo": {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
        "attention_types": [[["global", "local"], 1]], "window_size": 8,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "biogpt": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "max_position_embeddings": 128,
    },
    "gemma4_text": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 2, "intermediate_size": 96, "sliding_window": 16,
        "max_position_embeddings": 128,
    },
}  # fmt: skip
"""Families whose head is called in ways of their own, or reads more of the body's output."""


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_score_as_in_a_plain_pass(family: str, windows: list[Window]) -> None:
    """Heads behind a decoder of the body's, with a projection, local layers, cross attention."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SMALL | OTHERS[family]))
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for window, score in zip(
        windows, score_windows(other, windows, batch_tokens=4096), strict=True
    ):
        assert score.logprobs == pytest.approx(plain(other, window).logprobs, abs=2e-4)


def test_a_head_that_does_not_read_the_states_is_refused(
    model: torch.nn.Module, windows: list[Window]
) -> None:
    """Its scores would be the same for every text; here the body is run by another name."""

    class Elsewhere(torch.nn.Module):
        config, dtype = model.config, model.dtype

        def __init__(self) -> None:
            super().__init__()
            self.whole = model
            self.base_model = copy.deepcopy(model.base_model)

        def forward(self, **inputs: Any) -> Any:
            return self.whole(**inputs)

    with pytest.raises(EvaluationError, match="Elsewhere computes its logits in a way"):
        list(score_windows(Elsewhere(), windows, batch_tokens=4096))


@pytest.mark.parametrize("first", [False, True])
def test_a_long_window_keeps_its_sliding_mask_beside_shared_ones(first: bool) -> None:
    """A row of endings has a mask of its own, which would let the long window see everything."""
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=32, max_position_embeddings=512, **SMALL,
    )  # fmt: skip
    mistral = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rng = random.Random(3)
    context, long = ([rng.randrange(2048) for _ in range(count)] for count in (12, 77))
    endings = [[rng.randrange(2048) for _ in range(16)] for _ in range(4)]
    made = [Window(tuple(context + ending), 12) for ending in endings]
    made.insert(0 if first else 4, Window(tuple(long), 1))
    for window, score in zip(made, score_windows(mistral, made, batch_tokens=4096), strict=True):
        assert score.logprobs == pytest.approx(plain(mistral, window).logprobs, abs=1e-4)


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
