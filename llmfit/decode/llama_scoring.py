"""Log-probabilities of given tokens under a llama.cpp model.

Windows of one context, as the endings of a multiple-choice question are, run together:

    sequence 0    c c c c          run once; what the next context has in common with it is kept
    sequence 1    ″ ″ ″ ″ a a a    ″ is a cell of the KV cache that the sequences share
    sequence 2    ″ ″ ″ ″ b b      all endings are fed in the same calls
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from llmfit.decode.base import LogitsVisitor, Window, WindowScore, common_prefix
from llmfit.decode.llama_cpp import CHUNK_TOKENS, Batch, Context, LlamaCppModel

_LOGITS_BYTES = 256 * 1024 * 1024
"""Upper bound of the logits held while scoring; at 128 k tokens a row of them is 0.5 MB."""
_ROWS_AT_ONCE = 32
_MOST_ENDINGS = 16
"""Sequences beside the shared one; attention looks over the cells of all of them."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A token to feed, and what is predicted from it: (window of the group, token) pairs."""

    id: int
    position: int
    sequence: int
    targets: tuple[tuple[int, int], ...]


def score_windows(
    model: LlamaCppModel,
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order, at most ``batch_tokens`` tokens in one call.

    What a group of windows has in common with the one before it, up to the tokens to be scored,
    stays in the KV cache.
    """
    # A visitor wants the predictions window after window, which endings run together do not give.
    groups = [[w] for w in windows] if visit is not None else list(_groups(windows, batch_tokens))
    if not groups:
        return
    capacity = max(_cells(group) for group in groups)
    rows = max(1, _LOGITS_BYTES // (4 * model.vocab_size))
    sequences = 1 + max(len(group) for group in groups)
    # llama.cpp aborts where a call could not give each sequence a row of logits.
    chunk = max(sequences, min(CHUNK_TOKENS, batch_tokens, capacity, rows))
    context = model.context(
        sequences=sequences, capacity=capacity, chunk=chunk, outputs=chunk, unified=True
    )
    batch = Batch(chunk, sequences)
    cached: tuple[int, ...] = ()
    try:
        for group in groups:
            first = group[0]
            keep = min(common_prefix(cached, first.ids), first.score_from - 1)
            context.forget(keep=keep)
            found = _Found(len(group), visit)
            if len(group) == 1:
                cached = first.ids[:-1]
                _feed(context, batch, chunk, _alone(first)[keep:], found)
            else:
                cached = first.ids[: first.score_from]
                endings = range(1, len(group) + 1)
                _feed(context, batch, chunk, _context(group)[keep:], found)
                context.share(first.score_from, endings)
                _feed(context, batch, chunk, _endings(group), found)
                context.drop(endings)
            yield from found.scores()
    finally:
        context.close()


def _groups(windows: Sequence[Window], most_cells: int) -> Iterator[list[Window]]:
    """Neighbours of one context, as many as fit ``most_cells`` of the KV cache."""
    for _, sharing in groupby(windows, key=lambda window: window.ids[: window.score_from]):
        group: list[Window] = []
        for window in sharing:
            full = len(group) == _MOST_ENDINGS or _cells([*group, window]) > most_cells
            if group and full:
                yield group
                group = []
            group.append(window)
        yield group


def _cells(group: Sequence[Window]) -> int:
    """Tokens that a group puts into the KV cache; the last of a window is only predicted."""
    context = group[0].score_from
    return context + sum(len(window.ids) - 1 - context for window in group)


def _alone(window: Window) -> list[_Token]:
    """All that a window feeds, in sequence 0."""
    return [
        _Token(token, place, 0, ((0, after),) if place >= window.score_from - 1 else ())
        for place, (token, after) in enumerate(pairwise(window.ids))
    ]


def _context(group: Sequence[Window]) -> list[_Token]:
    """The common context; from its last token the first one of every ending is predicted."""
    end = group[0].score_from
    firsts = tuple((index, window.ids[end]) for index, window in enumerate(group))
    return [
        _Token(token, place, 0, firsts if place == end - 1 else ())
        for place, token in enumerate(group[0].ids[:end])
    ]


def _endings(group: Sequence[Window]) -> list[_Token]:
    """The rest of every window, each in a sequence of its own."""
    return [
        _Token(token, place, 1 + index, ((index, after),))
        for index, window in enumerate(group)
        for place, (token, after) in enumerate(
            pairwise(window.ids[window.score_from :]), start=window.score_from
        )
    ]


def _feed(
    context: Context, batch: Batch, chunk: int, tokens: Sequence[_Token], found: _Found
) -> None:
    """Run ``tokens`` and note what is predicted from them."""
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        batch.fill(
            np.array([token.id for token in part]),
            np.array([token.position for token in part]),
            np.array([token.sequence for token in part]),
            np.array([bool(token.targets) for token in part]),
        )
        context.run(batch)
        wanted = [index for index, token in enumerate(part) if token.targets]
        for first in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[first : first + _ROWS_AT_ONCE]
            logits = np.stack([context.logits(index) for index in some])  # [n, V]
            found.read(logits, [part[index].targets for index in some])


class _Found:
    """Log-probabilities of a group's scored tokens, as they come in."""

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
