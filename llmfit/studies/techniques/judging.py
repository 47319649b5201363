"""Found ─► findings: how many figures are inside their ranges, and a sentence a technique."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.studies.reference import Expected
from llmfit.studies.techniques.found import (
    ASPECTS,
    INSIDE,
    Aspect,
    Found,
    Loss,
    inside,
    range_of,
    range_text,
)
from llmfit.studies.words import listed
from llmfit.study_records import Ratio
from llmfit.units import format_percent, format_ratio


def findings(found: Sequence[Found], expected: dict[str, Expected]) -> tuple[str, ...]:
    """How many figures are inside, and a sentence for each technique that was measured."""
    verdicts = [
        verdict
        for each in found
        for aspect in ASPECTS
        if (
            verdict := inside(
                each.value(aspect), range_of(expected[each.technique], aspect), aspect
            )
        )
        is not None
    ]
    summary = f"{sum(verdicts)} of {len(verdicts)} figures are inside the range expected of them."
    told = [_sentence(each, expected[each.technique]) for each in found if each.status == "ok"]
    return (summary, *told)


def _sentence(found: Found, expected: Expected) -> str:
    parts = []
    saved = found.memory_saved
    if saved is not None:
        size = format_percent(abs(saved))
        said = f"saves {size} of the memory" if saved >= 0 else f"needs {size} more memory"
        parts.append(said + _aside(_beside(found, expected, "memory")))
    if found.speed is not None:
        parts.append(_speed(found.speed, _beside(found, expected, "speed")))
    if found.lost is not None:
        parts.append(_lost(found.lost, _beside(found, expected, "quality")))
    return f"{found.technique} {listed(parts)}."


def _speed(speed: Ratio, beside: str | None) -> str:
    """Not by ``words.takes``: the range that stands beside it is of the speed, not of the time."""
    factor = format_ratio(speed.value)
    if not speed.real:
        return "shows no difference in speed beyond the noise" + _aside(factor, beside)
    return f"runs at {factor} the baseline's speed" + _aside(beside)


def _lost(lost: Loss, beside: str | None) -> str:
    aside = _aside(lost.of, beside)
    if lost.share == 0:
        return f"loses no accuracy{aside}"
    verb = "loses" if lost.share > 0 else "gains"
    noise = ", which is within the noise" if lost.tie else ""
    return f"{verb} {format_percent(abs(lost.share), decimals=2)} of accuracy{noise}{aside}"


def _beside(found: Found, expected: Expected, aspect: Aspect) -> str | None:
    within = range_of(expected, aspect)
    verdict = inside(found.value(aspect), within, aspect)
    if verdict is None:
        return None
    return f"expected {range_text(within, aspect)}: {INSIDE[verdict]}"


def _aside(*said: str | None) -> str:
    known = [each for each in said if each is not None]
    return f" ({'; '.join(known)})" if known else ""
