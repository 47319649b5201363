"""Generation with and without a KV cache: the same tokens, other operations, and the bytes for it.

    prompt ─► own decoder, or a Hugging Face model ─┬► with cache:    one token a step
                                                    └► without cache: all tokens a step

Own decoder: ``transformer.py`` with random weights, which shows the operations. Hugging Face
model: the one inside the package, by transformers' ``generate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmfit.benchmark import Case, speedup
from llmfit.device.allocations import tensor_bytes
from llmfit.models import EMBEDDED_NAME, data_path, resolve
from llmfit.planning.memory.kv_cache import kv_cache_bytes
from llmfit.records import Sampled, Workload
from llmfit.stats import growth_exponent
from llmfit.studies.base import StudyContext, cell, ratio_cell, sampled_cell, time_cell
from llmfit.studies.reference import TECHNIQUES, TECHNIQUES_OF
from llmfit.study_records import (
    BenchmarkResult,
    Cell,
    Ratio,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_number, format_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from llmfit.studies.transformer import KvCache, Transformer, TransformerShape

TITLE = "KV cache"
QUESTION = "How much faster does a KV cache make generation, and how many bytes does it take?"

OWN, HUGGING_FACE = "own decoder", EMBEDDED_NAME
_TIE = 1e-5
"""Two logits this near, as a share of their whole range, are equal but for rounding in float32."""
_WARM_TOKENS = 8
_ITEM_BYTES = 4
"""Of a value: both models run in float32, where the same tokens can be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """The own decoder's shape."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    def shape(self) -> TransformerShape:
        """As ``transformer.py`` takes it."""
        from llmfit.studies.transformer import TransformerShape

        return TransformerShape(**asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is run: ``runs`` timed generations of each length, in the same order."""

    decoder: DecoderSizes
    batch: int
    prompt_tokens: int
    lengths: tuple[int, ...]
    """New tokens of the own decoder."""
    runs: tuple[int, ...]
    library_lengths: tuple[int, ...]
    """New tokens of the Hugging Face model."""
    library_runs: tuple[int, ...]
    count_up_to: int
    """Most new tokens whose operations are counted, which is slow."""
    fit_from: int
    """New tokens from which on growth is fitted: below, fixed costs of a step hide it."""


DEFAULT = Sizes(
    decoder=DecoderSizes(layers=4, width=128, heads=4, kv_heads=2, inner=384, vocabulary=512),
    batch=1,
    prompt_tokens=16,
    lengths=(32, 64, 128, 256, 512),
    runs=(5, 5, 5, 3, 2),
    library_lengths=(32, 64, 128, 256),
    library_runs=(3, 3, 3, 2),
    count_up_to=64,
    fit_from=64,
)
REFERENCE = Sizes(
    decoder=DecoderSizes(
        layers=12, width=768, heads=12, kv_heads=12, inner=2048, vocabulary=32_000
    ),
    batch=1,
    prompt_tokens=16,
    lengths=(128, 256, 512, 1024, 2048),
    runs=(5, 5, 5, 3, 3),
    library_lengths=(64, 128, 256, 512, 960),
    library_runs=(5, 5, 5, 3, 3),
    count_up_to=128,
    fit_from=128,
)


class Generator(Protocol):
    """A model that continues a prompt greedily, with a cache and without."""

    name: str
    count_up_to: int
    """Most new tokens whose operations are counted."""

    def prompt(self) -> Tensor:
        """``int64[B, P]``."""
        ...

    def generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """``int64[B, P + new_tokens]``, the prompt first."""
        ...

    def cache_bytes(self, ids: Tensor, new_tokens: int) -> int:
        """Bytes of the cache's tensors once so many tokens are there, measured."""
        ...

    def predicted_bytes(self, new_tokens: int) -> int:
        """The same by the shape alone."""
        ...

    def flops(self, new_tokens: int, *, cached: bool) -> int | None:
        """Operations of a generation in closed form; None where there is none."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """Logits ``[B, V]`` after all of ``ids``, without a cache."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether generation with the cache gave the tokens of generation without it."""

    holds: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One model at one number of new tokens."""

    model: str
    new_tokens: int
    cached: BenchmarkResult
    plain: BenchmarkResult
    predicted_bytes: int
    cache_bytes: int
    cached_flops: int | None
    plain_flops: int | None
    """Operations in closed form; ``cached`` and ``plain`` have those that were counted."""
    agreement: Agreement

    @property
    def speedup(self) -> Ratio:
        """The time without ÷ the time with the cache."""
        return speedup(self.plain, self.cached)


def run(context: StudyContext) -> StudyResult:
    """Both models at all lengths."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes."""
    own = _measure(context, OwnDecoder(context, sizes), sizes.lengths, sizes.runs)
    library = _measure(
        context, LibraryModel(context, sizes), sizes.library_lengths, sizes.library_runs
    )
    both = (own, library)
    return StudyResult(
        study="kv-cache",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings=_settings(sizes),
        tables=(*(_table(found) for found in both), _growth_table(both, sizes.fit_from)),
        plots=_plots(both),
        checks=_checks(both),
        findings=_findings(both, sizes.fit_from),
        reference=f"speed-up of generation, {_expected_text()}: {TECHNIQUES_OF}",
        notes=(
            f"FLOPs are in closed form, and counted up to {sizes.count_up_to:,} new tokens.",
            "The last token of a generation is not run again, so it is not in the cache.",
            "Both models run in float32: in 16 bits rounding alone can change a token.",
        ),
        benchmarks=tuple(result for found in both for each in found for result in _results(each)),
    )


def _results(each: Found) -> tuple[BenchmarkResult, BenchmarkResult]:
    return each.cached, each.plain


def _settings(sizes: Sizes) -> dict[str, float | int | str | bool | None]:
    flat = {**asdict(sizes.decoder), **{k: v for k, v in asdict(sizes).items() if k != "decoder"}}
    return {
        key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in flat.items()
    }


# ---------------------------------------------------------------- the two models


def generate(
    model: Transformer, ids: Tensor, new_tokens: int, cache: KvCache | None = None
) -> Tensor:
    """``ids: int64[B, P]`` continued greedily: ``int64[B, P + new_tokens]``.

    With an empty ``cache`` for P + new_tokens − 1 tokens a step runs the newest token alone.
    """
    import torch

    step = ids
    for _ in range(new_tokens):
        newest = model(step, cache)[:, -1].argmax(dim=-1, keepdim=True)  # [B, 1]
        ids = torch.cat((ids, newest), dim=1)
        step = ids if cache is None else newest
    return ids


class OwnDecoder:
    """The project's own Transformer, with random weights from the seed."""

    name = OWN

    def __init__(self, context: StudyContext, sizes: Sizes) -> None:
        import torch

        from llmfit.studies.transformer import Transformer

        self._shape = sizes.decoder.shape()
        self.count_up_to = sizes.count_up_to
        self._batch, self._prompt_tokens = sizes.batch, sizes.prompt_tokens
        self._device = context.device
        torch.manual_seed(context.seed)
        self._model = Transformer(self._shape).eval().to(context.device)
        self._ids = _random_ids(self._shape.vocabulary, sizes, context)

    def prompt(self) -> Tensor:
        """Random tokens."""
        return self._ids

    def generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """By ``generate``."""
        import torch

        with torch.no_grad():
            cache = self._cache(new_tokens) if cached else None
            return generate(self._model, ids, new_tokens, cache)

    def cache_bytes(self, ids: Tensor, new_tokens: int) -> int:
        """Of the store that all tokens were written to."""
        import torch

        with torch.no_grad():
            cache = self._cache(new_tokens)
            generate(self._model, ids, new_tokens, cache)
        return tensor_bytes([cache.store])

    def predicted_bytes(self, new_tokens: int) -> int:
        """By the shape's closed form."""
        tokens = self._prompt_tokens + new_tokens - 1
        return self._shape.cache_bytes(self._batch, tokens, _ITEM_BYTES)

    def flops(self, new_tokens: int, *, cached: bool) -> int | None:
        """By ``generation_flops``."""
        return generation_flops(
            self._shape, self._batch, self._prompt_tokens, new_tokens, cached=cached
        )

    def logits(self, ids: Tensor) -> Tensor:
        """Of a pass over all tokens."""
        import torch

        with torch.no_grad():
            out: Tensor = self._model(ids)[:, -1]
        return out

    def _cache(self, new_tokens: int) -> KvCache:
        from llmfit.studies.transformer import KvCache

        tokens = self._prompt_tokens + new_tokens - 1
        return KvCache(self._shape, self._batch, tokens, like=self._model.embedding.weight)


class LibraryModel:
    """The model inside the package, run by transformers."""

    name = HUGGING_FACE
    count_up_to = 0  # generate() leaves out logits that are not used: no closed form here

    def __init__(self, context: StudyContext, sizes: Sizes) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._spec = resolve(None)
        self._batch, self._prompt_tokens = sizes.batch, sizes.prompt_tokens
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                data_path("embedded"), dtype=torch.float32, local_files_only=True
            )
        self._model: Any = model.eval().to(context.device)
        self._ids = _random_ids(self._spec.vocab_size, sizes, context)

    def prompt(self) -> Tensor:
        """Random tokens."""
        return self._ids

    def generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """By transformers' ``generate``, greedily, to the full length."""
        sequences: Tensor = self._generate(ids, new_tokens, cached=cached).sequences
        return sequences

    def cache_bytes(self, ids: Tensor, new_tokens: int) -> int:
        """Of the keys and values of all layers of transformers' DynamicCache."""
        cache = self._generate(ids, new_tokens, cached=True).past_key_values
        return tensor_bytes(part for layer in cache.layers for part in (layer.keys, layer.values))

    def predicted_bytes(self, new_tokens: int) -> int:
        """By the plan's formula, which counts values of 16 bits."""
        workload = Workload(
            prompt_tokens=self._prompt_tokens, new_tokens=new_tokens - 1, batch=self._batch
        )
        return kv_cache_bytes(self._spec, workload) * _ITEM_BYTES // 2

    def flops(self, new_tokens: int, *, cached: bool) -> int | None:
        """Not known."""
        return None

    def logits(self, ids: Tensor) -> Tensor:
        """Of a pass over all tokens."""
        import torch

        with torch.no_grad():
            out: Tensor = self._model(ids, use_cache=False).logits[:, -1]
        return out

    def _generate(self, ids: Tensor, new_tokens: int, *, cached: bool) -> Any:
        import torch

        return self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            use_cache=cached,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            return_dict_in_generate=True,
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws a bar for a model of a few megabytes too."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _random_ids(vocabulary: int, sizes: Sizes, context: StudyContext) -> Tensor:
    import torch

    source = torch.Generator().manual_seed(context.seed)
    ids = torch.randint(0, vocabulary, (sizes.batch, sizes.prompt_tokens), generator=source)
    return ids.to(context.device)


# ---------------------------------------------------------------- measuring


def _measure(
    context: StudyContext, model: Generator, lengths: Sequence[int], runs: Sequence[int]
) -> tuple[Found, ...]:
    found = []
    for done, (length, n_runs) in enumerate(zip(lengths, runs, strict=True)):
        context.progress(f"{model.name}, {length:,} new tokens", done, len(lengths))
        found.append(_at_length(context, model, length, n_runs))
    context.progress(model.name, len(lengths), len(lengths))
    return tuple(found)


def _at_length(context: StudyContext, model: Generator, length: int, n_runs: int) -> Found:
    ids = model.prompt()
    made: dict[bool, list[Tensor]] = {True: [], False: []}  # all kept: a call frees nothing old

    def case(cached: bool) -> Case:
        def call(prompt: Tensor) -> None:
            made[cached].append(model.generate(prompt, length, cached=cached))

        return Case(
            name=f"{model.name}, {length} new tokens, {'with' if cached else 'without'} cache",
            call=call,
            prepare=lambda: ids,
            batch_size=ids.shape[0] * length,
            count_flops=length <= model.count_up_to,
            count_memory=False,
        )

    for cached_too in (True, False):  # a warm-up of the whole length would cost as a run does
        model.generate(ids, _WARM_TOKENS, cached=cached_too)
    cached, plain = context.bench.run_in_turns((case(True), case(False)), n_warmup=0, n_runs=n_runs)
    return Found(
        model=model.name,
        new_tokens=length,
        cached=cached,
        plain=plain,
        predicted_bytes=model.predicted_bytes(length),
        cache_bytes=model.cache_bytes(ids, length),
        cached_flops=model.flops(length, cached=True),
        plain_flops=model.flops(length, cached=False),
        agreement=agreement(model.logits, ids.shape[1], made[True][-1], made[False][-1]),
    )


def agreement(
    logits: Callable[[Tensor], Tensor], prompt_tokens: int, cached: Tensor, plain: Tensor
) -> Agreement:
    """Compare ``int64[B, T]`` made with and without a cache.

    At the first difference of a sequence the two tokens' logits decide: where they are equal but
    for rounding, either token is greedy, and what follows is of another text.
    """
    if cached.shape != plain.shape:
        return Agreement(holds=False, detail=f"{tuple(cached.shape)} and {tuple(plain.shape)}")
    count = plain.shape[0] * (plain.shape[1] - prompt_tokens)
    for row, (a, b) in enumerate(zip(cached, plain, strict=True)):
        if a.equal(b):
            continue
        at = int((a != b).nonzero()[0])
        scores = logits(b[None, :at])[0]
        gap = (scores[b[at]] - scores[a[at]]).abs() / (scores.max() - scores.min())
        return Agreement(
            holds=at >= prompt_tokens and gap.item() <= _TIE,
            detail=f"sequence {row} differs from new token {at - prompt_tokens + 1:,} on, where "
            f"the two logits are {gap.item():.1e} of their range apart",
        )
    return Agreement(holds=True, detail=f"all {count:,} equal")


# ---------------------------------------------------------------- operations in closed form


def generation_flops(
    shape: TransformerShape, batch: int, prompt_tokens: int, new_tokens: int, *, cached: bool
) -> int:
    """Operations of a generation, a multiply-add as two.

    Without a cache each new token is a pass over all tokens before it. With one, the prompt is
    a pass, and each later token one of a single query that meets all keys.
    """
    totals = range(prompt_tokens, prompt_tokens + new_tokens)
    if not cached:
        return sum(shape.forward_flops(batch, tokens) for tokens in totals)
    one = shape.forward_flops(batch, 1)
    a_key = 4 * batch * shape.layers * shape.width  # scores and mix, a multiply-add each
    steps = sum(one + a_key * (keys - 1) for keys in totals[1:])
    return shape.forward_flops(batch, prompt_tokens) + steps


# ---------------------------------------------------------------- tables


def _table(found: Sequence[Found]) -> StudyTable:
    expected = _expected_text()
    return StudyTable(
        title=f"{found[0].model}: time of a greedy generation",
        head="new tokens",
        columns=(
            StudyColumn(key="cached", head="time", under="with cache", unit="s"),
            StudyColumn(key="plain", head="time", under="without", unit="s"),
            StudyColumn(key="cached_rate", head="tokens/s", under="with cache", unit="per_s"),
            StudyColumn(key="plain_rate", head="tokens/s", under="without", unit="per_s"),
            StudyColumn(key="faster", head="speed-up", unit="ratio"),
            StudyColumn(key="expected", head="speed-up", under="published", unit="text"),
            StudyColumn(key="bytes", head="cache", under="measured", unit="bytes"),
            StudyColumn(
                key="predicted", head="cache", under="predicted", unit="bytes", needed=False
            ),
            StudyColumn(
                key="cached_flops", head="FLOPs", under="with cache", unit="count", needed=False
            ),
            StudyColumn(
                key="plain_flops", head="FLOPs", under="without", unit="count", needed=False
            ),
        ),
        rows=tuple(
            StudyRow(
                name=f"{each.new_tokens:,}",
                cells={
                    "cached": time_cell(each.cached),
                    "plain": time_cell(each.plain),
                    "cached_rate": sampled_cell(each.cached.throughput_per_s),
                    "plain_rate": sampled_cell(each.plain.throughput_per_s),
                    "faster": ratio_cell(each.speedup),
                    "expected": cell(expected),
                    "bytes": cell(each.cache_bytes),
                    "predicted": cell(each.predicted_bytes),
                    "cached_flops": cell(each.cached_flops),
                    "plain_flops": cell(each.plain_flops),
                },
            )
            for each in found
        ),
    )


def _expected() -> tuple[float, float]:
    """The technique table's range of speed-ups."""
    speed = TECHNIQUES["KV cache"].speed
    assert speed is not None  # the table gives one
    return speed


def _expected_text() -> str:
    low, high = _expected()
    return f"{low:g}–{high:g}×"


# ---------------------------------------------------------------- growth


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The exponent of a cost in the number of new tokens, with its standard error."""

    exponent: float
    error: float


def growth(
    found: Sequence[Found], cost: Callable[[Found], float | None], *, fit_from: int
) -> Growth | None:
    """How a cost grows from ``fit_from`` new tokens on; None with fewer than two lengths."""
    pairs = [
        (each.new_tokens, value)
        for each in found
        if each.new_tokens >= fit_from and (value := cost(each)) is not None
    ]
    if len(pairs) < 2:
        return None
    exponent, error = growth_exponent([x for x, _ in pairs], [y for _, y in pairs])
    return Growth(exponent=exponent, error=error)


def _seconds(*, cached: bool) -> Callable[[Found], float | None]:
    return lambda each: (each.cached if cached else each.plain).latency_s.median


def _flops(*, cached: bool) -> Callable[[Found], float | None]:
    return lambda each: each.cached_flops if cached else each.plain_flops


def _growth_table(both: Sequence[Sequence[Found]], fit_from: int) -> StudyTable:
    rows = []
    for found in both:
        for cached in (True, False):
            time = growth(found, _seconds(cached=cached), fit_from=fit_from)
            flops = growth(found, _flops(cached=cached), fit_from=fit_from)
            cells = {"theory": cell("1 to 2" if cached else "2 to 3")}
            if time is not None:
                cells["time"] = _growth_cell(time)
            if flops is not None:
                cells["flops"] = _growth_cell(flops)
            name = f"{found[0].model}, {'with' if cached else 'without'} cache"
            rows.append(StudyRow(name=name, cells=cells))
    return StudyTable(
        title=f"Growth from {fit_from:,} new tokens on: cost = a · tokensᵇ",
        head="generation",
        columns=(
            StudyColumn(key="time", head="time", under="b", unit="number"),
            StudyColumn(key="flops", head="FLOPs", under="b", unit="number"),
            StudyColumn(key="theory", head="FLOPs", under="theory", unit="text"),
        ),
        rows=tuple(rows),
        notes=(
            "The lower figure of theory is of linear layers, the upper one of attention alone.",
            "b by least squares of the logarithms, between one standard error less and more",
        ),
    )


def _growth_cell(grown: Growth) -> Cell:
    low, high = grown.exponent - grown.error, grown.exponent + grown.error
    return Cell(value=grown.exponent, low=low, high=high)


# ---------------------------------------------------------------- plots


def _plots(both: Sequence[Sequence[Found]]) -> tuple[StudyPlot, ...]:
    def lines(value: Callable[[BenchmarkResult], Sampled]) -> tuple[Series, ...]:
        return tuple(
            Series(
                name=f"{found[0].model}, {'with' if cached else 'without'} cache",
                x=tuple(each.new_tokens for each in found),
                y=tuple(value(each.cached if cached else each.plain).median for each in found),
            )
            for found in both
            for cached in (True, False)
        )

    gains = tuple(
        Series(
            name=found[0].model,
            x=tuple(each.new_tokens for each in found),
            y=tuple(each.speedup.value for each in found),
        )
        for found in both
    )
    every = sorted({each.new_tokens for found in both for each in found})
    ends = (every[0], every[-1])
    published = tuple(
        Series(name=f"published {value:g}×", x=ends, y=(value, value), reference=True)
        for value in _expected()
    )
    return (
        _plot("Time of a generation", "seconds", lines(lambda result: result.latency_s)),
        _plot("Speed", "tokens/s", lines(lambda result: result.throughput_per_s)),
        _plot("Speed-up by the cache", "×", (*gains, *published)),
    )


def _plot(title: str, y_label: str, series: tuple[Series, ...]) -> StudyPlot:
    return StudyPlot(
        title=title,
        kind="lines",
        x_label="new tokens",
        y_label=y_label,
        series=series,
        log_x=True,
        log_y=True,
    )


# ---------------------------------------------------------------- checks and findings


def _checks(both: Sequence[Sequence[Found]]) -> tuple[StudyCheck, ...]:
    checks = []
    for found in both:
        name = found[0].model
        wrong = [each for each in found if not each.agreement.holds]
        odd = [each for each in found if each.agreement.detail.startswith("sequence")]
        shown = (wrong or odd or list(found))[-1]
        checks.append(
            StudyCheck(
                name=f"{name}: the cache changes no token",
                holds=not wrong,
                detail=f"{shown.new_tokens:,} new tokens: {shown.agreement.detail}",
            )
        )
        other = [each for each in found if each.cache_bytes != each.predicted_bytes]
        last = (other or list(found))[-1]
        checks.append(
            StudyCheck(
                name=f"{name}: the cache is as large as predicted",
                holds=not other,
                detail=f"{last.new_tokens:,} new tokens: {last.cache_bytes:,} bytes, "
                f"{last.predicted_bytes:,} predicted",
            )
        )
    return (*checks, _flops_check(both[0]))


def _flops_check(own: Sequence[Found]) -> StudyCheck:
    """Counted operations of the own decoder against their closed form."""
    pairs = [
        (each, name, counted, expected)
        for each in own
        for name, counted, expected in (
            ("with", each.cached.flops, each.cached_flops),
            ("without", each.plain.flops, each.plain_flops),
        )
        if counted is not None
    ]
    name = f"{OWN}: the operations counted are those of the closed form"
    if not pairs:
        return StudyCheck(name=name, holds=None, detail="none were counted at these lengths")
    wrong = [pair for pair in pairs if pair[2] != pair[3]]
    each, how, counted, expected = (wrong or pairs)[-1]
    return StudyCheck(
        name=name,
        holds=not wrong,
        detail=f"{each.new_tokens:,} new tokens {how} cache: {counted:,} counted, "
        f"{expected:,} in closed form",
    )


def _findings(both: Sequence[Sequence[Found]], fit_from: int) -> tuple[str, ...]:
    return tuple(
        sentence
        for found in both
        for sentence in (_gain_finding(found), _growth_finding(found, fit_from))
        if sentence
    )


def _gain_finding(found: Sequence[Found]) -> str:
    each = found[-1]
    ratio = each.speedup
    text = f"{each.model} at {each.new_tokens:,} new tokens: "
    rates = (
        f"{format_number(each.cached.throughput_per_s.median)} tokens/s with the cache, "
        f"{format_number(each.plain.throughput_per_s.median)} without"
    )
    if not ratio.real:
        return f"{text}{rates}, no difference beyond the noise."
    low, high = _expected()
    where = "below" if ratio.value < low else "above" if ratio.value > high else "within"
    return f"{text}{rates}: {format_ratio(ratio.value)}, {where} the published {_expected_text()}."


def _growth_finding(found: Sequence[Found], fit_from: int) -> str | None:
    cached, plain = (
        growth(found, _seconds(cached=cached), fit_from=fit_from) for cached in (True, False)
    )
    if cached is None or plain is None:
        return None
    gains = [format_ratio(each.speedup.value) for each in (found[0], found[-1])]
    return (
        f"{found[0].model}: time grows with the exponent {cached.exponent:.2f} of the new tokens "
        f"with the cache and {plain.exponent:.2f} without, and its speed-up goes from {gains[0]} "
        f"at {found[0].new_tokens:,} to {gains[1]} at {found[-1].new_tokens:,}."
    )
