"""Scores over the quantised cache: as decode meets it, against loops over transformers' own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, QuantizedCache

from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window
from llmfit.decode.cached_scoring import score_windows_cached
from llmfit.decode.torch_scoring import score_windows
from llmfit.models import data_path
from llmfit.records import KvCacheDtype, ModelSpec, Plan

pytest.importorskip("hqq")

BITS: dict[KvCacheDtype, int] = {"q8_0": 8, "q4_0": 4}


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded model in float32, where order of summation hardly shows."""
    loaded = AutoModelForCausalLM.from_pretrained(data_path("embedded"), dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def ids() -> tuple[int, ...]:
    """480 tokens of the embedded text."""
    tokenizer = AutoTokenizer.from_pretrained(data_path("embedded"))
    return tuple(tokenizer(data_path("text.txt").read_text("utf-8")[:4000])["input_ids"][:480])


def decoded_logprobs(
    model: Any, ids: tuple[int, ...], prompt: int, dtype: KvCacheDtype
) -> list[float]:
    """Prefill of ``prompt`` tokens, then one token a step, as generate does."""
    cache = QuantizedCache(
        backend="hqq", config=model.config, nbits=BITS[dtype], axis_key=1, axis_value=1,
        q_group_size=32, residual_length=128,
    )  # fmt: skip
    found = []
    with torch.inference_mode():
        feed = torch.tensor([ids[:prompt]])
        for wanted in ids[prompt:]:
            logits = model(feed, past_key_values=cache, use_cache=True).logits[0, -1]
            found.append(logits.log_softmax(-1)[wanted].item())
            feed = torch.tensor([[wanted]])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
@pytest.mark.parametrize("prompt", [1, 100])
def test_scores_are_those_of_decode(
    model: Any, ids: tuple[int, ...], dtype: KvCacheDtype, prompt: int
) -> None:
    """Chunks give each token what feeding one token at a time gives it, within 1e-3."""
    window = Window(ids, prompt)
    (score,) = score_windows_cached(model, [window], dtype, batch_tokens=4096)
    expected = decoded_logprobs(model, ids, prompt, dtype)
    assert score.logprobs == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch(model: Any, ids: tuple[int, ...]) -> None:
    """Endings of one context, long ones and short ones, score alike alone and together."""
    shared = [Window(ids[:40] + ids[at : at + n], 40) for at, n in ((60, 9), (70, 1), (90, 30))]
    long = [Window(ids[:30] + ids[at : at + 140], 30) for at in (100, 200)]
    windows = [*shared, Window(ids[:300], 1), *long, Window(ids[:200], 150)]
    together = list(score_windows_cached(model, windows, "q4_0", batch_tokens=4096))
    for window, score in zip(windows, together, strict=True):
        (alone,) = score_windows_cached(model, [window], "q4_0", batch_tokens=1)
        assert score.logprobs == pytest.approx(alone.logprobs, abs=1e-3)
        assert score.greedy == alone.greedy


def test_the_visitor_sees_the_scored_tokens_in_order(model: Any, ids: tuple[int, ...]) -> None:
    """The logits visited are, row by row, those that the scores come from; at most 256 at once."""
    windows = [Window(ids, 1), *(Window(ids[:40] + ids[at : at + 9], 40) for at in (60, 80))]
    seen: list[torch.Tensor] = []
    scores = list(
        score_windows_cached(
            model, windows, "q8_0", batch_tokens=4096, visit=lambda rows: seen.append(rows.clone())
        )
    )
    assert max(map(len, seen)) <= 256
    wanted = torch.tensor(
        [token for window in windows for token in window.ids[window.score_from :]]
    )
    visited = torch.cat(seen).log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    expected = list(itertools.chain.from_iterable(score.logprobs for score in scores))
    assert visited.tolist() == pytest.approx(expected, abs=1e-4)


def mean_divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(reference ‖ other) of logits [S, V], in nats."""
    kl = torch.nn.functional.kl_div(
        other.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return kl.item()


def test_divergence_is_the_price_of_the_bits(model: Any, ids: tuple[int, ...]) -> None:
    """Against the unquantised cache 8 bits cost a little, 4 bits at least ten times as much."""
    windows = [Window(ids, 1)]
    plain: list[torch.Tensor] = []
    list(score_windows(model, windows, batch_tokens=4096, visit=lambda x: plain.append(x.clone())))
    divergence = {}
    for dtype in BITS:
        logits: list[torch.Tensor] = []

        def keep(rows: torch.Tensor, into: list[torch.Tensor] = logits) -> None:
            into.append(rows.clone())

        list(score_windows_cached(model, windows, dtype, batch_tokens=4096, visit=keep))
        divergence[dtype] = mean_divergence(torch.cat(plain), torch.cat(logits))
    assert 0 < divergence["q8_0"] < 1e-4
    assert 10 * divergence["q8_0"] < divergence["q4_0"] < 0.05


@pytest.mark.parametrize(
    "backend", ["bf16", *(pytest.param(row, marks=pytest.mark.slow) for row in ("int8", "nf4"))]
)
def test_every_row_scores_over_its_cache(
    embedded: ModelSpec, ids: tuple[int, ...], backend: str
) -> None:
    """A row's own ``score`` goes over the cache that its plan asks for."""
    plan = Plan(backend=backend, model=embedded, device="cpu", kv_cache_dtype="q4_0")
    with get_backend(backend).load(plan) as loaded:
        (score,) = loaded.score([Window(ids[:200], 20)], batch_tokens=512)
        direct = score_windows_cached(
            loaded.model,  # type: ignore[attr-defined]
            [Window(ids[:200], 20)],
            "q4_0",
            batch_tokens=512,
        )
        assert score == next(direct)
