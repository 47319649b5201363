"""``Found`` ─► what must hold of it, and what it says in sentences."""

from __future__ import annotations

from itertools import pairwise

from llmfit.benchmark import speedup
from llmfit.studies.accumulation.measuring import Found, Measured
from llmfit.studies.accumulation.norms import PARTS, ROWS
from llmfit.studies.words import takes
from llmfit.study_records import StudyCheck
from llmfit.units import format_bytes, format_percent

_TOLERANCE = 1e-5
"""Relative, of gradients and losses in float32, which are added in another order."""
_FAR = 100
"""A difference so many times larger than rounding is not one of rounding."""


def checks(found: Found) -> tuple[StudyCheck, ...]:
    """A batch in parts is the whole batch, in less memory, and the pitfalls are real."""
    return (
        _gradients_check(found),
        _last_check(found),
        _loss_check(found),
        _naive_check(found),
        _equal_lengths_check(found),
        _memory_check(found),
        _batch_norm_check(found),
    )


def _gradients_check(found: Found) -> StudyCheck:
    name = "weighted by tokens, the gradients are the whole batch's"
    compared = found.compared
    if not compared:
        return StudyCheck(name=name, holds=None, detail="the whole batch does not fit")
    worst = max(compared, key=lambda m: m.difference or 0.0)
    assert worst.difference is not None  # those in compared have one
    return StudyCheck(
        name=name,
        holds=worst.difference <= _TOLERANCE,
        detail=f"at most {worst.difference:.1e} of their norm apart, in {worst.name}",
    )


def _last_check(found: Found) -> StudyCheck:
    """An uneven last micro-batch counts as its tokens do; without it the gradients are others."""
    name = "an uneven last micro-batch is included"
    for m in found.compared:
        if m.without_last is not None:
            kept, lost = m.difference or 0.0, m.without_last
            return StudyCheck(
                name=name,
                holds=kept <= _TOLERANCE < lost,
                detail=f"{m.name}: {kept:.1e} apart with it, {lost:.1e} without it",
            )
    return StudyCheck(name=name, holds=None, detail="no size leaves an uneven last one")


def _loss_check(found: Found) -> StudyCheck:
    name = "the loss is reported at its true scale"
    whole = next((m.loss for m in found.measured if m.steps == 1 and m.loss is not None), None)
    losses = [m.loss for m in found.measured if m.steps > 1 and m.loss is not None]
    if whole is None or not losses:
        return StudyCheck(name=name, holds=None, detail="the whole batch does not fit")
    worst = max(abs(loss / whole - 1) for loss in losses)
    return StudyCheck(
        name=name,
        holds=worst <= _TOLERANCE,
        detail=f"{whole:.5f} of the whole batch, in parts at most {worst:.1e} of it off",
    )


def _naive_check(found: Found) -> StudyCheck:
    """The pitfall is real: what is no rounding separates the mean of means from the batch."""
    name = "a mean of the parts' means is another batch's gradient"
    compared = found.compared
    if not compared:
        return StudyCheck(name=name, holds=None, detail="the whole batch does not fit")
    least = min(m.naive_difference or 0.0 for m in compared)
    most = max(m.naive_difference or 0.0 for m in compared)
    rounding = max(m.difference or 0.0 for m in compared)
    return StudyCheck(
        name=name,
        holds=least > _FAR * rounding,
        detail=f"{least:.1e} to {most:.1e} of its norm apart, rounding is {rounding:.1e}",
    )


def _equal_lengths_check(found: Found) -> StudyCheck:
    """With equally many tokens in every part both weights are the same."""
    name, equal = "with equally long sequences the mean of means is right", found.equal
    if equal is None:
        return StudyCheck(name=name, holds=None, detail="no size divides the batch evenly")
    return StudyCheck(
        name=name,
        holds=equal.difference <= _TOLERANCE,
        detail=f"{equal.name}: {equal.difference:.1e} of their norm apart",
    )


def _memory_check(found: Found) -> StudyCheck:
    name = "smaller micro-batches need less memory"
    working = [
        m.result.working_bytes
        for m in found.measured
        if m.result is not None and m.result.working_bytes is not None
    ]
    if len(working) < 2:
        return StudyCheck(name=name, holds=None, detail="the device counts no memory of a step")
    return StudyCheck(
        name=name,
        holds=all(more > less for more, less in pairwise(working)),
        detail="beyond model and optimizer " + ", ".join(map(format_bytes, working)),
    )


def _batch_norm_check(found: Found) -> StudyCheck:
    """What accumulation does not keep: statistics over the batch."""
    norms = found.norms
    return StudyCheck(
        name="batch norm sees the micro-batch, layer norm does not",
        holds=norms.layer <= _TOLERANCE and norms.batch > _FAR * _TOLERANCE,
        detail=(
            f"gradients of {ROWS} rows in {PARTS} parts: {norms.batch:.1e} of their norm "
            f"apart with batch norm, {norms.layer:.1e} with layer norm"
        ),
    )


def findings(found: Found) -> tuple[str, ...]:
    """What the smallest parts cost and save, and what the wrong weights would do."""
    sentences = []
    first = next((m for m in found.measured if m.steps == 1 and m.result is not None), None)
    last = next((m for m in reversed(found.measured) if m.steps > 1 and m.result is not None), None)
    if first is not None and last is not None:
        sentences.append(_cost(first, last))
    compared = found.compared
    if compared:
        worst = max(compared, key=lambda m: m.naive_difference or 0.0)
        sentences.append(
            "Where every micro-batch weighs the same, gradients are up to "
            f"{format_percent(worst.naive_difference or 0.0)} of their norm off ({worst.name}, "
            f"loss {worst.mean_of_means:.4f} for {worst.loss:.4f}); weighted by tokens at most "
            f"{max(m.difference or 0.0 for m in compared):.1e}."
        )
    return tuple(sentences)


def _cost(first: Measured, last: Measured) -> str:
    assert first.result is not None  # the caller has seen to it
    assert last.result is not None
    time = takes(speedup(first.result, last.result), "the whole batch's")
    peaks = first.result.peak_bytes, last.result.peak_bytes
    if peaks[0] is None or peaks[1] is None:
        return f"In {last.name} a batch is the same batch; its step {time}."
    return (
        f"In {last.name} a batch of {first.micro} peaks at {format_bytes(peaks[1])} and not "
        f"{format_bytes(peaks[0])} ({format_percent(peaks[1] / peaks[0])}); its step {time}."
    )
