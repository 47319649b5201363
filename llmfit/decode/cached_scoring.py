"""Log-probabilities of given tokens over transformers' quantised KV cache, as decode meets it.

A window's context, the tokens before the first scored one, is its prompt: one prefill, which reads
its own keys and values unquantised and gives the first scored token. The tokens after it are fed
in chunks of the cache's residual length, so a token sees the newest 0 … 127 tokens as they are and
all before them dequantised. Feeding them one by one, as decode does, would show each token just
the same: the cache quantises once in so many tokens.

    prompt             prefill     quantised when it is done
    tokens 1 … 128     chunk 1     see the prompt quantised, each other as they are; then quantised
    tokens 129 … 256   chunk 2     see all before token 129 quantised

Texts of up to 128 tokens and little context hence pay next to nothing, as in decode.

Only windows of one context run together: HQQ ends its search for scales by the mean error over all
that it is given, so a batch of unlike texts would have a part in each other's scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from llmfit.decode.base import LogitsVisitor, Window, WindowScore
from llmfit.decode.placement import execution_device
from llmfit.decode.quantized_cache import quantized_cache
from llmfit.decode.torch_scoring import score_hidden
from llmfit.planning.memory.kv_cache import RESIDUAL_TOKENS
from llmfit.records import KvCacheDtype


@torch.inference_mode()
def score_windows_cached(
    model: nn.Module,
    windows: Sequence[Window],
    kv_cache_dtype: KvCacheDtype,
    *,
    batch_tokens: int,
    visit: LogitsVisitor | None = None,
) -> Iterator[WindowScore]:
    """Score windows in order over a cache of ``kv_cache_dtype``; ≤ ``batch_tokens`` at once.

    A score depends on nothing that shares its batch, beyond rounding.
    """
    for batch in _batches(windows, batch_tokens):
        hidden = _run(model, batch, kv_cache_dtype)
        yield from score_hidden(model, batch, torch.cat(hidden), visit)


def _batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Neighbours of one context together, while none of them is quantised beyond it."""
    for context, sharing in groupby(windows, key=lambda window: window.ids[: window.score_from]):
        batch: list[Window] = []
        for window in sharing:
            longest = max(len(_rest(each)) for each in (*batch, window))
            tokens = (len(batch) + 1) * (len(context) + longest)
            if batch and (longest > RESIDUAL_TOKENS or tokens > batch_tokens):
                yield batch
                batch = []
            batch.append(window)
        yield batch


def _rest(window: Window) -> tuple[int, ...]:
    """What is fed after the context; the last token is only predicted."""
    return window.ids[window.score_from : -1]


def _run(
    model: nn.Module, batch: Sequence[Window], kv_cache_dtype: KvCacheDtype
) -> list[torch.Tensor]:
    """For each window the hidden states [S, H] that predict its S scored tokens."""
    base: Any = model.base_model
    device = execution_device(model)
    cache = quantized_cache(model, kv_cache_dtype)
    context = torch.tensor([batch[0].ids[: batch[0].score_from]], device=device)  # [1, C]
    last = base(input_ids=context, past_key_values=cache, use_cache=True)[0][:, -1:]  # [1, 1, H]

    # Each window continues a copy of the context's keys and values.
    cache.reorder_cache(torch.zeros(len(batch), dtype=torch.int64, device=device))
    rests = [_rest(window) for window in batch]
    longest = max(map(len, rests))
    # Padded on the right, where causal attention never looks.
    fed = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rests], device=device)
    parts = [last.expand(len(batch), -1, -1)]
    for chunk in fed.split(RESIDUAL_TOKENS, dim=1) if longest else ():
        parts.append(base(input_ids=chunk, past_key_values=cache, use_cache=True)[0])
    hidden = torch.cat(parts, dim=1)  # [B, 1 + longest, H]
    return [states[: 1 + len(ids)] for states, ids in zip(hidden, rests, strict=True)]
