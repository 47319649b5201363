"""``Found`` at all lengths ─► how a kernel's time and memory grow with the length."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmfit.studies.attention.kernels import MATH, STANDARD
from llmfit.studies.attention.measuring import Found, Variant
from llmfit.studies.growth import Growth, growth

FIT_FROM = 1024
"""Below, fixed costs hide the growth."""
_SQUARE = (STANDARD, MATH)
"""Kernels that hold the N × N scores in memory."""


def time_growth(found: Iterable[Found], variant: Variant, kernel: str) -> Growth | None:
    """Of the time; None for a kernel that ran at fewer than two lengths from ``FIT_FROM`` on."""
    return _growth_of(found, variant, kernel, lambda each: each.seconds)


def memory_growth(found: Iterable[Found], variant: Variant, kernel: str) -> Growth | None:
    """Of the memory; None as of the time."""
    return _growth_of(found, variant, kernel, lambda each: each.total_bytes)


def memory_theory(kernel: str) -> int:
    """The exponent that the bytes it holds have in theory; that of the operations is 2 for all."""
    return 2 if kernel in _SQUARE else 1


def _growth_of(
    found: Iterable[Found], variant: Variant, kernel: str, cost: Callable[[Found], float | None]
) -> Growth | None:
    own = [
        each
        for each in found
        if (each.variant, each.kernel) == (variant, kernel) and each.result is not None
    ]
    lengths = [each.length or 0 for each in own]
    return growth(lengths, [cost(each) for each in own], first=FIT_FROM)
