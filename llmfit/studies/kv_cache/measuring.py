"""Sizes ─► both models timed with and without a cache at each length, as ``Found``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llmfit.benchmark import Case, speedup
from llmfit.studies.base import StudyContext
from llmfit.studies.kv_cache.generators import DecoderSizes, Generator, LibraryModel, OwnDecoder
from llmfit.study_records import BenchmarkResult, Ratio

if TYPE_CHECKING:
    from torch import Tensor

_TIE = 1e-5
"""Two logits this near, as a share of their whole range, are equal but for rounding in float32."""
_WARM_TOKENS = 8


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

    def settings(self) -> dict[str, float | int | str | bool | None]:
        """As a result records them."""
        flat = {**asdict(self.decoder), **{k: v for k, v in asdict(self).items() if k != "decoder"}}
        return {
            key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
            for key, value in flat.items()
        }


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


def measure(context: StudyContext, sizes: Sizes) -> tuple[tuple[Found, ...], tuple[Found, ...]]:
    """The own decoder at its lengths, and the library's model at its own."""
    own = _at_all(
        context,
        OwnDecoder(
            context,
            sizes.decoder,
            batch=sizes.batch,
            prompt_tokens=sizes.prompt_tokens,
            count_up_to=sizes.count_up_to,
        ),
        sizes.lengths,
        sizes.runs,
    )
    library = _at_all(
        context,
        LibraryModel(context, batch=sizes.batch, prompt_tokens=sizes.prompt_tokens),
        sizes.library_lengths,
        sizes.library_runs,
    )
    return own, library


def _at_all(
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
