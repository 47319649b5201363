"""What the tests of decoders share: prompts, and greedy continuation by a ``Decoder``."""

from __future__ import annotations

from llmfit.decode.base import Decoder

PROMPTS = [list(range(20, 45)), list(range(300, 307)), [7]]


def continue_with(decoder: Decoder, prompts: list[list[int]], new: int) -> list[list[int]]:
    """``new`` greedy tokens of each prompt."""
    decoder.prefill(prompts)
    columns = [decoder.tokens()]
    for _ in range(new - 1):
        decoder.step()
        columns.append(decoder.tokens())
    return [list(row) for row in zip(*columns, strict=True)]
