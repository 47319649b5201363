"""The seam between a loaded model and everything that times it or reads its text.

    prompts ─► Decoder.prefill ─► first new token of each sequence (from the prefill's logits)
                    │
                    └─► Decoder.step ─► one more token of each sequence, per call

A ``Decoder`` owns the preallocated KV cache of one batch. No torch here: llama.cpp's decoder
fulfils the same contract without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfit.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits.

    ``temperature`` 0 is greedy, as is one that logits cannot be divided by, and then ``top_k``,
    ``top_p`` and ``seed`` have no effect.
    Otherwise logits are divided by the temperature, then cut to the ``top_k`` largest (0: no
    cut), then to the smallest set whose probability reaches ``top_p`` (1: no cut).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 or more, not {self.temperature}.")
        if self.top_k < 0:
            raise UsageError(f"top-k must be 0 (off) or more, not {self.top_k}.")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}.")

    @property
    def greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature < _LEAST_TEMPERATURE


_LEAST_TEMPERATURE = 1e-6
"""Below it float32 holds no logit divided by it, and the largest alone would be drawn."""

GREEDY = Sampling()


class Decoder(ABC):
    """One batch of sequences being continued over a preallocated KV cache.

    ``prefill`` may be called again: it empties the cache first. Calls may be asynchronous on
    a GPU; reading ``tokens`` synchronises.
    """

    batch: int
    """Number of sequences, B."""
    capacity: int
    """Tokens per sequence that the cache holds, prompt included."""
    on_host_clock: bool = False
    """True where every call returns with its tokens on the host, from an engine with streams of its
    own: its calls are timed by the host's clock, since events of torch's stream do not see it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps up to now did otherwise than they should; for the row's record."""
        return ()

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> None:
        """Run ``prompts`` (B token-id lists, lengths may differ) and choose each first new token.

        The first new token comes from the logits of the prompt's last position. Raises
        UsageError when a prompt is empty, there are not B of them, or one exceeds the capacity.
        """

    @abstractmethod
    def step(self) -> None:
        """Feed the last chosen token of every sequence and choose the next.

        Raises UsageError when the cache is full.
        """

    @abstractmethod
    def tokens(self) -> list[int]:
        """The last chosen token of each sequence, length B."""

    @abstractmethod
    def close(self) -> None:
        """Free the cache. The decoder is of no use afterwards."""

    @staticmethod
    def check_chunk(prefill_chunk: int | None) -> None:
        """Raise UsageError for a prefill chunk without a token."""
        if prefill_chunk is not None and prefill_chunk < 1:
            raise UsageError(
                f"a prefill chunk must have 1 token or more, not {prefill_chunk}.",
                hint="--prefill-chunk 512, or full for one pass",
            )

    def check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise UsageError where ``prompts`` do not suit this decoder."""
        if len(prompts) != self.batch:
            raise UsageError(f"{len(prompts)} prompts given to a decoder of batch {self.batch}.")
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise UsageError(f"prompt {index} is empty: it has no token to continue.")
            if len(prompt) > self.capacity:
                raise UsageError(
                    f"prompt {index} has {len(prompt)} tokens, the cache holds {self.capacity}."
                )


@dataclass(frozen=True, slots=True)
class Window:
    """A token sequence of which the tokens from ``score_from`` on are to be scored.

    ``1 <= score_from < len(ids)``; token i is predicted from tokens 0 … i−1.
    """

    ids: tuple[int, ...]
    score_from: int


@dataclass(frozen=True, slots=True)
class WindowScore:
    """Natural-log probability of each scored token, and whether each was the most likely one."""

    logprobs: tuple[float, ...]
    greedy: bool


LogitsVisitor = Callable[["torch.Tensor"], None]
"""Called with logits float[n, V], in the engine's own type and on its device, while scoring.

The rows are the scored tokens' predictions: windows in their order, tokens in theirs, ``n`` at
most 256 at a time. A call must not keep the tensor.
"""


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of leading tokens that two sequences have in common."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(index for index in range(shorter) if one[index] != other[index])
