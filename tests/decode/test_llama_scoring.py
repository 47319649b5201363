"""llama.cpp's scores of endings run together against each window run alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window
from llmfit.decode.llama_cpp import Context
from llmfit.records import ModelSpec, Plan

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def model(embedded: ModelSpec, artifact_cache: Path) -> Iterator[LoadedModel]:
    """The embedded model in f16."""
    plan = Plan(
        backend="gguf:f16", model=embedded, device="cpu", cache_dir=str(artifact_cache), threads=1
    )
    with get_backend("gguf").load(plan) as loaded:
        yield loaded


def questions(rng: random.Random, start: tuple[int, ...], endings: Sequence[int]) -> list[Window]:
    """A question for each of ``endings``, its number of choices; all begin with ``start``."""
    made = []
    for count in endings:
        context = start + tokens(rng, rng.randrange(1, 40))
        made += [
            Window(context + tokens(rng, rng.randrange(1, 12)), len(context)) for _ in range(count)
        ]
    return made


def tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(2048) for _ in range(count))


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    """Questions that begin alike, others that do not, long contexts, and texts from BOS on."""
    rng = random.Random(3)
    return [
        *questions(rng, tokens(rng, 20), (4, 2, 20, 1, 4)),
        *questions(rng, tokens(rng, 300), (2, 4, 4)),
        *questions(rng, tokens(rng, 700), (3,)),
        *questions(rng, (1,), (4, 4, 70, 4, 1, 1)),
        *(Window((1, *tokens(rng, length)), 1) for length in (300, 40, 600, 5)),
    ]


def test_a_long_beginning_is_run_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples before the questions of a few-shot task are not fed for each of them."""
    rng = random.Random(4)
    asked = questions(rng, tokens(rng, 400), [4] * 40)
    fed = []
    run = Context.run
    monkeypatch.setattr(
        Context, "run", lambda self, batch: (fed.append(batch.struct.n_tokens), run(self, batch))
    )
    assert len(list(model.score(asked, batch_tokens=4096))) == 160
    own = sum(len(window.ids) - 1 - window.score_from for window in asked)
    contexts = sum(window.score_from - 400 for window in asked[::4])
    assert sum(fed) == 400 + contexts + own
    assert len(fed) < 20


@pytest.mark.parametrize(
    "batch_tokens", [16, *(pytest.param(most, marks=pytest.mark.slow) for most in (128, 4096))]
)
def test_scores_equal_transformers(
    model: LoadedModel, windows: list[Window], embedded: ModelSpec, batch_tokens: int
) -> None:
    """Endings fed together score as a plain float32 pass of transformers over each alone."""
    reference = AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.float32).eval()
    scored = list(model.score(windows, batch_tokens=batch_tokens))
    for window, score in zip(windows, scored, strict=True):
        with torch.inference_mode():
            expected = reference(torch.tensor([window.ids])).logits[0].log_softmax(-1)
        places = range(window.score_from - 1, len(window.ids) - 1)
        assert score.logprobs == pytest.approx(
            [float(expected[place, window.ids[place + 1]]) for place in places], abs=0.05
        )


@pytest.mark.slow
def test_a_visitor_sees_the_predictions_in_order(model: LoadedModel, windows: list[Window]) -> None:
    """With a visitor the scores are the same, and its logits are those of the scored tokens."""
    seen: list[torch.Tensor] = []
    visited = model.score(
        windows, batch_tokens=4096, visit=lambda logits: seen.append(logits.clone())
    )
    scores = [value for score in visited for value in score.logprobs]
    wanted = [token for window in windows for token in window.ids[window.score_from :]]
    logprobs = torch.cat(seen).log_softmax(-1)[torch.arange(len(wanted)), torch.tensor(wanted)]
    assert logprobs.tolist() == pytest.approx(scores, abs=1e-4)
    together = [
        value for score in model.score(windows, batch_tokens=4096) for value in score.logprobs
    ]
    assert together == pytest.approx(scores, abs=0.05)
