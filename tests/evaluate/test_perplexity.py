"""Token perplexity by both protocols, against plain loops over transformers and llama.cpp."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmfit.backends._tokenizer import load_tokenizer
from llmfit.backends.base import LoadedModel
from llmfit.backends.registry import get_backend
from llmfit.decode.base import LogitsVisitor, Window, WindowScore
from llmfit.errors import EvaluationError, UsageError
from llmfit.evaluate.perplexity import score_text
from llmfit.evaluate.tasks import read_documents
from llmfit.models import data_path, read_spec
from llmfit.records import EvaluationSettings, ModelSpec, Plan
from llmfit.testing import ByteTokenizer, FakeModel


def load(spec: ModelSpec, backend: str = "sdpa", **more: Any) -> LoadedModel:
    """A row's loaded model on the CPU."""
    plan = Plan(backend=backend, model=spec, device="cpu", threads=1, **more)
    return get_backend(backend).load(plan)


@pytest.fixture(params=["stories260k", pytest.param("embedded", marks=pytest.mark.slow)])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """A real trained model."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def documents(spec: ModelSpec, request: pytest.FixtureRequest) -> list[str]:
    """Text of the kind that the model was trained on."""
    if spec.name == "stories260k":
        shared = request.getfixturevalue("shared_data")
        return read_documents(shared / "tinystories_sample.txt")
    return read_documents(data_path("text.txt"))[:30]


@pytest.fixture
def without_bos(embedded: ModelSpec, tmp_path: Path) -> ModelSpec:
    """The embedded model with a tokenizer that adds no BOS."""
    folder = tmp_path / "without_bos"
    shutil.copytree(embedded.path, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"] = None
    file.write_text(json.dumps(content))
    return read_spec(folder, name="without_bos", source="local")


def losses(model: Any, ids: Sequence[int]) -> list[float]:
    """Negative log-likelihood of each token but the first, by one plain forward pass."""
    piece = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(piece[:, :-1]).logits[0]
    return torch.nn.functional.cross_entropy(
        logits.double(), piece[0, 1:], reduction="none"
    ).tolist()


def plain_windows(
    spec: ModelSpec, documents: Sequence[str], window: int, *, bos: bool = True
) -> list[float]:
    """Losses of all tokens in text order: windows that each begin with BOS, or, without
    ``bos``, with the token before them."""
    model = AutoModelForCausalLM.from_pretrained(
        spec.path, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    tokenizer = AutoTokenizer.from_pretrained(spec.path)
    found: list[float] = []
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False).input_ids
        for start in range(0, len(ids), window):
            before = tokenizer.bos_token_id if bos or start == 0 else ids[start - 1]
            found += losses(model, [before, *ids[start : start + window]])
    return found


@pytest.mark.parametrize("window", [None, 50])
def test_window_perplexity_equals_a_plain_loop(
    spec: ModelSpec, documents: list[str], window: int | None
) -> None:
    """Whole documents and documents of many windows: within 0.1 % of transformers, all tokens."""
    with load(spec) as model:
        scored = score_text(model, documents, EvaluationSettings(ppl_window=window)).perplexity
    size = window or min(2048, spec.max_position_embeddings)
    found = plain_windows(spec, documents, size)
    assert scored.n_tokens == len(found)
    assert scored.token == pytest.approx(math.exp(np.mean(found)), rel=1e-3)
    assert scored.protocol.startswith(f"window {size}:")
    assert "each starts with the model's BOS" in scored.protocol
    assert scored.low is not None and scored.high is not None
    assert scored.low < scored.token < scored.high
    assert scored.n_documents == len(documents)


@pytest.mark.slow
def test_a_tokenizer_without_bos_keeps_the_token_before(without_bos: ModelSpec) -> None:
    """Later windows begin with the token before them: within 0.1 % of transformers."""
    documents = read_documents(data_path("text.txt"))[:30]
    with load(without_bos) as model:
        scored = score_text(model, documents, EvaluationSettings(ppl_window=20)).perplexity
    found = plain_windows(without_bos, documents, 20, bos=False)
    assert scored.n_tokens == len(found)
    assert scored.token == pytest.approx(math.exp(np.mean(found)), rel=1e-3)
    assert "the tokenizer adds no BOS" in scored.protocol


def chunk_losses(model: Any, ids: Sequence[int], size: int, bos: int | None) -> list[float]:
    """Losses of llama-perplexity's convention: whole chunks, second half without its first."""
    found: list[float] = []
    for chunk in range(len(ids) // size):
        piece = list(ids[chunk * size : (chunk + 1) * size])
        if bos is not None:
            piece[0] = bos
        found += losses(model, piece)[size // 2 :]
    return found


@pytest.mark.parametrize("size", [64, 101])
def test_llama_cpp_perplexity_equals_a_plain_loop(
    spec: ModelSpec, documents: list[str], size: int
) -> None:
    """One text in chunks, half of each scored: within 0.1 % of transformers."""
    settings = EvaluationSettings(ppl_protocol="llama.cpp", ppl_window=size)
    with load(spec) as model:
        scored = score_text(model, documents, settings).perplexity
    tokenizer = AutoTokenizer.from_pretrained(spec.path)
    plain = AutoModelForCausalLM.from_pretrained(
        spec.path, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    ids = tokenizer("\n\n".join(documents)).input_ids
    assert ids[0] == tokenizer.bos_token_id
    found = chunk_losses(plain, ids, size, tokenizer.bos_token_id)
    # n_ctx − n_ctx/2 − 1 of each chunk, as llama-perplexity counts them.
    assert scored.n_tokens == len(found) == len(ids) // size * (size - size // 2 - 1)
    assert scored.token == pytest.approx(math.exp(np.mean(found)), rel=1e-3)
    assert f"{len(documents)} documents joined by blank lines" in scored.protocol


@pytest.mark.slow
def test_llama_cpp_chunks_without_bos_keep_their_first_token(without_bos: ModelSpec) -> None:
    """Where the tokenizer adds no BOS, no chunk's first token gives way to one."""
    documents = read_documents(data_path("text.txt"))[:30]
    settings = EvaluationSettings(ppl_protocol="llama.cpp", ppl_window=64)
    with load(without_bos) as model:
        scored = score_text(model, documents, settings).perplexity
    tokenizer = AutoTokenizer.from_pretrained(without_bos.path)
    plain = AutoModelForCausalLM.from_pretrained(
        without_bos.path, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    ids = tokenizer("\n\n".join(documents)).input_ids
    found = chunk_losses(plain, ids, 64, None)
    assert scored.n_tokens == len(found)
    assert scored.token == pytest.approx(math.exp(np.mean(found)), rel=1e-3)


def llama_cpp_losses(file: str, text: str, size: int) -> list[float]:
    """llama-perplexity's convention over llama.cpp's own tokenizer and logits."""
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(
        file.encode(), llama_cpp.llama_model_default_params()
    )
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    raw = text.encode()
    tokens = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), tokens, len(tokens), True, False)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = size
    params.n_threads = params.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, params)
    width = llama_cpp.llama_vocab_n_tokens(vocabulary)
    batch = llama_cpp.llama_batch_init(size, 0, 1)
    found: list[float] = []
    for start in range(0, count - size + 1, size):
        piece = [llama_cpp.llama_vocab_bos(vocabulary), *tokens[start + 1 : start + size]]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = size
        for place, token in enumerate(piece):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= size // 2
        assert llama_cpp.llama_decode(context, batch) == 0
        for place in range(size // 2, size - 1):
            logits = np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(context, place), shape=(width,)
            ).astype(np.float64)
            highest = logits.max()
            total = np.exp(logits - highest).sum()
            found.append(highest + math.log(total) - logits[piece[place + 1]])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def test_llama_cpp_perplexity_equals_llama_cpps_own_logits(
    spec: ModelSpec, documents: list[str], artifact_cache: Path
) -> None:
    """Over the GGUF file with llama.cpp's tokenizer: within 0.1 %, 0.5 % of PyTorch's in bf16."""
    pytest.importorskip("llama_cpp")
    settings = EvaluationSettings(ppl_protocol="llama.cpp", ppl_window=128)
    with load(spec, "gguf:f16", cache_dir=str(artifact_cache)) as model:
        scored = score_text(model, documents, settings).perplexity
        file = model.info.artifact
    assert file is not None
    found = llama_cpp_losses(file, "\n\n".join(documents), 128)
    assert scored.n_tokens == len(found)
    assert scored.token == pytest.approx(math.exp(np.mean(found)), rel=1e-3)
    with load(spec) as model:
        assert scored.token == pytest.approx(
            score_text(model, documents, settings).perplexity.token, rel=5e-3
        )


class Recording(FakeModel):
    """Keeps the windows that it is asked to score."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[Window] = []

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        self.windows += windows
        return super().score(windows, batch_tokens=batch_tokens, visit=visit)


@pytest.mark.parametrize("window", [1, 37, 128])
def test_every_token_is_scored_once(spec: ModelSpec, documents: list[str], window: int) -> None:
    """Over all windows the scored tokens are those of the documents, each as often as there."""
    model = Recording()
    model.tokenizer = load_tokenizer(spec.path)  # type: ignore[assignment]
    scored = score_text(model, documents, EvaluationSettings(ppl_window=window)).perplexity
    ids = [model.tokenizer.encode(document, special=False) for document in documents]
    tokens = (window.ids[window.score_from :] for window in model.windows)
    assert Counter(chain.from_iterable(tokens)) == Counter(chain.from_iterable(ids))
    assert scored.n_tokens == sum(scored.block_tokens) == sum(map(len, ids))
    assert all(len(fed.ids) - 1 <= window for fed in model.windows)


def test_short_documents_are_lm_evals_windows(embedded: ModelSpec) -> None:
    """A document within one window is scored as lm-eval's rolling windows have it."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    documents = read_documents(data_path("text.txt"))[:10]
    with load(embedded) as model:
        known = score_text(model, documents, EvaluationSettings()).known
        for document in documents:
            ids = model.tokenizer.encode(document, special=False)
            ((context, scored),) = map(
                make_disjoint_window,
                get_rolling_token_windows(ids, model.tokenizer.bos_id, 1024, 1),
            )
            assert len(known[Window((*context, *scored), 1)].logprobs) == len(ids)


def test_blocks_keep_to_their_documents() -> None:
    """Blocks have 128 tokens, run through windows, end with their document, and add up."""
    model = FakeModel()
    documents = ["a" * 300, "b" * 128, "c", ""]
    scored = score_text(model, documents, EvaluationSettings(ppl_window=50)).perplexity
    assert scored.block_tokens == (128, 128, 44, 128, 1)
    assert scored.block_nll == pytest.approx(
        [count * math.log(256) for count in scored.block_tokens]
    )
    # Closed form: all of 256 tokens equally likely, in every block.
    assert (scored.token, scored.low, scored.high) == pytest.approx((256, 256, 256))
    assert scored.n_tokens == 429


@pytest.mark.slow
def test_the_interval_is_that_of_the_blocks(embedded: ModelSpec) -> None:
    """Two kinds of documents, told apart by their loss: few blocks give a wide interval."""
    documents = read_documents(data_path("text.txt"))
    with load(embedded, "sdpa") as model:
        few, many = (
            score_text(model, documents[:count], EvaluationSettings()).perplexity
            for count in (10, 80)
        )
    widths = [math.log(scored.high / scored.low) for scored in (few, many)]  # type: ignore[operator]
    # The spread of a mean falls with the square root of its blocks.
    expected = math.sqrt(len(many.block_nll) / len(few.block_nll))
    assert widths[0] / widths[1] == pytest.approx(expected, rel=0.6)


class EosTokenizer(ByteTokenizer):
    """A token per byte; 7 is EOS, and there is no BOS."""

    bos_id: int | None = None  # type: ignore[assignment]
    eos_id = 7

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See ``Tokenizer.encode``."""
        return list(text.encode())


def test_eos_starts_a_text_where_there_is_no_bos() -> None:
    """As in lm-eval; the second window starts from the first one's last token."""
    model = FakeModel()
    model.tokenizer = EosTokenizer()
    scores = score_text(model, ["abcde"], EvaluationSettings(ppl_window=3))
    assert list(scores.known) == [Window((7, *b"abc"), 1), Window(tuple(b"cde"), 1)]
    assert "a document's first starts with EOS" in scores.perplexity.protocol


def test_the_models_limit_shortens_windows_with_a_note() -> None:
    """The default is cut in silence, since the protocol names it; what was asked for is not."""
    model = FakeModel()
    scores = score_text(model, ["a" * 300], EvaluationSettings())
    assert scores.perplexity.protocol.startswith("window 128:") and scores.notes == ()
    scores = score_text(model, ["a" * 300], EvaluationSettings(ppl_window=200))
    assert scores.notes == ("perplexity windows of 128 tokens, not 200: the model's limit",)


@pytest.mark.parametrize(
    ("protocol", "window"), [("window", 0), ("window", -3), ("llama.cpp", 0), ("llama.cpp", 3)]
)
def test_windows_that_score_nothing_are_refused(protocol: Any, window: int) -> None:
    """A window without room for a scored token is a usage error that names it."""
    settings = EvaluationSettings(ppl_protocol=protocol, ppl_window=window)
    with pytest.raises(UsageError, match=f"window of {window} tokens"):
        score_text(FakeModel(), ["a" * 300], settings)


def test_short_texts_are_refused_by_llama_cpps_protocol() -> None:
    """Fewer than two chunks: the error names the length and what would do."""
    short, enough = (
        EvaluationSettings(ppl_protocol="llama.cpp", ppl_window=size) for size in (101, 100)
    )
    with pytest.raises(EvaluationError, match=r"200 tokens.*two chunks of 101") as caught:
        score_text(FakeModel(), ["a" * 199], short)
    assert caught.value.hint is not None and "--ppl-window 100" in caught.value.hint
    assert score_text(FakeModel(), ["a" * 199], enough).perplexity.n_tokens == 2 * 49


@pytest.mark.parametrize("documents", [[], [""]])
def test_a_text_without_tokens_is_refused(documents: list[str]) -> None:
    """There is no perplexity of nothing."""
    with pytest.raises(EvaluationError, match="no token to score"):
        score_text(FakeModel(), documents, EvaluationSettings())


@pytest.mark.parametrize("value", [-math.inf, math.nan, -800.0])
def test_scores_without_a_perplexity_are_refused(value: float) -> None:
    """Infinite, undefined and overflowing losses are errors, never a number in a table."""

    class Broken(FakeModel):
        def score(
            self,
            windows: Sequence[Window],
            *,
            batch_tokens: int,
            visit: LogitsVisitor | None = None,
        ) -> Iterator[WindowScore]:
            """See ``LoadedModel.score``."""
            for window in windows:
                yield WindowScore((value,) * (len(window.ids) - window.score_from), greedy=False)

    with pytest.raises(EvaluationError, match=r"not finite|no perplexity"):
        score_text(Broken(), ["abc"], EvaluationSettings())


def test_perplexity_does_not_depend_on_the_batch(spec: ModelSpec, documents: list[str]) -> None:
    """Batches of one window and of many give the same within bf16 rounding of 0.1 %."""
    with load(spec, "sdpa") as model:
        one, many = (
            score_text(
                model, documents, EvaluationSettings(ppl_window=64, batch_tokens=size)
            ).perplexity
            for size in (1, 4096)
        )
    assert one.token == pytest.approx(many.token, rel=1e-3)
    assert one.block_tokens == many.block_tokens
