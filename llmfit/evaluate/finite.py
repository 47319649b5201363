"""Logits that are no finite numbers: told as such, never as a perplexity, an accuracy or a pick.

Weights that hold NaN, or a format that overflows, decode as fast as any; only scores show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

from llmfit.backends.base import LoadedModel
from llmfit.decode.base import Window
from llmfit.errors import NotFinite


def check_finite(logprobs: Iterable[float]) -> None:
    """Raise NotFinite where one of the log-probabilities is no finite number."""
    if not all(map(isfinite, logprobs)):
        raise NotFinite


def check_logits(model: LoadedModel, prompt: Sequence[int]) -> None:
    """Run ``prompt`` once, for rows that nothing else scores. Raises NotFinite."""
    window = Window((*prompt, prompt[0]), 1)
    for score in model.score([window], batch_tokens=len(prompt)):
        check_finite(score.logprobs)
