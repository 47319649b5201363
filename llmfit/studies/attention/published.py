"""The published figures of standard and flash attention ─► what they say when reckoned with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfit.studies.attention.growth_of import FIT_FROM
from llmfit.studies.attention.kernels import FLASH, STANDARD
from llmfit.studies.growth import growth
from llmfit.studies.reference import ATTENTION, ReferenceStep

GPU = "RTX 4090"
LENGTHS = tuple(sorted(ATTENTION))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """The published standard's time and memory ÷ the published flash's."""

    faster: float
    less: float


def published_gain(length: int | None) -> Gain | None:
    """What is published of that length; None where nothing is."""
    if length is None or length not in ATTENTION:
        return None
    slow, fast = ATTENTION[length]
    assert slow.memory_bytes is not None and fast.memory_bytes is not None  # all are given
    return Gain(faster=slow.seconds / fast.seconds, less=slow.memory_bytes / fast.memory_bytes)


def published_steps() -> tuple[tuple[str, Sequence[ReferenceStep]], ...]:
    """The kernels that figures are published of, each with them in the order of ``LENGTHS``."""
    return tuple(
        (kernel, [ATTENTION[length][index] for length in LENGTHS])
        for index, kernel in enumerate((STANDARD, FLASH))
    )


def about_published() -> str:
    """What the published figures say when they are reckoned with."""
    longest = LENGTHS[-1]
    flash = [ATTENTION[length][1] for length in LENGTHS]
    operations = 4 * 4 * 12 * longest**2 * 64  # two products, a multiply-add as two
    rate = operations / flash[-1].seconds / 1e12
    grown = growth(LENGTHS, [step.seconds for step in flash], first=FIT_FROM)
    assert grown is not None  # there are five lengths
    return (
        "its memory is, with MB read as MiB, exactly that of two N × N matrices (standard) and of "
        "queries, keys, values and output (flash); its flash times grow with the exponent "
        f"{grown.exponent:.2f}, the operations with 2, so that {longest:,} tokens would run at "
        f"{rate:.0f} TFLOP/s, or half of that if causal"
    )
