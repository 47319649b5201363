"""Log-probabilities of given tokens under a transformers causal language model.

Neighbouring windows with the same context, as the endings of a multiple-choice question have,
share one row: the context is run once, and each ending sees the context and itself alone.

    tokens      c c c c  a a a  b b        positions  0 1 2 3  4 5 6  4 5
    a sees      x x x x  x x x  . .
    b sees      x x x x  . . .  x x
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from llmfit.decode.base import LogitsVisitor, Window, WindowScore

_ROWS_AT_ONCE = 256
"""Positions of float32 log-softmax held at a time; bounds memory for a 128 k vocabulary."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Windows over one context, packed: what is fed, and where each prediction is read."""

    windows: tuple[Window, ...]
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    own_start: tuple[int, ...]
    """For each token the first token of its own ending; 0 for the context's tokens."""
    reads: tuple[tuple[int, ...], ...]
    """For each window the tokens whose logits predict its scored tokens."""

    @property
    def context(self) -> int:
        return self.windows[0].score_from


@torch.inference_mode()
def score_windows(
    model: nn.Module,
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    pad_id: int = 0,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order, batching neighbours while padding included ≤ ``batch_tokens``.

    Windows of like length should be neighbours, and so should windows of one context. Padding
    is on the right, where causal attention never looks, so a score does not depend on what
    shares its batch beyond rounding.
    """
    rows = _pack(windows, _longest_shared(model))
    for batch in _batches(rows, batch_tokens):
        yield from _score_batch(model, batch, pad_id, visit)


def _longest_shared(model: nn.Module) -> int | None:
    """Longest row that one mask serves: the sliding window, or None where there is none."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    if getattr(config, "use_sliding_window", True):
        return getattr(config, "sliding_window", None)
    return None


def _pack(windows: Sequence[Window], longest_shared: int | None) -> Iterator[_Row]:
    for context, sharing in groupby(windows, key=lambda window: window.ids[: window.score_from]):
        group = tuple(sharing)
        row = _row(context, group)
        # Packing runs the context once, and makes attention look over all endings' tokens: it
        # pays where the context is the longer part. Texts that only share BOS stay apart.
        pays = len(context) >= max(len(window.ids) for window in group) - len(context)
        if pays and (longest_shared is None or len(row.ids) <= longest_shared):
            yield row
        else:
            yield from (_row(context, (window,)) for window in group)


def _row(context: tuple[int, ...], windows: tuple[Window, ...]) -> _Row:
    ids = list(context)
    positions = list(range(len(context)))
    own_start = [0] * len(context)
    reads = []
    for window in windows:
        fed = window.ids[window.score_from : -1]  # the last token is only predicted
        start = len(ids)
        reads.append((len(context) - 1, *range(start, start + len(fed))))
        ids += fed
        positions += range(len(context), len(context) + len(fed))
        own_start += [start] * len(fed)
    return _Row(windows, tuple(ids), tuple(positions), tuple(own_start), tuple(reads))


def _batches(rows: Iterator[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    longest = 0
    for row in rows:
        longest_with = max(longest, len(row.ids))
        if batch and longest_with * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest_with = [], len(row.ids)
        batch.append(row)
        longest = longest_with
    if batch:
        yield batch


def _score_batch(
    model: nn.Module, batch: list[_Row], pad_id: int, visit: LogitsVisitor | None
) -> Iterator[WindowScore]:
    parameter = next(model.parameters())
    device = parameter.device
    longest = max(len(row.ids) for row in batch)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (longest - len(values))]

    ids = torch.tensor([padded(row.ids, pad_id) for row in batch], device=device)  # [B, T]
    first = min(row.context for row in batch) - 1
    options: dict[str, Any] = {
        "logits_to_keep": torch.arange(first, longest, device=device)  # what anyone reads
    }
    if any(len(row.windows) > 1 for row in batch):
        options["position_ids"] = torch.tensor(
            [padded(row.positions, 0) for row in batch], device=device
        )
        own_start = torch.tensor([padded(row.own_start, longest) for row in batch], device=device)
        context = torch.tensor([row.context for row in batch], device=device)
        options["attention_mask"] = _shared_context_mask(own_start, context, model.dtype)  # type: ignore[arg-type]
    logits = model(input_ids=ids, use_cache=False, **options).logits  # [B, K, V]
    for index, row in enumerate(batch):
        for window, reads in zip(row.windows, row.reads, strict=True):
            places = torch.tensor(reads, device=device) - first
            yield _score_window(logits[index], places, window, visit)


def _shared_context_mask(
    own_start: torch.Tensor, context: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Additive mask [B, 1, T, T]: 0 where a token may look, the least finite number elsewhere.

    ``own_start`` int[B, T] and ``context`` int[B] are as in ``_Row``. Every token sees the
    context before it and its own ending before it; padding sees the context.
    """
    token = torch.arange(own_start.shape[1], device=own_start.device)
    before = token[None, None, :] <= token[None, :, None]  # [1, T, T]
    in_context = token[None, None, :] < context[:, None, None]  # [B, 1, T]
    in_own = token[None, None, :] >= own_start[:, :, None]  # [B, T, T]
    seen = before & (in_context | in_own)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _score_window(
    logits: torch.Tensor, places: torch.Tensor, window: Window, visit: LogitsVisitor | None
) -> WindowScore:
    """Score one window from its row's logits [K, V], read at ``places`` int[S]."""
    targets = torch.tensor(window.ids[window.score_from :], device=logits.device)
    logprobs: list[float] = []
    greedy = True
    for where, wanted in zip(
        places.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE), strict=True
    ):
        rows = logits[where]
        if visit is not None:
            visit(rows)
        scores = rows.float().log_softmax(dim=-1)
        logprobs.extend(scores.gather(1, wanted[:, None])[:, 0].tolist())
        greedy = greedy and bool((scores.argmax(dim=-1) == wanted).all())
    return WindowScore(tuple(logprobs), greedy)
