"""Log-probabilities of given tokens under a llama.cpp model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmfit.decode.base import LogitsVisitor, Window, WindowScore
from llmfit.decode.llama_cpp import CHUNK_TOKENS, Batch, Context, LlamaCppModel

_LOGITS_BYTES = 256 * 1024 * 1024
"""Upper bound of the logits held while scoring; at 128 k tokens a row of them is 0.5 MB."""
_ROWS_AT_ONCE = 32


def score_windows(
    model: LlamaCppModel,
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order, at most ``batch_tokens`` tokens at once.

    What a window has in common with the one before it, up to the tokens to be scored, is kept in
    the KV cache: the endings of one HellaSwag question cost their context once.
    """
    longest = max((len(window.ids) for window in windows), default=0)
    if longest == 0:
        return
    rows = max(1, _LOGITS_BYTES // (4 * model.vocab_size))
    chunk = min(CHUNK_TOKENS, batch_tokens, longest, rows)
    context = model.context(sequences=1, capacity=longest, chunk=chunk, outputs=chunk)
    batch = Batch(chunk, 1)
    cached: tuple[int, ...] = ()
    try:
        for window in windows:
            keep = min(_common_prefix(cached, window.ids), window.score_from - 1)
            context.forget(keep=keep)
            cached = window.ids[:-1]  # the last token is only predicted
            yield _score(context, batch, chunk, window, keep, visit)
    finally:
        context.close()


def _score(
    context: Context,
    batch: Batch,
    chunk: int,
    window: Window,
    keep: int,
    visit: LogitsVisitor | None,
) -> WindowScore:
    """Score one window whose first ``keep`` tokens are in the KV cache."""
    import torch

    ids = np.asarray(window.ids)
    logprobs: list[float] = []
    greedy = True
    for start in range(keep, len(ids) - 1, chunk):
        positions = np.arange(start, min(start + chunk, len(ids) - 1))
        wanted = positions >= window.score_from - 1
        batch.fill(ids[positions], positions, np.zeros(len(positions), np.int64), wanted)
        context.run(batch)
        indices = np.flatnonzero(wanted)
        for first in range(0, len(indices), _ROWS_AT_ONCE):
            part = indices[first : first + _ROWS_AT_ONCE]
            logits = np.stack([context.logits(int(index)) for index in part])  # [n, V]
            if visit is not None:
                visit(torch.from_numpy(logits))
            targets = ids[positions[part] + 1]
            logprobs.extend(_log_probability(logits, targets).tolist())
            greedy = greedy and bool((logits.argmax(axis=1) == targets).all())
    return WindowScore(logprobs=tuple(logprobs), greedy=greedy)


def _log_probability(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Natural-log probability float64[n] of ``targets`` under float32 logits [n, V]."""
    highest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return chosen - highest[:, 0] - np.log(total)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
