"""What a format brought over another on this machine: two comparable records, as a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfit.errors import UsageError
from llmfit.planning.comparing.comparable import require_comparable
from llmfit.planning.comparing.differences import compare_quality
from llmfit.records import RunRecord
from llmfit.units import format_percent, format_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a technique changes, in words for people; None where no figure is known."""

    memory: str | None
    speed: str | None
    """A factor on the rate; above 1 is faster."""
    quality: str | None
    source: str
    """Where the figures are from, or on what they were measured."""


def measured_effect(records: Sequence[RunRecord], baseline: str, changed: str) -> Effect | None:
    """The effect of the newest row of ``changed`` over a comparable one of ``baseline``.

    ``records`` are newest first. None where no two rows of the same machine, versions, model and
    workload are there.
    """
    rows = [row for row in records if row.status == "ok" and row.decode is not None]
    for row in rows:
        if row.backend != changed:
            continue
        for other in rows:
            if other.backend == baseline and _comparable(row, other):
                return _effect(row, other)
    return None


def _comparable(a: RunRecord, b: RunRecord) -> bool:
    try:
        require_comparable(a, b)
    except UsageError:
        return False
    return True


def _effect(row: RunRecord, other: RunRecord) -> Effect:
    assert row.decode is not None and other.decode is not None
    speed = row.decode.tokens_per_s.median / other.decode.tokens_per_s.median
    return Effect(
        memory=_memory(row, other),
        speed=format_ratio(speed),
        quality=_quality(row, other),
        source=_measured_on(row, other),
    )


def _memory(row: RunRecord, other: RunRecord) -> str | None:
    """Change of the peak; None where it is unknown or of another device's memory."""
    if row.memory is None or other.memory is None or row.memory.device != other.memory.device:
        return None
    own, base = row.memory.peak_bytes, other.memory.peak_bytes
    if own is None or not base:
        return None
    return _signed(own / base - 1, decimals=0)


def _quality(row: RunRecord, other: RunRecord) -> str | None:
    """Change of the token perplexity; None where one of them was not scored alike."""
    if row.perplexity is None or other.perplexity is None:
        return None
    difference = row.difference
    if difference is None or difference.reference != other.backend:
        difference = compare_quality(row, other)
    if difference is None or difference.perplexity_ratio is None:
        return None
    change = difference.perplexity_ratio
    tie = ", a tie" if change.tie else ""
    return f"perplexity {_signed(change.mean, decimals=1)}{tie}"


def _signed(share: float, *, decimals: int) -> str:
    text = format_percent(share, decimals=decimals)
    return f"+{text}" if share > 0 and not text.startswith("0 ") else text


def _measured_on(row: RunRecord, other: RunRecord) -> str:
    parts = [f"measured here: {row.backend} over {other.backend}"]
    if row.plan is not None:
        work = row.plan.workload
        parts.append(f"{row.plan.model.name}, {work.prompt_tokens} + {work.new_tokens} tokens")
    if row.started_at is not None:
        parts.append(row.started_at[:10])
    return ", ".join(parts)
