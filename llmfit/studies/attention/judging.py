"""``Found`` ─► what must hold of it, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmfit.benchmark import speedup
from llmfit.studies.attention.growth_of import (
    FIT_FROM,
    memory_growth,
    memory_theory,
    time_growth,
)
from llmfit.studies.attention.kernels import FLASH, STANDARD
from llmfit.studies.attention.measuring import CAUSAL, FULL, GROUPED, Found, Sizes, Variant, saved
from llmfit.studies.attention.published import GPU, published_gain
from llmfit.studies.words import takes
from llmfit.study_records import BenchmarkResult, StudyCheck
from llmfit.units import format_ratio

_ERROR_EPS = 16
"""Most that an output may be off, in machine epsilons of its type, of values about 1 in size."""


def checks(found: Sequence[Found], sizes: Sizes) -> tuple[StudyCheck, ...]:
    """Errors within the rounding of their type, and memory that grows as it must."""
    import torch

    limit = _ERROR_EPS * torch.finfo(getattr(torch, sizes.dtype)).eps
    errors = [(each.trial.error, each) for each in found if each.trial.error is not None]
    judged = [
        StudyCheck(
            name="all kernels compute the same attention",
            holds=all(error <= limit for error, _ in errors) if errors else None,
            detail="no kernel ran" if not errors else _worst(errors, limit),
        )
    ]
    # Fixed parts, such as buffers of each thread, can only lower an exponent.
    for kernel, name, low, high in (
        (STANDARD, "standard attention's memory grows as the square of the length", 1.75, 2.05),
        (FLASH, "flash attention's memory grows no faster than the length", 0.0, 1.05),
    ):
        grown = memory_growth(found, FULL, kernel)
        judged.append(
            StudyCheck(
                name=name,
                holds=None if grown is None else low <= grown.exponent <= high,
                detail=f"{kernel} did not run at two lengths from {FIT_FROM:,} tokens on"
                if grown is None
                else f"exponent {grown.exponent:.3f}, {memory_theory(kernel)} in theory",
            )
        )
    return tuple(judged)


def _worst(errors: Sequence[tuple[float, Found]], limit: float) -> str:
    error, where = max(errors, key=lambda pair: pair[0])
    return (
        f"largest error {error:.1e} ({where.variant.name} {where.kernel}, "
        f"{where.length:,} tokens), {limit:.1e} allowed"
    )


def findings(found: Sequence[Found]) -> tuple[str, ...]:
    """Flash against standard, where it begins to gain, what a mask saves, and how all grow."""
    found = [each for each in found if each.result is not None]
    return tuple(
        sentence
        for sentence in (
            _best_finding(found),
            _from_where_finding(found),
            *(_causal_finding(found, kernel) for kernel in (STANDARD, FLASH)),
            _growth_finding(found),
            _grouped_finding(found),
        )
        if sentence
    )


def _best_finding(found: Sequence[Found]) -> str | None:
    length = _longest(found, (STANDARD, FLASH), (FULL,))
    if not length:
        return None
    base, slow = _at(found, STANDARD, FULL, length)
    each, fast = _at(found, FLASH, FULL, length)
    text = f"At {length:,} tokens flash {takes(speedup(slow, fast), 'standard')}"
    less = saved(base, each)
    if less is not None:
        text += f", and standard takes {format_ratio(less)} the memory of flash"
    published = published_gain(length)
    if published is not None:
        gains = f"{format_ratio(published.faster)} and {format_ratio(published.less)}"
        text += f"; published for an {GPU}: {gains}"
    return text + "."


def _from_where_finding(found: Sequence[Found]) -> str | None:
    """From which length on flash is faster, at every longer one too."""
    slow, fast = (
        {each.length: each for each in found if (each.kernel, each.variant) == (kernel, FULL)}
        for kernel in (STANDARD, FLASH)
    )
    lengths = sorted(length for length in slow.keys() & fast.keys() if length is not None)
    faster: list[int] = []
    for length in reversed(lengths):
        (_, a), (_, b) = (_at(found, kernel, FULL, length) for kernel in (STANDARD, FLASH))
        ratio = speedup(a, b)
        if not (ratio.real and ratio.value > 1):
            break
        faster.append(length)
    if not lengths:
        return None
    if not faster:
        return f"At {lengths[-1]:,} tokens flash is not faster than standard beyond the noise."
    if len(faster) == len(lengths):
        return f"Flash is faster than standard at every length measured, from {lengths[0]:,} on."
    return f"Flash is faster than standard from {faster[-1]:,} tokens on."


def _causal_finding(found: Sequence[Found], kernel: str) -> str | None:
    """Half of the scores are of later keys: does the kernel leave them out?"""
    length = _longest(found, (kernel,), (FULL, CAUSAL))
    if not length:
        return None
    _, full = _at(found, kernel, FULL, length)
    _, causal = _at(found, kernel, CAUSAL, length)
    ratio = speedup(full, causal)
    text = f"Causal {kernel} at {length:,} tokens {takes(ratio, f'{kernel} over all keys')}"
    if not ratio.real:
        return f"{text}."
    share = 1 / ratio.value
    if share < 0.8:
        why = "it leaves out keys that are masked, half of all"
    elif share < 1:
        why = "well short of the 2× that leaving out the masked scores, half of all, would give"
    else:
        why = "it computes masked scores too, and the mask costs time"
    return f"{text}: {why}."


def _growth_finding(found: Sequence[Found]) -> str | None:
    parts = []
    for kernel in (STANDARD, FLASH):
        time, memory = time_growth(found, FULL, kernel), memory_growth(found, FULL, kernel)
        if time is None or memory is None:
            return None
        parts.append(f"{kernel}'s time {time.exponent:.2f} and its memory {memory.exponent:.2f}")
    return (
        f"Exponents of growth from {FIT_FROM:,} tokens on: {', '.join(parts)}; in theory 2 and 2, "
        "2 and 1, for flash computes as much as standard and stores less."
    )


def _grouped_finding(found: Sequence[Found]) -> str | None:
    length = _longest(found, (STANDARD, FLASH), (GROUPED,))
    if not length:
        return None
    (_, slow), (_, fast) = (_at(found, kernel, GROUPED, length) for kernel in (STANDARD, FLASH))
    gain = takes(speedup(slow, fast), "standard")
    return f"With grouped queries at {length:,} tokens flash {gain}."


def _longest(found: Iterable[Found], kernels: Sequence[str], variants: Sequence[Variant]) -> int:
    """The greatest length that all of those ran at; 0 for none."""
    found = list(found)
    lengths = [
        {each.length for each in found if (each.kernel, each.variant) == (kernel, variant)}
        for kernel in kernels
        for variant in variants
    ]
    return max((length or 0 for length in set.intersection(*lengths)), default=0)


def _at(
    found: Iterable[Found], kernel: str, variant: Variant, length: int
) -> tuple[Found, BenchmarkResult]:
    """The case and its figures; it ran (``_longest`` tells)."""
    return next(
        (each, each.result)
        for each in found
        if (each.kernel, each.variant, each.length) == (kernel, variant, length)
        and each.result is not None
    )
