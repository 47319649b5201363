"""The vllm row: what it asks of vLLM, and, where that is installed, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from llmfit.backends.registry import get_backend
from llmfit.backends.vllm import Vllm, VllmLoaded, engine_options
from llmfit.decode.base import Decoder, Sampling, Window
from llmfit.decode.vllm_engine import VllmModel
from llmfit.errors import BackendUnavailable, EvaluationError, UsageError
from llmfit.network import NO_TELEMETRY
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import EvaluationSettings, ModelSpec, Plan, Workload
from llmfit.testing import make_model

PROMPTS = ([0, 31, 57, 400, 12, 9], [0, 77])
WORK = Workload(prompt_tokens=32, new_tokens=16, batch=2)


def test_without_it_the_row_says_what_to_install(embedded: ModelSpec) -> None:
    """The line names versions that go with llmfit's torch and transformers."""
    backend = get_backend("vllm")
    plan = Plan(backend="vllm", model=embedded, device="cuda")
    if backend.missing():
        reason = backend.check(plan).unavailable
        assert reason == "vllm not installed: pip install 'vllm>=0.30,<0.31'"
        with pytest.raises(BackendUnavailable, match="vllm not installed"):
            backend.load(plan)
    assert backend.loads_quantized == {"gptq", "awq"} and backend.devices == {"cuda"}


def test_the_pool_holds_the_workload_and_a_window() -> None:
    """Llama-3.1-8B: 131,072 bytes a token, blocks of 128 and one more; as it is predicted.

    Source of the bytes: 32 layers × 2 × 8 heads × 128 values × 2 bytes.
    """
    spec = make_model()
    for batch, tokens in ((1, 2 * 2048 + 64), (1, 640), (16, 640)):
        work = Workload(prompt_tokens=tokens - 128, new_tokens=128, batch=batch)
        plan = Plan(backend="vllm", model=spec, device="cuda", workload=work)
        options = engine_options(plan)
        pool = options.kv_cache_memory_bytes // 131_072
        assert options.max_model_len == max(tokens, 2048) + 1 and options.max_num_seqs >= batch
        assert pool % 128 == 0 and pool >= batch * (tokens + 1) + 128
        assert pool >= options.max_model_len + 127
        assert pool <= max(batch * (tokens + 129), options.max_model_len + 128) + 128
        predicted = predict_memory(spec, "vllm", work, "cuda")
        assert predicted is not None
        assert predicted.kv_cache_bytes == options.kv_cache_memory_bytes
        assert predicted.weights_bytes == 2 * 8_030_261_248


def test_a_larger_window_and_a_chunk_are_passed_on(embedded: ModelSpec) -> None:
    """What the settings ask of the engine, within the model's context of 1,024."""
    spec = make_model()
    wide = Plan(
        backend="vllm", model=spec, device="cuda", workload=WORK,
        evaluation=EvaluationSettings(ppl_window=4096),
    )  # fmt: skip
    assert engine_options(wide).max_model_len == 4097
    assert engine_options(wide).max_num_batched_tokens == 64
    chunked = Plan(
        backend="vllm", model=embedded, device="cuda",
        workload=Workload(prompt_tokens=500, new_tokens=16, prefill_chunk=100),
    )  # fmt: skip
    assert engine_options(chunked).max_num_batched_tokens == 100
    assert engine_options(chunked).max_model_len == embedded.max_position_embeddings + 1
    tiny = Plan(
        backend="vllm", model=embedded, device="cuda",
        workload=Workload(prompt_tokens=32, new_tokens=16, prefill_chunk=4, batch=3),
    )  # fmt: skip
    assert engine_options(tiny).max_num_batched_tokens == engine_options(tiny).max_num_seqs == 4


def test_what_is_asked_of_vllm_is_there() -> None:
    """Every option is an argument of the installed version's, and the engine has what is called."""
    pytest.importorskip("vllm", reason="the package vllm")
    arguments: Any = pytest.importorskip("vllm.engine.arg_utils")
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.v1.engine.llm_engine import LLMEngine

    options = engine_options(Plan(backend="vllm", model=make_model(), device="cuda", workload=WORK))
    assert asdict(options).keys() <= {each.name for each in fields(arguments.EngineArgs)}
    asked = (
        "temperature", "top_k", "top_p", "seed", "max_tokens", "ignore_eos", "detokenize",
        "output_kind", "prompt_logprobs", "logprob_token_ids",
    )  # fmt: skip
    assert set(asked) <= set(SamplingParams.__struct_fields__)
    for name in ("from_engine_args", "add_request", "abort_request", "step", "apply_model",
                 "has_unfinished_requests"):  # fmt: skip
        assert callable(getattr(LLMEngine, name))
    assert tokens_input([1, 2])["prompt_token_ids"] == [1, 2]


def test_vllm_tells_nobody_of_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """What llmfit sets for every process turns its statistics off."""
    pytest.importorskip("vllm", reason="the package vllm")
    envs: Any = pytest.importorskip("vllm.envs")
    for name, value in NO_TELEMETRY.items():
        monkeypatch.setenv(name, value)
    assert envs.VLLM_NO_USAGE_STATS is True


# ---------------------------------------------------------------- where vLLM is installed


@pytest.fixture(scope="module")
def loaded(embedded: ModelSpec) -> Iterator[VllmLoaded]:
    """The embedded model in vLLM, on whatever device the installed build is for."""
    pytest.importorskip("vllm", reason="the package vllm")
    from llmfit.backends._tokenizer import tokenizer_of
    from llmfit.backends.base import LoadInfo
    from llmfit.records import Kernel

    plan = Plan(backend="vllm", model=embedded, device="cuda", workload=WORK)
    info = LoadInfo(kernel=Kernel(linear="vLLM", attention="vLLM"), dtype="bfloat16")
    with VllmLoaded(
        VllmModel(engine_options(plan)),
        tokenizer=tokenizer_of(plan),
        info=info,
        vocab_size=embedded.vocab_size,
    ) as model:
        yield model


def continued(decoder: Decoder, prompts: Any, new: int, sampling: Sampling) -> list[list[int]]:
    decoder.prefill(prompts, sampling)
    columns = [decoder.tokens()]
    for _ in range(new - 1):
        decoder.step()
        columns.append(decoder.tokens())
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.slow
def test_tokens_and_scores_are_those_of_transformers(
    loaded: VllmLoaded, embedded: ModelSpec
) -> None:
    """Greedy tokens equal generate's in bf16; log-probabilities are within bf16's rounding.

    A whole context is scored too, its last token predicted; a prompt may fill the cache.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.bfloat16)
    decoder = loaded.decoder(batch=2, capacity=24)
    for _ in range(2):
        ours = continued(decoder, PROMPTS, 16, Sampling())
        for prompt, tokens in zip(PROMPTS, ours, strict=True):
            ids = torch.tensor([prompt])
            theirs = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
            assert tokens == theirs[0, len(prompt) :].tolist()
    decoder.prefill([[5] * 24, [6] * 3])
    with pytest.raises(UsageError, match="cache is full"):
        decoder.step()
    decoder.close()

    text = (Path(embedded.path).parent / "text.txt").read_text("utf-8")[:12_000]
    ids = (0, *loaded.tokenizer.encode(text, special=False))[: loaded.context_length + 1]
    assert len(ids) == embedded.max_position_embeddings + 1
    windows = [Window(ids, 1), Window(ids[:40], 30), Window((0, 31), 1), Window((0, *ours[1]), 2)]
    exact = model.float()
    for window, score in zip(windows, loaded.score(windows, batch_tokens=64), strict=True):
        with torch.inference_mode():
            rows = exact(torch.tensor([window.ids[:-1]])).logits[0].log_softmax(-1)
        places = range(window.score_from, len(window.ids))
        wanted = torch.tensor([float(rows[place - 1, window.ids[place]]) for place in places])
        differences = torch.tensor(score.logprobs) - wanted
        assert differences.abs().max() < 0.25 and abs(float(differences.mean())) < 0.05
    best = int(rows[-1].argmax())
    window = Window((0, *ours[1][:-1], best), len(ours[1]))
    (score,) = loaded.score([window], batch_tokens=4096)
    assert score.greedy is bool(score.logprobs[0] > -0.7)


@pytest.mark.slow
def test_the_same_seed_draws_the_same_in_vllm(loaded: VllmLoaded) -> None:
    """And another one other tokens."""
    drawn = []
    for seed in (1, 1, 2):
        decoder = loaded.decoder(batch=1, capacity=24)
        sampling = Sampling(temperature=1.5, top_k=50, top_p=0.9, seed=seed)
        drawn += continued(decoder, PROMPTS[:1], 12, sampling)
        decoder.close()
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_what_the_engine_was_not_made_for_is_refused(loaded: VllmLoaded) -> None:
    """More sequences, another chunk, or a longer context; each with what to do."""
    with pytest.raises(UsageError, match="batch of 9"):
        loaded.decoder(batch=9, capacity=8)
    with pytest.raises(UsageError, match="chunk of 7"):
        loaded.decoder(batch=1, capacity=8, prefill_chunk=7)
    with pytest.raises(UsageError, match="1025 tokens a sequence"):
        loaded.decoder(batch=1, capacity=1025)
    with pytest.raises(EvaluationError):
        list(loaded.score([Window((1,) * 1026, 1)], batch_tokens=64))


def test_the_class_is_the_registrys() -> None:
    """By its id."""
    assert isinstance(get_backend("vllm"), Vllm)
