"""``Found`` ─► what must hold of it, and what it says in sentences."""

from __future__ import annotations

from itertools import pairwise

from llmfit.benchmark import speedup
from llmfit.studies.base import share_of
from llmfit.studies.checkpointing.measuring import Found, Measured, Sizes
from llmfit.studies.checkpointing.subjects import EVERY_SECOND, OFF, ON, SELECTIVE
from llmfit.studies.reference import CHECKPOINTING
from llmfit.studies.words import listed, takes
from llmfit.study_records import StudyCheck
from llmfit.units import format_bytes, format_percent, format_ratio

_GRADIENT_TOLERANCE = 1e-5
"""Relative; on a CPU gradients are equal bit by bit, a GPU's kernels add in changing order."""


def checks(found: Found) -> tuple[StudyCheck, ...]:
    """Gradients are those without checkpointing; saved bytes fall, to what is computed."""
    return _gradients_check(found), _falling_check(found), _inputs_check(found)


def _gradients_check(found: Found) -> StudyCheck:
    name = f"{found.subject}: the same gradients"
    known = [m for m in found.modes if m.mode != OFF and m.difference is not None]
    if not known:
        return StudyCheck(name=name, holds=None, detail="no two modes fit")
    details = (
        f"{m.mode} equal bit by bit"
        if m.difference == 0
        else f"{m.mode} apart by {m.difference:.1e} of their norm"
        for m in known
    )
    holds = all(m.difference is not None and m.difference <= _GRADIENT_TOLERANCE for m in known)
    return StudyCheck(name=name, holds=holds, detail=", ".join(details))


def _falling_check(found: Found) -> StudyCheck:
    """Off keeps most, on least."""
    name = f"{found.subject}: less kept for the backward pass"
    order = {OFF: 0, SELECTIVE: 1, EVERY_SECOND: 1, ON: 2}
    known = sorted(
        (m for m in found.modes if m.saved_bytes is not None), key=lambda m: order[m.mode]
    )
    kept = [m.saved_bytes or 0 for m in known]
    if len(kept) < 2:
        return StudyCheck(name=name, holds=None, detail="no two modes fit")
    return StudyCheck(
        name=name,
        holds=all(more > less for more, less in pairwise(kept)),
        detail=", ".join(f"{m.mode} {format_bytes(m.saved_bytes or 0)}" for m in known),
    )


def _inputs_check(found: Found) -> StudyCheck:
    """With checkpointing a layer keeps its input alone; the rest is that of a model without any."""
    name = f"{found.subject}: on keeps one input a layer"
    counted, outside = found.by_mode(ON).saved_bytes, found.outside_bytes
    if counted is None or outside is None:
        return StudyCheck(name=name, holds=None, detail="on does not fit")
    computed = found.input_bytes + outside
    return StudyCheck(
        name=name,
        holds=counted == computed,
        detail=(
            f"{counted:,} bytes counted, {computed:,} computed: {found.input_bytes:,} of inputs "
            f"and {outside:,} outside the layers"
        ),
    )


def flop_checks(found: Found, sizes: Sizes) -> tuple[StudyCheck, ...]:
    """Recomputing costs the operations of the layers' forward pass, less their last product."""
    return (
        _extra_check("on runs the layers' forward pass again", found, sizes, ON),
        _extra_check("selective repeats no matrix product", found, sizes, SELECTIVE),
    )


def _recomputed_flops(sizes: Sizes) -> int:
    """Operations that checkpointing adds to a step of the own Transformer.

    The forward pass of its layers without each one's last matrix product: no backward needs that
    one's result, and torch stops where all that was thrown away is there again.
    """
    tokens = sizes.batch * sizes.tokens
    head = 2 * tokens * sizes.width * sizes.vocabulary
    last = 2 * tokens * sizes.width * sizes.inner
    return sizes.shape().forward_flops(sizes.batch, sizes.tokens) - head - sizes.layers * last


def _extra_check(name: str, found: Found, sizes: Sizes, mode: str) -> StudyCheck:
    off, other = (m.result and m.result.flops for m in (found.by_mode(OFF), found.by_mode(mode)))
    if not off or not other:
        return StudyCheck(name=name, holds=None, detail="no operations were counted")
    computed = _recomputed_flops(sizes) if mode == ON else 0
    return StudyCheck(
        name=name,
        holds=other - off == computed,
        detail=(
            f"{other - off:,} operations more than off are counted, {computed:,} computed: "
            f"{format_ratio(other / off)} of off's"
        ),
    )


def findings(found: Found, *, published: bool = False) -> tuple[str, ...]:
    """A sentence for each mode with checkpointing, against off."""
    off = found.by_mode(OFF)
    return tuple(
        _finding(found.subject, off, m, published=published and m.mode in CHECKPOINTING)
        for m in found.modes
        if m.mode != OFF and m.result is not None and off.result is not None
    )


def _finding(subject: str, off: Measured, other: Measured, *, published: bool) -> str:
    assert off.result is not None  # callers have seen to it
    assert other.result is not None
    parts = []
    kept = share_of(other.saved_bytes, off.saved_bytes).value
    if isinstance(kept, float):
        parts.append(f"{format_percent(kept)} of the tensors' bytes are kept for the backward pass")
    peak = share_of(other.result.peak_bytes, off.result.peak_bytes).value
    if isinstance(peak, float):
        parts.append(f"the peak is {format_percent(peak)} of off's")
    time = takes(speedup(off.result, other.result), "off's")
    if off.result.flops and other.result.flops:
        operations = format_ratio(other.result.flops / off.result.flops)
        parts += [f"a step has {operations} off's operations", f"it {time}"]
    else:
        parts.append(f"a step {time}")
    theirs = ""
    if published:
        first, second = CHECKPOINTING[OFF], CHECKPOINTING[other.mode]
        peak = share_of(second.memory_bytes, first.memory_bytes).value
        theirs = (
            f" (published: {format_percent(float(peak or 0))} of the memory, "
            f"{format_ratio(second.seconds / first.seconds)} the time)"
        )
    return f"{subject}, {other.mode}: {listed(parts)}{theirs}."
