"""``Found`` ─► what must hold of it, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.studies.kv_cache.generators import OWN
from llmfit.studies.kv_cache.growth_of import time_growth
from llmfit.studies.kv_cache.measuring import Found
from llmfit.studies.kv_cache.published import published_speedup, published_text
from llmfit.studies.words import takes
from llmfit.study_records import StudyCheck
from llmfit.units import format_number, format_ratio


def checks(both: Sequence[Sequence[Found]]) -> tuple[StudyCheck, ...]:
    """Of each model the same tokens and the bytes predicted; of the own one its operations."""
    judged = []
    for found in both:
        name = found[0].model
        wrong = [each for each in found if not each.agreement.holds]
        odd = [each for each in found if each.agreement.detail.startswith("sequence")]
        shown = (wrong or odd or list(found))[-1]
        judged.append(
            StudyCheck(
                name=f"{name}: the cache changes no token",
                holds=not wrong,
                detail=f"{shown.new_tokens:,} new tokens: {shown.agreement.detail}",
            )
        )
        other = [each for each in found if each.cache_bytes != each.predicted_bytes]
        last = (other or list(found))[-1]
        judged.append(
            StudyCheck(
                name=f"{name}: the cache is as large as predicted",
                holds=not other,
                detail=f"{last.new_tokens:,} new tokens: {last.cache_bytes:,} bytes, "
                f"{last.predicted_bytes:,} predicted",
            )
        )
    return (*judged, _flops_check(both[0]))


def _flops_check(own: Sequence[Found]) -> StudyCheck:
    """Counted operations of the own decoder against their closed form."""
    pairs = [
        (each, name, counted, expected)
        for each in own
        for name, counted, expected in (
            ("with", each.cached.flops, each.cached_flops),
            ("without", each.plain.flops, each.plain_flops),
        )
        if counted is not None
    ]
    name = f"{OWN}: the operations counted are those of the closed form"
    if not pairs:
        return StudyCheck(name=name, holds=None, detail="none were counted at these lengths")
    wrong = [pair for pair in pairs if pair[2] != pair[3]]
    each, how, counted, expected = (wrong or pairs)[-1]
    return StudyCheck(
        name=name,
        holds=not wrong,
        detail=f"{each.new_tokens:,} new tokens {how} cache: {counted:,} counted, "
        f"{expected:,} in closed form",
    )


def findings(both: Sequence[Sequence[Found]], fit_from: int) -> tuple[str, ...]:
    """Of each model its gain at the greatest length, and how time grows."""
    return tuple(
        sentence
        for found in both
        for sentence in (_gain_finding(found), _growth_finding(found, fit_from))
        if sentence
    )


def _gain_finding(found: Sequence[Found]) -> str:
    each = found[-1]
    ratio = each.speedup
    text = (
        f"{each.model} at {each.new_tokens:,} new tokens: generation with the cache "
        f"{takes(ratio, 'generation without')} "
        f"({format_number(each.cached.throughput_per_s.median)} against "
        f"{format_number(each.plain.throughput_per_s.median)} tokens/s)"
    )
    if not ratio.real:
        return f"{text}."
    low, high = published_speedup()
    where = "below" if ratio.value < low else "above" if ratio.value > high else "within"
    return f"{text}, {where} the published {published_text()}."


def _growth_finding(found: Sequence[Found], fit_from: int) -> str | None:
    cached, plain = (
        time_growth(found, cached=cached, fit_from=fit_from) for cached in (True, False)
    )
    if cached is None or plain is None:
        return None
    gains = [format_ratio(each.speedup.value) for each in (found[0], found[-1])]
    return (
        f"{found[0].model}: time grows with the exponent {cached.exponent:.2f} of the new tokens "
        f"with the cache and {plain.exponent:.2f} without, and its speed-up goes from {gains[0]} "
        f"at {found[0].new_tokens:,} to {gains[1]} at {found[-1].new_tokens:,}."
    )
