"""Generation with and without a KV cache: tokens, operations and bytes against other sources."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmfit.benchmark import Benchmark, Case, count_flops
from llmfit.models import data_path
from llmfit.records import to_json
from llmfit.stats import growth_exponent
from llmfit.studies.base import StudyContext
from llmfit.studies.kv_cache import study
from llmfit.studies.kv_cache.generators import (
    HUGGING_FACE,
    OWN,
    DecoderSizes,
    LibraryModel,
    OwnDecoder,
    generate,
    generation_flops,
)
from llmfit.studies.kv_cache.measuring import Sizes, agreement
from llmfit.studies.transformer import KvCache, Transformer, TransformerShape
from llmfit.study_records import StudyResult

TINY = Sizes(
    decoder=DecoderSizes(layers=2, width=32, heads=4, kv_heads=2, inner=48, vocabulary=60),
    batch=2,
    prompt_tokens=5,
    lengths=(4, 8),
    runs=(2, 2),
    library_lengths=(4, 8),
    library_runs=(2, 2),
    count_up_to=4,
    fit_from=4,
)
SHAPE = TINY.decoder.shape()


def context() -> StudyContext:
    """On the CPU, with the default seed."""
    return StudyContext(bench=Benchmark("cpu"))


def own_decoder() -> OwnDecoder:
    """Of the tiny sizes."""
    return OwnDecoder(context(), TINY.decoder, batch=2, prompt_tokens=5, count_up_to=4)


def library_model() -> LibraryModel:
    """The model inside the package with the tiny prompt."""
    return LibraryModel(context(), batch=2, prompt_tokens=5)


@pytest.fixture(scope="module")
def found() -> StudyResult:
    """The study with tiny sizes."""
    return study(context(), TINY)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_each_token_is_the_best_of_a_pass_over_all_before_it(kv_heads: int) -> None:
    """Of both ways to generate, checked by one pass over the finished text."""
    torch.manual_seed(3)
    shape = TransformerShape(
        layers=2, width=32, heads=4, kv_heads=kv_heads, inner=48, vocabulary=60
    )
    model = Transformer(shape).double()
    ids = torch.randint(0, 60, (3, 5))
    cache = KvCache(shape, 3, 5 + 9 - 1, like=model.embedding.weight)
    with torch.no_grad():
        for made in (generate(model, ids, 9, cache), generate(model, ids, 9)):
            assert made.shape == (3, 14) and made[:, :5].equal(ids)
            assert model(made)[:, 4:-1].argmax(dim=-1).equal(made[:, 5:])
    assert cache.length == 5 + 9 - 1


def test_the_library_generates_what_its_model_finds_best() -> None:
    """Greedy tokens of generate(), by a pass over the text without it."""
    from transformers import AutoModelForCausalLM

    model = library_model()
    plain = AutoModelForCausalLM.from_pretrained(data_path("embedded"), dtype=torch.float32)
    for cached in (True, False):
        made = model.generate(model.prompt(), 6, cached=cached)
        with torch.no_grad():
            logits = plain(made).logits[:, 4:-1]
        logits[..., plain.config.eos_token_id] = -torch.inf  # asked for the full length
        assert logits.argmax(dim=-1).equal(made[:, 5:])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("new_tokens", [1, 7])
def test_operations_are_those_that_torch_counts(cached: bool, new_tokens: int) -> None:
    """The closed form of a whole generation against torch's FlopCounterMode."""
    model = own_decoder()
    ids = model.prompt()
    counted = count_flops(lambda _: model.generate(ids, new_tokens, cached=cached), None)
    assert counted == generation_flops(SHAPE, 2, 5, new_tokens, cached=cached)


@pytest.mark.slow
def test_operations_grow_by_one_power_less_with_a_cache() -> None:
    """1 against 2 while linear layers rule, 2 against 3 where attention does."""
    wide = TransformerShape(
        layers=1, width=4096, heads=32, kv_heads=32, inner=16384, vocabulary=50_000
    )
    for lengths, with_cache in (((64, 128, 256), 1), ((2**20, 2**21), 2)):
        for cached, expected in ((True, with_cache), (False, with_cache + 1)):
            costs = [generation_flops(wide, 1, 1, n, cached=cached) for n in lengths[:3]]
            assert growth_exponent(lengths, costs)[0] == pytest.approx(expected, abs=0.15)


def test_the_library_caches_two_tensors_a_layer_of_all_but_the_last_token() -> None:
    """6 layers, 4 heads of 32 for keys and values, 4 bytes a value; 2 sequences of 5 + 7 tokens."""
    model = library_model()
    measured = model.cache_bytes(model.prompt(), 8)
    assert measured == model.predicted_bytes(8) == 2 * 6 * 2 * 4 * 32 * (5 + 7) * 4


def test_the_own_cache_holds_as_many_bytes() -> None:
    """2 layers, 2 heads of 8."""
    model = own_decoder()
    measured = model.cache_bytes(model.prompt(), 8)
    assert measured == model.predicted_bytes(8) == 2 * 2 * 2 * 2 * 8 * (5 + 7) * 4


def _logits(*, gap: float) -> Tensor:
    scores = torch.zeros(1, 10)
    scores[0, 3], scores[0, 7] = 1.0, 1.0 - gap
    return scores


def test_another_token_is_forgiven_only_where_two_are_equally_good() -> None:
    """Logits a rounding error apart are a tie; a visible gap, or another prompt, is a fault."""
    plain = torch.tensor([[1, 2, 3, 4]])
    other = torch.tensor([[1, 2, 7, 9]])
    tie = agreement(lambda ids: _logits(gap=1e-7), 2, other, plain)
    assert tie.holds and "from new token 1 on" in tie.detail
    assert not agreement(lambda ids: _logits(gap=0.01), 2, other, plain).holds
    assert not agreement(lambda ids: _logits(gap=1e-7), 3, other, plain).holds
    assert not agreement(lambda ids: _logits(gap=0), 2, plain[:, :3], plain).holds
    assert agreement(lambda ids: _logits(gap=1.0), 2, plain, plain).detail == "all 2 equal"


def test_all_that_must_hold_holds(found: StudyResult) -> None:
    """Tokens and bytes of both models, and the operations counted."""
    assert [check.holds for check in found.checks] == [True] * 5


def test_each_length_has_its_figures(found: StudyResult) -> None:
    """Both models, and the operations in closed form where they were not counted."""
    own, library, grown = found.tables
    assert OWN in own.title and HUGGING_FACE in library.title
    assert [row.name for row in own.rows] == [row.name for row in library.rows] == ["4", "8"]
    for row in (*own.rows, *library.rows):
        assert row.status == "ok"
        assert row.cells["faster"].value is not None and row.cells["expected"].value == "10–50×"
    for result, tokens in zip(found.benchmarks, (4, 4, 8, 8) * 2, strict=True):
        # tokens a second are those of both sequences
        rates = [2 * tokens / seconds for seconds in result.latency_s.samples]
        assert result.throughput_per_s.samples == pytest.approx(rates)
    assert own.rows[1].cells["plain_flops"].value == generation_flops(SHAPE, 2, 5, 8, cached=False)
    assert [result.flops is None for result in found.benchmarks[:4]] == [False, False, True, True]
    assert len(grown.rows) == 4 and all("time" in row.cells for row in grown.rows)


def test_the_result_is_json(found: StudyResult) -> None:
    """All of it."""
    assert '"kv-cache"' in to_json(found)


def test_memory_is_not_known_where_it_is_not_counted() -> None:
    """A case of very many operations is timed without the profiler."""
    calls: list[None] = []
    case = Case(name="x", call=lambda _: calls.append(None), count_flops=False, count_memory=False)
    (result,) = Benchmark("cpu").run_in_turns((case,), n_warmup=1, n_runs=2)
    assert result.working_bytes is None and result.peak_bytes is None and len(calls) == 3
