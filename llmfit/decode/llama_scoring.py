"""Log-probabilities of given tokens under a llama.cpp model.

Windows of one context, as the endings of a multiple-choice question are, form a group, and groups
run together while all their tokens fit one call:

    sequence 0    p              what the groups begin with, run once and kept for the next ones
    sequence 1    ″ c c c        a group's context; ″ is a cell of the KV cache that is shared
    sequence 2    ″ d d d d      the context of another group, fed in the same call
    sequence 3    ″ ″ ″ ″ a a    an ending of the first group; all endings are fed in the next call
    sequence 4    ″ ″ ″ ″ b
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from llmfit.decode.base import LogitsVisitor, Window, WindowScore, common_prefix
from llmfit.decode.llama_cpp import CHUNK_TOKENS, Batch, Context, LlamaCppModel

_LOGITS_BYTES = 256 * 1024 * 1024
"""Upper bound of the logits held while scoring; at 128 k tokens a row of them is 0.5 MB."""
_ROWS_AT_ONCE = 32
_MOST_SEQUENCES = 64
"""Contexts and endings that run together; attention looks over the cells of all of them."""

_EXACT_TOKENS = 64
"""llama.cpp's attention over a 16-bit cache works in tiles of so many tokens. A shorter call adds
up in float16: over 900 tokens log-probabilities move by up to 0.3 instead of 0.02, in six times
the time. Source: ggml, src/ggml-cpu/ops.cpp, and measured."""

_Group = Sequence[Window]
"""Windows of one context, up to ``score_from``; or a single window."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A token to feed, and what is predicted from it: (window of the bundle, token) pairs."""

    id: int
    position: int
    sequence: int
    targets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Limits:
    """What may run together."""

    fed: int
    """Tokens in a call."""
    cells: int
    """Tokens in the KV cache."""


def score_windows(
    model: LlamaCppModel,
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order, at most ``batch_tokens`` tokens in one call (64 at least).

    What a bundle of groups has in common with the one before it stays in the KV cache.
    """
    rows = max(1, _LOGITS_BYTES // (4 * model.vocab_size))
    fed = max(_EXACT_TOKENS, min(CHUNK_TOKENS, batch_tokens, rows))
    limits = _Limits(fed=fed, cells=batch_tokens)
    # A visitor wants the predictions window after window, which endings run together do not give.
    groups = [[w] for w in windows] if visit is not None else list(_groups(windows, limits))
    bundles = list(_bundles(groups, limits))
    if not bundles:
        return
    spare = 1 + max(map(_sequences, bundles))
    capacity = _EXACT_TOKENS + max(_cells(bundle, _shared(bundle)) for bundle in bundles)
    # llama.cpp aborts where a call could not give each sequence a row of logits.
    chunk = max(spare + 1, min(limits.fed, capacity))
    context = model.context(
        sequences=spare + 1, capacity=capacity, chunk=chunk, outputs=chunk, unified=True
    )
    feeder = _Feeder(
        context, Batch(chunk, spare + 1), spare=None if model.kv_cache_dtype else spare
    )
    cached: tuple[int, ...] = ()
    try:
        for bundle in bundles:
            found = _Found(sum(map(len, bundle)), visit)
            cached = _run(context, feeder, bundle, cached, found)
            yield from found.scores()
    finally:
        context.close()


def _run(
    context: Context,
    feeder: _Feeder,
    bundle: Sequence[_Group],
    cached: tuple[int, ...],
    found: _Found,
) -> tuple[int, ...]:
    """Score a bundle with sequence 0 holding ``cached``; returns what it holds afterwards."""
    first, shared, alone = bundle[0][0].ids, _shared(bundle), len(bundle) == 1
    keep = min(common_prefix(cached, first), shared)
    context.forget(keep=keep)
    contexts: list[_Token] = []
    endings: list[_Token] = []
    branches: list[tuple[int, int, range]] = []
    windows, free = 0, 1 if alone else 1 + len(bundle)
    for index, group in enumerate(bundle):
        own = 0 if alone else 1 + index
        contexts += _context(group, keep if alone else shared, own, windows)
        if len(group) > 1:
            branches.append((own, group[0].score_from, range(free, free + len(group))))
            endings += _endings(group, free, windows)
            free += len(group)
        windows += len(group)
    if not alone:
        prefix = [_Token(first[place], place, 0, ()) for place in range(keep, shared)]
        feeder.feed(prefix, found)
        context.share(0, shared, range(1, 1 + len(bundle)))
    feeder.feed(contexts, found)
    for own, length, sequences in branches:
        context.share(own, length, sequences)
    feeder.feed(endings, found)
    context.drop(range(1, free))
    return first[: _context_tokens(bundle[0]) if alone else shared]


def _groups(windows: Sequence[Window], limits: _Limits) -> Iterator[list[Window]]:
    """Neighbours of one context, as many as run together."""
    for _, sharing in groupby(windows, key=lambda window: window.ids[: window.score_from]):
        group: list[Window] = []
        for window in sharing:
            if group and not _fits([[*group, window]], 0, limits):
                yield group
                group = []
            group.append(window)
        yield group


def _bundles(groups: Iterable[_Group], limits: _Limits) -> Iterator[list[_Group]]:
    """Neighbouring groups, as many as run together and share most of what they could.

    With k groups that share p tokens, a new one which shares only p' makes them run k (p − p')
    tokens more, and saves p' itself.
    """
    bundle: list[_Group] = []
    for group in groups:
        if bundle:
            together = [*bundle, group]
            before, after = _shared(bundle), _shared(together)
            worth = len(bundle) * (before - after) <= before + _EXACT_TOKENS
            if not (worth and _fits(together, after, limits)):
                yield bundle
                bundle = []
        bundle.append(group)
    if bundle:
        yield bundle


def _fits(bundle: Sequence[_Group], shared: int, limits: _Limits) -> bool:
    """True where contexts and endings are a call each; a single context may be several."""
    contexts = sum(_context_tokens(group) - shared for group in bundle)
    return (
        (len(bundle) == 1 or contexts <= limits.fed)
        and sum(map(_ending_tokens, bundle)) <= limits.fed
        and _cells(bundle, shared) <= limits.cells
        and _sequences(bundle) < _MOST_SEQUENCES
    )


def _shared(bundle: Sequence[_Group]) -> int:
    """Tokens that all groups begin with, up to those that something is predicted from."""
    first = bundle[0][0].ids
    return min(min(group[0].score_from - 1, common_prefix(first, group[0].ids)) for group in bundle)


def _sequences(bundle: Sequence[_Group]) -> int:
    """Sequences beside the first."""
    own = len(bundle) if len(bundle) > 1 else 0
    return own + sum(len(group) for group in bundle if len(group) > 1)


def _cells(bundle: Sequence[_Group], shared: int) -> int:
    """Tokens that a bundle puts into the KV cache; the last of a window is only predicted."""
    own = sum(_context_tokens(group) - shared + _ending_tokens(group) for group in bundle)
    return shared + own


def _context_tokens(group: _Group) -> int:
    """Tokens of a group's context; of a single window all that is fed."""
    return len(group[0].ids) - 1 if len(group) == 1 else group[0].score_from


def _ending_tokens(group: _Group) -> int:
    """Tokens that a group feeds after its context."""
    return sum(len(window.ids) - 1 for window in group) - len(group) * _context_tokens(group)


def _context(group: _Group, start: int, sequence: int, number: int) -> list[_Token]:
    """What a group feeds from ``start`` on into its own sequence; ``number`` is its first window.

    From the last token of a context the first one of every ending is predicted.
    """
    first = group[0]
    if len(group) == 1:
        return [
            _Token(
                token, place, sequence, ((number, after),) if place >= first.score_from - 1 else ()
            )
            for place, (token, after) in enumerate(pairwise(first.ids[start:]), start=start)
        ]
    end = first.score_from
    firsts = tuple((number + index, window.ids[end]) for index, window in enumerate(group))
    return [
        _Token(first.ids[place], place, sequence, firsts if place == end - 1 else ())
        for place in range(start, end)
    ]


def _endings(group: _Group, sequence: int, number: int) -> list[_Token]:
    """The rest of every window, each in a sequence of its own."""
    return [
        _Token(token, place, sequence + index, ((number + index, after),))
        for index, window in enumerate(group)
        for place, (token, after) in enumerate(
            pairwise(window.ids[window.score_from :]), start=window.score_from
        )
    ]


class _Feeder:
    """Runs tokens, in calls that are long enough for llama.cpp's exact attention."""

    def __init__(self, context: Context, batch: Batch, spare: int | None) -> None:
        """``spare`` is a sequence that fills calls which are too short; None where none should."""
        self._context = context
        self._batch = batch
        self._spare = spare

    def feed(self, tokens: Sequence[_Token], found: _Found) -> None:
        """Run ``tokens`` and note what is predicted from them."""
        calls = -(-len(tokens) // self._batch.size)
        for part in np.array_split(np.arange(len(tokens)), calls) if calls else ():
            self._run(tokens[part[0] : part[-1] + 1])
            wanted = [index for index, place in enumerate(part) if tokens[place].targets]
            for first in range(0, len(wanted), _ROWS_AT_ONCE):
                some = wanted[first : first + _ROWS_AT_ONCE]
                logits = np.stack([self._context.logits(index) for index in some])  # [n, V]
                found.read(logits, [tokens[part[index]].targets for index in some])

    def _run(self, tokens: Sequence[_Token]) -> None:
        filler: list[_Token] = []
        if self._spare is not None and max(token.position for token in tokens) >= _EXACT_TOKENS:
            filler = [
                _Token(tokens[0].id, place, self._spare, ())
                for place in range(_EXACT_TOKENS - len(tokens))
            ]
        fed = [*tokens, *filler]
        self._batch.fill(
            np.array([token.id for token in fed]),
            np.array([token.position for token in fed]),
            np.array([token.sequence for token in fed]),
            np.array([bool(token.targets) for token in fed]),
        )
        self._context.run(self._batch)
        if filler and self._spare is not None:
            self._context.drop(range(self._spare, self._spare + 1))


class _Found:
    """Log-probabilities of a bundle's scored tokens, as they come in."""

    def __init__(self, windows: int, visit: LogitsVisitor | None) -> None:
        self._logprobs: list[list[float]] = [[] for _ in range(windows)]
        self._greedy = [True] * windows
        self._visit = visit

    def read(self, logits: np.ndarray, targets: Sequence[tuple[tuple[int, int], ...]]) -> None:
        """Note the natural-log probabilities of ``targets`` under float32 ``logits`` [n, V]."""
        import torch

        if self._visit is not None:
            self._visit(torch.from_numpy(logits))
        highest = logits.argmax(axis=1)
        peak = logits.max(axis=1, keepdims=True)
        total = np.exp(logits - peak).sum(axis=1, dtype=np.float64)
        total = peak[:, 0] + np.log(total)  # float64[n]
        for row, pairs in enumerate(targets):
            for window, token in pairs:
                self._logprobs[window].append(float(logits[row, token] - total[row]))
                self._greedy[window] = self._greedy[window] and bool(highest[row] == token)

    def scores(self) -> Iterator[WindowScore]:
        """The score of each window."""
        for logprobs, greedy in zip(self._logprobs, self._greedy, strict=True):
            yield WindowScore(logprobs=tuple(logprobs), greedy=greedy)
