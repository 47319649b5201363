"""Which of several things no other beats in everything at once, where figures have intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Better = Callable[[T, T], bool]
"""``better(a, b)``: a is better than b in one measure, beyond doubt. False both ways is a tie."""


def dominates(a: T, b: T, measures: Sequence[Better[T]]) -> bool:
    """True when ``a`` is worse than ``b`` in no measure, and better in at least one."""
    return any(better(a, b) for better in measures) and not any(better(b, a) for better in measures)


def front(items: Sequence[T], measures: Sequence[Better[T]]) -> tuple[T, ...]:
    """The items that no other dominates, in their order.

    With exact figures this is the Pareto front. Ties are not transitive, so in rare cases three
    or more items dominate each other in a ring; then none of the ring is left.
    """
    return tuple(
        item
        for item in items
        if not any(dominates(other, item, measures) for other in items if other is not item)
    )
