"""``Found`` at all lengths ─► how time and operations grow with the new tokens."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.studies.growth import Growth, growth
from llmfit.studies.kv_cache.measuring import Found


def time_growth(found: Sequence[Found], *, cached: bool, fit_from: int) -> Growth | None:
    """Of the time; None with fewer than two lengths from ``fit_from`` on."""
    times = [(each.cached if cached else each.plain).latency_s.median for each in found]
    return growth([each.new_tokens for each in found], times, first=fit_from)


def flops_growth(found: Sequence[Found], *, cached: bool, fit_from: int) -> Growth | None:
    """Of the operations in closed form; None also where there is none."""
    flops = [each.cached_flops if cached else each.plain_flops for each in found]
    return growth([each.new_tokens for each in found], flops, first=fit_from)
