"""Texts of about so many tokens of a tokenizer that only the server has.

    seed, number of the request ─► words ─► the server counts them once ─► words for the length

No two are the same, so that no server answers one from its cache of earlier prompts.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cache

from llmfit.models import data_path

_WORDS_PER_TOKEN = 0.75
"""Of English text, where no server tells. Source: OpenAI's rule of thumb for its tokenizers."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Seeded texts of ``words`` words."""

    seed: int
    words: int
    counted: bool = False
    """The server has told how many tokens words of this kind are."""

    def text(self, number: int) -> str:
        """The text of request ``number``; the same for the same seed."""
        chosen = random.Random(f"{self.seed}-{number}")
        return " ".join(chosen.choice(_vocabulary()) for _ in range(self.words))


async def fitted(seed: int, tokens: int, count: Callable[[str], Awaitable[int | None]]) -> Prompts:
    """Prompts of about ``tokens`` tokens, by what ``count`` tells of two of them.

    ``count`` gives None where the server does not say; then a word is 4/3 tokens. What comes
    around the text, such as BOS or a chat's template, is part of the tokens.
    """
    few = Prompts(seed, max(1, round(tokens * _WORDS_PER_TOKEN / 4)))
    many = replace(few, words=max(2, 2 * few.words))
    least, more = await count(few.text(-1)), await count(many.text(-2))
    if least is None or more is None or more <= least:
        return Prompts(seed, max(1, round(tokens * _WORDS_PER_TOKEN)))
    per_word = (more - least) / (many.words - few.words)
    around = least - per_word * few.words
    return Prompts(seed, max(1, round((tokens - around) / per_word)), counted=True)


@cache
def _vocabulary() -> tuple[str, ...]:
    """The words of the text that comes with llmfit."""
    text = data_path("text.txt").read_text("utf-8")
    return tuple(sorted({word.strip(".,;:!?\"'()").lower() for word in text.split()} - {""}))
