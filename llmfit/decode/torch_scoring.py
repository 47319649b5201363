"""Log-probabilities of given tokens under a transformers causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from llmfit.decode.base import Window, WindowScore

_POSITIONS_AT_ONCE = 256  # rows of float32 log-softmax held at a time; bounds memory for 128 k vocabularies


@torch.inference_mode()
def score_windows(
    model: nn.Module, windows: Sequence[Window], *, batch_tokens: int, pad_id: int = 0
) -> Iterator[WindowScore]:
    """Score windows in order, batching neighbours while padding included ≤ ``batch_tokens``.

    Windows of like length should be neighbours. Padding is on the right, where causal attention
    never looks, so a score does not depend on what shares its batch beyond rounding.
    """
    for batch in _batches(windows, batch_tokens):
        yield from _score_batch(model, batch, pad_id)


def _batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    longest = 0
    for window in windows:
        fed = len(window.ids) - 1
        longest_with = max(longest, fed)
        if batch and longest_with * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest_with = [], fed
        batch.append(window)
        longest = longest_with
    if batch:
        yield batch


def _score_batch(model: nn.Module, batch: list[Window], pad_id: int) -> list[WindowScore]:
    device = next(model.parameters()).device
    longest = max(len(window.ids) for window in batch) - 1  # the last token is only predicted
    rows = [list(window.ids[:-1]) + [pad_id] * (longest + 1 - len(window.ids)) for window in batch]
    ids = torch.tensor(rows, dtype=torch.int64, device=device)
    first = min(window.score_from for window in batch) - 1
    kept = torch.arange(first, longest, device=device)  # positions whose logits anyone needs
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits  # [B, K, V]
    return [
        _score_row(logits[row], window, first, device) for row, window in enumerate(batch)
    ]


def _score_row(
    logits: torch.Tensor, window: Window, first: int, device: torch.device
) -> WindowScore:
    start = window.score_from
    targets = torch.tensor(window.ids[start:], dtype=torch.int64, device=device)
    rows = logits[start - 1 - first : len(window.ids) - 1 - first]  # [S, V]
    logprobs: list[float] = []
    greedy = True
    for piece, wanted in zip(
        rows.split(_POSITIONS_AT_ONCE), targets.split(_POSITIONS_AT_ONCE), strict=True
    ):
        scores = piece.float().log_softmax(dim=-1)
        logprobs.extend(scores.gather(1, wanted[:, None])[:, 0].tolist())
        greedy = greedy and bool((scores.argmax(dim=-1) == wanted).all())
    return WindowScore(tuple(logprobs), greedy)
