"""Figures in words, the same in the findings of every study."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.study_records import Ratio
from llmfit.units import format_ratio


def takes(speed: Ratio, than: str) -> str:
    """A speed-up over ``than`` as what its subject does: ``is 2.00× as fast as eager``.

    One within the noise is called none.
    """
    if not speed.real:
        return f"differs from {than} in time by nothing beyond the noise"
    if speed.value > 1:
        return f"is {format_ratio(speed.value)} as fast as {than}"
    return f"takes {format_ratio(1 / speed.value)} as long as {than}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; empty for none."""
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)
