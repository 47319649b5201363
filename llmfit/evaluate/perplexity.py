"""Perplexity per token of a text, by one of two protocols, and on its way the divergence.

    documents ─► token ids ─► windows ─► LoadedModel.score ─► blocks of neighbouring tokens
                                             └─► Watch (reference logits or divergence)

Windows are scored longest first, so that batches pad little; blocks are in the text's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from llmfit.backends.base import LoadedModel, Progress, Tokenizer, no_progress
from llmfit.decode.base import Window, WindowScore
from llmfit.errors import EvaluationError, UsageError
from llmfit.evaluate.blocks import block_totals
from llmfit.evaluate.divergence import Reference, Watch, scored_tokens, watch
from llmfit.evaluate.finite import check_finite
from llmfit.records import Divergence, EvaluationSettings, Perplexity
from llmfit.stats import ratio_interval

WINDOW_TOKENS = 2048
"""Window of the ``window`` protocol: what published GPTQ and AWQ tables use."""
LLAMA_CPP_TOKENS = 512
"""Chunk of the ``llama.cpp`` protocol: the default of llama-perplexity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """What scoring a text token by token gives."""

    perplexity: Perplexity
    """Without the measures per word and byte."""
    divergence: Divergence | None
    known: dict[Window, WindowScore]
    """Every window scored: whoever needs one of them again need not run it."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """A text cut into windows by one protocol."""

    protocol: str
    windows: tuple[Window, ...]
    """In the order of the text."""
    runs: tuple[int, ...]
    """How many windows in a row make a stretch of text that blocks may not reach beyond."""


def score_text(
    model: LoadedModel,
    documents: Sequence[str],
    settings: EvaluationSettings,
    *,
    reference: Reference | None = None,
    progress: Progress = no_progress,
) -> TextScores:
    """Score all of ``documents`` by ``settings.ppl_protocol``.

    With a ``reference`` its logits are written or compared with, over the text's first windows; a
    note says so of a model that gives no logits. Raises EvaluationError for a text too short for
    the protocol and for logits that are not finite, UsageError for a window too small for it.
    """
    size, notes = _window_size(model, settings)
    cut = _llama_cpp_layout if settings.ppl_protocol == "llama.cpp" else _window_layout
    layout = cut(model.tokenizer, documents, size)
    divergence = None
    if reference is not None and not model.gives_logits:
        reference = None
        notes += ("no divergence: this engine tells the probabilities of the text's tokens alone",)
    if reference is None:
        scores = _score(model, layout.windows, settings, progress)
    else:
        with closing(
            watch(
                reference,
                layout.windows,
                vocab_size=model.vocab_size,
                limit_bytes=settings.reference_bytes,
            )
        ) as observer:
            scores = _score(model, layout.windows, settings, progress, observer)
            watched = _longest_first(layout.windows, 0, observer.n_windows)
            divergence, found = observer.result(
                [scored_tokens(layout.windows[index]) for index in watched]
            )
            notes += found
    return TextScores(
        perplexity=_perplexity(layout, scores, len(documents)),
        divergence=divergence,
        known=dict(zip(layout.windows, scores, strict=True)),
        notes=notes,
    )


def _window_size(model: LoadedModel, settings: EvaluationSettings) -> tuple[int, tuple[str, ...]]:
    """Tokens in a window, within the model's limit, and a note where that is less than asked."""
    asked = settings.ppl_window
    default = LLAMA_CPP_TOKENS if settings.ppl_protocol == "llama.cpp" else WINDOW_TOKENS
    least = 4 if settings.ppl_protocol == "llama.cpp" else 1
    size = min(asked or default, model.context_length)
    if (asked is not None and asked < least) or size < least:
        raise UsageError(
            f"a perplexity window of {size if asked is None else asked} tokens is too small, "
            f"{least} is the least.",
            hint="--ppl-window 512",
        )
    if asked is not None and size < asked:
        return size, (f"perplexity windows of {size} tokens, not {asked}: the model's limit",)
    return size, ()


def adds_bos(tokenizer: Tokenizer) -> bool:
    """True where the tokenizer by itself puts BOS before a text."""
    bos = tokenizer.bos_id
    with_special, plain = (tokenizer.encode("a", special=special) for special in (True, False))
    return bos is not None and with_special[:1] == [bos] and plain[:1] != [bos]


def _window_layout(tokenizer: Tokenizer, documents: Sequence[str], size: int) -> _Layout:
    """Non-overlapping windows in which ``size`` tokens are fed and ``size`` scored."""
    bos = adds_bos(tokenizer)
    prefix = _prefix(tokenizer)
    windows: list[Window] = []
    runs: list[int] = []
    for document in documents:
        ids = tokenizer.encode(document, special=False)
        before = [prefix, *ids]  # before[i] stands before ids[i]
        pieces = [
            Window((prefix if bos else before[start], *ids[start : start + size]), 1)
            for start in range(0, len(ids), size)
        ]
        windows += pieces
        runs.append(len(pieces))
    if not windows:
        raise EvaluationError("the text has no token to score.", hint="--text-file FILE")
    start = (
        "each starts with the model's BOS"
        if bos
        else "the tokenizer adds no BOS: a document's first starts with "
        f"{'BOS' if tokenizer.bos_id is not None else 'EOS'}, each later one with the token "
        "before it"
    )
    return _Layout(
        protocol=f"window {size}: documents apart, in windows that do not overlap, every token "
        f"scored once; {start}",
        windows=tuple(windows),
        runs=tuple(runs),
    )


def _prefix(tokenizer: Tokenizer) -> int:
    """What lm-eval puts before a text's first token: BOS, or EOS where there is no BOS."""
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if prefix is None:
        raise EvaluationError("the tokenizer has neither BOS nor EOS to start a text with.")
    return prefix


def _llama_cpp_layout(tokenizer: Tokenizer, documents: Sequence[str], size: int) -> _Layout:
    """Chunks of ``size`` tokens, of which the second half is scored.

    Source: llama.cpp, tools/perplexity/perplexity.cpp, ``perplexity``: a chunk's first token
    gives way to BOS, the first half is context only, and so is the token that the first logits
    of the second half belong to.
    """
    ids = tokenizer.encode("\n\n".join(documents))
    if len(ids) < 2 * size:
        raise EvaluationError(
            f"the text has {len(ids)} tokens, and llama.cpp's protocol needs two chunks of {size}.",
            hint=f"a longer --text-file, --ppl-window {max(4, len(ids) // 2)}, "
            "or --ppl-protocol window",
        )
    bos = adds_bos(tokenizer)
    windows = []
    for start in range(0, len(ids) - size + 1, size):
        first = tokenizer.bos_id if bos and tokenizer.bos_id is not None else ids[start]
        windows.append(Window((first, *ids[start + 1 : start + size]), size // 2 + 1))
    joined = f"{len(documents)} documents joined by blank lines" if len(documents) > 1 else "text"
    return _Layout(
        protocol=f"llama.cpp {size}: {joined} in chunks, tokens {size // 2 + 1} to {size - 1} of "
        f"each scored, the last incomplete chunk left out; "
        f"{'BOS in place of' if bos else 'the tokenizer adds no BOS:'} each chunk's first token",
        windows=tuple(windows),
        runs=(1,) * len(windows),
    )


def _longest_first(windows: Sequence[Window], start: int, stop: int) -> list[int]:
    """Places of ``windows[start:stop]``, so ordered that neighbours pad each other little.

    The order depends on the windows alone, so that every row meets the reference's logits in it.
    """
    return sorted(range(start, stop), key=lambda place: -len(windows[place].ids))


def _score(
    model: LoadedModel,
    windows: Sequence[Window],
    settings: EvaluationSettings,
    progress: Progress,
    observer: Watch | None = None,
) -> list[WindowScore]:
    """Scores in the order of ``windows``; the first ones are scored under the observer's eyes."""
    watched = 0 if observer is None else observer.n_windows
    scores: dict[int, WindowScore] = {}
    for start, stop, visit in ((0, watched, observer), (watched, len(windows), None)):
        order = _longest_first(windows, start, stop)
        found = model.score(
            [windows[place] for place in order], batch_tokens=settings.batch_tokens, visit=visit
        )
        for place, score in zip(order, found, strict=True):
            check_finite(score.logprobs)
            scores[place] = score
            if len(scores) % 16 == 0 or len(scores) == len(windows):
                progress("score text", len(scores), len(windows))
    return [scores[place] for place in range(len(windows))]


def _perplexity(layout: _Layout, scores: Sequence[WindowScore], n_documents: int) -> Perplexity:
    nll = -np.concatenate([score.logprobs for score in scores])
    lengths = iter([len(score.logprobs) for score in scores])
    runs = [sum(islice(lengths, windows)) for windows in layout.runs]
    totals, counts = block_totals(nll, [run for run in runs if run])
    interval = ratio_interval(totals, counts)
    low, high = (None, None) if interval is None else map(_exp, interval)
    return Perplexity(
        token=_exp(float(nll.mean())),
        protocol=layout.protocol,
        n_tokens=len(nll),
        low=low,
        high=high,
        block_nll=tuple(totals),
        block_tokens=tuple(counts),
        n_documents=n_documents,
    )


def _exp(mean_nll: float) -> float:
    """Perplexity of a mean negative log-likelihood in nats, as a finite number."""
    try:
        return math.exp(mean_nll)
    except OverflowError as exc:
        raise EvaluationError(
            f"a loss of {mean_nll:.0f} nats a token has no perplexity.",
            hint="another format: this one overflows or is damaged",
        ) from exc
