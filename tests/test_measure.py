"""Rates are what their definition says, from raw samples that are kept."""

from __future__ import annotations

import pytest

from llmfit.errors import UsageError
from llmfit.measure import fit_workload, measure, random_prompts
from llmfit.records import Workload
from llmfit.testing import FakeBackend, FakeModel, make_model


def test_rates_follow_their_definition() -> None:
    """Decode is batch × (N − 1) ÷ time after the first token, prefill batch × T ÷ time to it."""
    workload = Workload(prompt_tokens=10, new_tokens=21, batch=3, repeats=6, warmup=2)
    timing = measure(FakeModel(), workload, device="cpu")
    assert len(timing.warmup_s) == 2
    samples = zip(timing.decode.tokens_per_s.samples, timing.decode.step.samples_s, strict=True)
    for rate, steps in samples:
        assert len(steps) == 20
        assert rate == pytest.approx(3 * 20 / sum(steps))
    for rate, first in zip(timing.prefill.tokens_per_s.samples, timing.ttft_s.samples, strict=True):
        assert rate == pytest.approx(3 * 10 / first)
    flat = [second for run in timing.decode.step.samples_s for second in run]
    assert timing.decode.step.mean_s == pytest.approx(sum(flat) / 120)
    assert min(flat) <= timing.decode.step.p50_s <= timing.decode.step.p99_s <= max(flat)


def test_stages_are_told() -> None:
    """Progress counts warm-ups and repeats up to their number."""
    told: list[tuple[str, int, int]] = []
    workload = Workload(prompt_tokens=4, new_tokens=3, repeats=2)
    measure(
        FakeBackend().load(None),  # type: ignore[arg-type]
        workload,
        device="cpu",
        progress=lambda *stage: told.append(stage),
    )
    assert told == [("measure", done, 3) for done in (0, 1, 2, 3)]


def test_prompts_are_repeatable() -> None:
    """A seed gives the same tokens, all within the vocabulary."""
    workload = Workload(prompt_tokens=50, batch=2)
    first = random_prompts(workload, make_model().vocab_size, seed=4)
    assert first == random_prompts(workload, make_model().vocab_size, seed=4)
    assert first != random_prompts(workload, make_model().vocab_size, seed=5)
    assert all(0 <= token < 128256 for prompt in first for token in prompt)


def test_a_prompt_beyond_the_context_is_refused() -> None:
    """100 + 29 tokens do not fit a context of 128."""
    with pytest.raises(UsageError, match="100 prompt \\+ 29 new tokens exceed"):
        measure(FakeModel(), Workload(prompt_tokens=100, new_tokens=29), device="cpu")


def test_the_default_workload_fits_a_short_context() -> None:
    """512 + 128 become 384 + 128 in a context of 512, and stay where there is room."""
    assert fit_workload(Workload(), 640) == Workload()
    assert fit_workload(Workload(), 512) == Workload(prompt_tokens=384, new_tokens=128)
    assert fit_workload(Workload(batch=3), 128) == Workload(
        prompt_tokens=96, new_tokens=32, batch=3
    )
