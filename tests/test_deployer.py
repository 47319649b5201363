"""The facade, used as in the README."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmfit import Deployer, EvaluationSettings, LlmfitError, Sampling, Workload
from llmfit.errors import UsageError

PROMPT = "Weather: It was raining in the"


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployer]:
    """The embedded model as plain bf16."""
    with Deployer(backend="bf16", threads=1) as deployer:
        yield deployer


@pytest.mark.slow
def test_text_equals_transformers(deployed: Deployer) -> None:
    """The greedy text is the one that transformers.generate gives, EOS and all."""
    path = deployed.plan.model.path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    ids = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=60, do_sample=False)[
        0, ids.input_ids.shape[1] :
    ]
    ours = deployed.generate(PROMPT, max_new_tokens=60)
    assert list(ours.token_ids) == expected.tolist()
    assert ours.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert ours.prompt_tokens == ids.input_ids.shape[1]
    assert ours.new_tokens == len(expected)
    assert ours.finish == ("eos" if expected[-1] == tokenizer.eos_token_id else "length")


def test_a_single_token_has_no_decode_rate(deployed: Deployer) -> None:
    """The first token belongs to prefill, so one token gives no rate rather than 0."""
    generation = deployed.generate(PROMPT, max_new_tokens=1)
    assert generation.new_tokens == 1
    assert generation.tokens_per_s is None
    assert generation.ttft_s > 0


def test_sampling_is_repeatable(deployed: Deployer) -> None:
    """A seed gives the same text again."""
    hot = Sampling(temperature=1.2, top_k=50, top_p=0.95, seed=7)
    first = deployed.generate(PROMPT, max_new_tokens=30, sampling=hot)
    assert deployed.generate(PROMPT, max_new_tokens=30, sampling=hot).text == first.text


@pytest.mark.slow
def test_benchmark_and_evaluate_return_figures(deployed: Deployer) -> None:
    """Timing and quality come with their raw samples."""
    timing = deployed.benchmark(Workload(prompt_tokens=16, new_tokens=8, repeats=5))
    assert len(timing.decode.tokens_per_s.samples) == 5
    step = timing.decode.step
    assert step.p50_s <= step.p95_s <= step.p99_s
    quality = deployed.evaluate(EvaluationSettings(limit=4))
    assert quality.hellaswag is not None and quality.hellaswag.n == 4
    assert quality.perplexity is not None and quality.perplexity.n_documents == 4


def test_too_long_a_text_is_refused(deployed: Deployer) -> None:
    """Prompt and new tokens beyond the context are named."""
    with pytest.raises(UsageError, match="context"):
        deployed.generate(PROMPT, max_new_tokens=100_000)


def test_a_closed_deployer_says_so() -> None:
    """Using it before loading or after closing is one clear error."""
    deployer = Deployer(backend="bf16")
    with pytest.raises(LlmfitError, match="not loaded"):
        deployer.generate(PROMPT)


def test_a_checkpoint_for_a_format_without_one_is_refused() -> None:
    """nf4 quantises while loading; there is no checkpoint to give."""
    with pytest.raises(UsageError, match="takes no checkpoint"):
        Deployer(backend="nf4", checkpoint="x")
    with pytest.raises(UsageError, match="it needs no calibration text"):
        Deployer(backend="nf4", calibration_file="x")
