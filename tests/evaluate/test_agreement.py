"""Choices and scores against lm-eval's own ``hf`` model, and of one engine against the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.hellaswag.utils import preprocess
from transformers import AutoTokenizer

from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window, WindowScore
from llmfit.errors import EvaluationError
from llmfit.evaluate.adapter import ModelAdapter
from llmfit.evaluate.tasks import read_documents, read_hellaswag
from llmfit.models import data_path
from llmfit.records import ModelSpec, Plan

ITEMS = 200


@dataclass(frozen=True)
class Case:
    """A trained model, questions of HellaSwag's form, and documents."""

    spec: ModelSpec
    requests: list[Instance]
    documents: list[str]


def questions(path: Path) -> list[Instance]:
    """A request an ending, four a question, with lm-eval's own clean-up of HellaSwag."""
    made = []
    for doc in read_hellaswag(path)[:ITEMS]:
        query = preprocess(f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}")
        for index, ending in enumerate(doc["endings"]):
            made.append(Instance("loglikelihood", {}, (query, f" {preprocess(ending)}"), index))
    return made


@pytest.fixture(
    scope="module", params=["stories260k", pytest.param("embedded", marks=pytest.mark.slow)]
)
def case(request: pytest.FixtureRequest) -> Case:
    """stories260k on real HellaSwag, some of it too long for it; the embedded model on its own."""
    spec = request.getfixturevalue(request.param)
    if request.param == "embedded":
        hellaswag, text = data_path("hellaswag.jsonl"), data_path("text.txt")
    else:
        shared = request.getfixturevalue("shared_data")
        hellaswag = shared / "hellaswag_val_sample1000.jsonl"
        text = shared / "tinystories_sample.txt"
    return Case(spec, questions(hellaswag), read_documents(text)[:30])


def load(spec: ModelSpec, backend: str, cache: Path | None = None) -> LoadedModel:
    """A row's loaded model on the CPU."""
    cache_dir = None if cache is None else str(cache)
    plan = Plan(backend=backend, model=spec, device="cpu", cache_dir=cache_dir, threads=1)
    return get_backend(backend).load(plan)


def adapter(model: LoadedModel, batch_tokens: int = 4096, window: int = 2048) -> ModelAdapter:
    """Our lm-eval model over a loaded row."""
    return ModelAdapter(model, window=window, batch_tokens=batch_tokens)


def hf(model: Any, spec: ModelSpec, **options: Any) -> HFLM:
    """lm-eval's own model over the same weights."""
    tokenizer = AutoTokenizer.from_pretrained(spec.path)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, **options)


def choices(requests: Sequence[Instance], scores: Sequence[tuple[float, bool]]) -> list[Any]:
    """What lm-eval's ``acc`` and ``acc_norm`` would choose for each question of four endings."""
    chosen = []
    for start in range(0, len(requests), 4):
        raw = [score for score, _ in scores[start : start + 4]]
        size = [len(request.args[1]) - 1 for request in requests[start : start + 4]]
        norm = [score / length for score, length in zip(raw, size, strict=True)]
        chosen.append((raw.index(max(raw)), norm.index(max(norm))))
    return chosen


def same(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Share of questions with equal choices."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.fixture(scope="module")
def full(case: Case) -> Iterator[Any]:
    """The case's row with float32 weights."""
    with load(case.spec, "sdpa") as model:
        model.model = model.model.float()  # type: ignore[attr-defined]
        yield model


@pytest.fixture(scope="module")
def ours_in_float32(case: Case, full: Any) -> list[tuple[float, bool]]:
    """Our scores in float32."""
    return adapter(full).loglikelihood(case.requests, disable_tqdm=True)


@pytest.fixture(scope="module")
def half(case: Case) -> Iterator[Any]:
    """The row in bf16, with eager attention: fused sums in bf16 round otherwise in every shape."""
    with load(case.spec, "bf16") as model:
        yield model


@pytest.fixture(scope="module")
def ours_in_bf16(case: Case, half: Any) -> list[tuple[float, bool]]:
    """Our scores in bfloat16."""
    return adapter(half).loglikelihood(case.requests, disable_tqdm=True)


@pytest.mark.slow
def test_every_choice_equals_hfs_in_float32(
    case: Case, full: Any, ours_in_float32: list[tuple[float, bool]]
) -> None:
    """All choices are those of lm-eval's hf model, log-likelihoods within 1e-3, greedy alike."""
    theirs = hf(full.model, case.spec).loglikelihood(case.requests, disable_tqdm=True)
    assert choices(case.requests, ours_in_float32) == choices(case.requests, theirs)
    for (score, greedy), (expected, expected_greedy) in zip(ours_in_float32, theirs, strict=True):
        assert score == pytest.approx(expected, rel=1e-3)
        assert greedy == expected_greedy


def test_long_contexts_are_cut_as_hf_cuts_them(
    case: Case, full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a question exceeds the model's context, the same tokens are left out."""
    encode = full.tokenizer.encode
    some = case.requests[:80]
    limit = max(len(encode(request.args[1])) for request in some) + 8
    assert any(len(encode("".join(request.args))) > limit + 1 for request in some)
    monkeypatch.setattr(full, "context_length", limit)
    theirs = hf(full.model, case.spec, max_length=limit).loglikelihood(some, disable_tqdm=True)
    ours = adapter(full).loglikelihood(some, disable_tqdm=True)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], rel=1e-4)


@pytest.mark.slow
def test_choices_equal_hfs_in_bfloat16(
    case: Case, half: Any, ours_in_bf16: list[tuple[float, bool]]
) -> None:
    """At least 99.5 % of choices agree, where hf keeps its sums in float32 as ours are."""
    theirs = hf(half.model, case.spec, softmax_dtype="float32").loglikelihood(
        case.requests, disable_tqdm=True
    )
    assert same(choices(case.requests, ours_in_bf16), choices(case.requests, theirs)) >= 0.995


def test_scores_do_not_depend_on_the_batch(
    case: Case, full: Any, ours_in_float32: list[tuple[float, bool]]
) -> None:
    """Batches of 64 tokens, in which hardly anything is shared, give the same scores."""
    some = case.requests[:160]
    small = adapter(full, batch_tokens=64).loglikelihood(some, disable_tqdm=True)
    expected = ours_in_float32[:160]
    assert [score for score, _ in small] == pytest.approx([s for s, _ in expected], rel=1e-5)
    assert choices(some, small) == choices(some, expected)


def test_rolling_scores_equal_hfs(case: Case, full: Any) -> None:
    """Texts of several windows are parted as hf parts them at max_length = window."""
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in case.documents[:6]]
    theirs = hf(full.model, case.spec, max_length=40, add_bos_token=False)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    ours = adapter(full, window=40).loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["."], "max_gen_toks": 40},
        {"until": ["and", "\n"], "max_gen_toks": 24, "do_sample": False},
        {"until": [], "max_gen_toks": 12},
    ],
)
def test_generated_texts_equal_hfs(case: Case, full: Any, settings: dict[str, Any]) -> None:
    """Greedy text, stop strings and the limit of new tokens are hf's, for several requests."""
    prompts = [
        document[:size] for document, size in zip(case.documents, (60, 200, 90), strict=False)
    ]
    requests = [Instance("generate_until", {}, (prompt, settings), 0) for prompt in prompts]
    tokenizer = AutoTokenizer.from_pretrained(case.spec.path)
    theirs = HFLM(pretrained=full.model, tokenizer=tokenizer, batch_size=1)
    assert adapter(full).generate_until(requests) == theirs.generate_until(
        requests, disable_tqdm=True
    )


@pytest.mark.slow
def test_gguf_f16_agrees_with_pytorch(
    case: Case,
    half: Any,
    ours_in_bf16: list[tuple[float, bool]],
    ours_in_float32: list[tuple[float, bool]],
    artifact_cache: Path,
) -> None:
    """llama.cpp makes ≥ 99 % of PyTorch's choices; its perplexity is within 0.5 % of bf16's.

    bf16 arithmetic alone changes 1.2 % of the embedded model's choices, and of the other one's as
    many on a CPU without bf16 products: so the 99 % are of float32's choices over the same weights,
    and the bf16 row may part from llama.cpp as often as from float32.
    """
    pytest.importorskip("llama_cpp")
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in case.documents]
    expected = adapter(half)
    loss = -sum(expected.loglikelihood_rolling(texts)) / expected.rolling_tokens
    with load(case.spec, "gguf:f16", artifact_cache) as model:
        cpp = adapter(model)
        scores = cpp.loglikelihood(case.requests, disable_tqdm=True)
        its_loss = -sum(cpp.loglikelihood_rolling(texts)) / cpp.rolling_tokens
    theirs, exact, rounded = (
        choices(case.requests, each) for each in (scores, ours_in_float32, ours_in_bf16)
    )
    assert same(theirs, exact) >= 0.99
    assert same(theirs, rounded) >= min(0.99, same(exact, rounded) - 0.005)
    assert math.exp(its_loss) == pytest.approx(math.exp(loss), rel=0.005)


def test_known_windows_are_not_run_again(full: Any, case: Case) -> None:
    """Scores given as known are used as they are: with all windows known, nothing is run."""
    text = case.documents[0][:300]
    ids = AutoTokenizer.from_pretrained(case.spec.path).encode(text, add_special_tokens=False)
    whole = Window((full.tokenizer.bos_id, *ids), 1)
    known = {whole: WindowScore((-1.0,) * len(ids), greedy=False)}
    model = ModelAdapter(full, window=512, batch_tokens=512, known=known)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    assert model.loglikelihood_rolling(requests) == [-len(ids)]


def test_a_long_answer_is_refused(full: Any) -> None:
    """More new tokens than the model's context is an error that names both, as in hf."""
    with pytest.raises(EvaluationError, match="5000 new tokens"):
        adapter(full).generate_until(
            [Instance("generate_until", {}, ("a", {"until": [], "max_gen_toks": 5000}), 0)]
        )
    with pytest.raises(EvaluationError, match="num_beams"):
        adapter(full).generate_until(
            [Instance("generate_until", {}, ("a", {"until": [], "num_beams": 4}), 0)]
        )
