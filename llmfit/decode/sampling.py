"""Choosing the next token from logits, in torch."""

from __future__ import annotations

import torch

from llmfit.decode.base import Sampling
from llmfit.errors import NotFinite


def filtered_logits(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits [B, V] after temperature, top-k and top-p; what is cut is −inf. Float32.

    ``sampling.temperature`` must be above 0. The order is that of transformers: temperature,
    top-k, top-p; top-p keeps the token that crosses the threshold.
    """
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # mass of all more likely tokens
        cut = before >= sampling.top_p
        logits = logits.masked_fill(cut.scatter(-1, index, cut), float("-inf"))
    return logits


def choose(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None
) -> torch.Tensor:
    """Next token ids int64[B, 1] from logits [B, V]; no host synchronisation.

    On a CPU, raises NotFinite where there is nothing to draw from.
    """
    if sampling.greedy and logits.device.type == "cpu":
        # A tenth of torch's own time over a large vocabulary: NumPy's loop has vector instructions.
        return torch.from_numpy(logits.float().numpy().argmax(axis=-1, keepdims=True))
    if sampling.greedy:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = filtered_logits(logits, sampling).softmax(dim=-1)
    if logits.device.type == "cpu" and not probabilities.isfinite().all():
        raise NotFinite
    return torch.multinomial(probabilities, num_samples=1, generator=generator)
