"""What would change a verdict: the same choice made again with one bound moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from llmfit.planning.verdict.candidate import Candidate
from llmfit.planning.verdict.constraints import OBJECTIVES, Constraints, Objective
from llmfit.planning.verdict.policy import Bound, Choice, broken, choose
from llmfit.planning.verdict.wording import (
    STATUS_WORDS,
    memory_text,
    place_text,
    rate_number,
    rate_text,
)
from llmfit.units import format_bytes, format_percent, format_rate

_MOST_OF_A_KIND = 2
"""Of one kind of change those told: the nearest."""


def changes(
    candidates: Sequence[Candidate],
    constraints: Constraints,
    objective: Objective,
    choice: Choice,
) -> tuple[str, ...]:
    """Sentences, each naming a change of one thing and the row that would then be picked.

    Each was found by choosing again, so none is a guess. A row that did not fit or run takes part
    with its predictions.
    """
    return (
        *_relaxed(candidates, constraints, objective, choice),
        *_not_run(candidates, constraints, objective),
        *_less_memory(candidates, constraints, objective, choice),
        *_other_objectives(candidates, constraints, objective, choice),
    )


# ---------------------------------------------------------------- a bound given way


def _relaxed(
    candidates: Sequence[Candidate],
    constraints: Constraints,
    objective: Objective,
    choice: Choice,
) -> Iterator[str]:
    """For each row that one bound alone keeps out: how far it would have to give."""
    told: dict[Bound, list[tuple[float, str]]] = {}
    for c in candidates:
        bound = _only_bound(c, constraints)
        if bound is None or c is choice.pick:
            continue
        relaxed = _admitting(c, bound, constraints)
        again = choose(_as_if_ran(candidates, c), relaxed, objective)
        if again.pick is not None and again.pick.name == c.name:
            told.setdefault(bound, []).append(_told(c, bound, constraints, relaxed))
    for sentences in told.values():
        yield from (text for _, text in sorted(sentences)[:_MOST_OF_A_KIND])


def _only_bound(c: Candidate, constraints: Constraints) -> Bound | None:
    """The one bound that keeps a candidate out; None where there are more, or none."""
    bounds = broken(c, constraints)
    limit = constraints.limit_bytes(on_gpu=c.on_gpu)
    if c.row.status == "does_not_fit" and limit is not None and (c.footprint_bytes or 0) > limit:
        bounds = tuple(bound for bound in bounds if bound != "run")
    movable: tuple[Bound, ...] = ("device", "memory", "rate", "accuracy", "perplexity")
    return bounds[0] if len(bounds) == 1 and bounds[0] in movable else None


def _admitting(c: Candidate, bound: Bound, constraints: Constraints) -> Constraints:
    """The constraints with ``bound`` moved just so far that ``c`` is within."""
    if bound == "device":
        return replace(constraints, device=None)
    if bound == "memory":
        field = "memory_bytes" if c.on_gpu else "ram_bytes"
        need = math.ceil((c.footprint_bytes or 0) / (1 - constraints.margin)) + 1
        return replace(constraints, **{field: need})  # type: ignore[arg-type]
    if bound == "rate":
        return replace(constraints, min_tokens_per_s=rate_number(c))
    if bound == "accuracy" and c.acc_norm is not None:
        return replace(constraints, acc_norm_loss=-c.acc_norm.high)
    assert c.perplexity is not None  # what is not known breaks no bound
    return replace(constraints, perplexity_rise=c.perplexity.low)


def _told(
    c: Candidate, bound: Bound, constraints: Constraints, relaxed: Constraints
) -> tuple[float, str]:
    """How far the bound has to move, for ordering, and the sentence."""
    rate = f"{rate_text(c)} tokens/s"
    if bound == "device":
        return (
            0.0,
            f"Without the bound to the {(constraints.device or '').upper()}: {c.name}, {rate}.",
        )
    if bound == "memory":
        allowed = constraints.budget_bytes(on_gpu=c.on_gpu) or 0
        needed = _as_shown((c.footprint_bytes or 0) / (1 - constraints.margin), math.ceil)
        more = format_bytes(needed - allowed)
        return needed - allowed, (
            f"{more} more of {place_text(c)} ({format_bytes(needed)} in all) would admit "
            f"{c.name}: {rate}."
        )
    if bound == "rate":
        least = constraints.min_tokens_per_s or 0.0
        reached = _as_shown(rate_number(c), math.floor)
        return least - rate_number(c), (
            f"Ask for {format_rate(reached)} tokens/s instead of {format_rate(least)}, and "
            f"{c.name} is the pick (--min-tokens-per-s)."
        )
    published = ", as published" if c.published is not None else ""
    if bound == "accuracy":
        points = _up(relaxed.acc_norm_loss)
        return points, (
            f"Allow acc_norm to fall by {points:.1f} points, and {c.name} is the pick: {rate} "
            f"(--max-accuracy-loss {points:.1f})."
        )
    rise = _up(relaxed.perplexity_rise)
    return rise, (
        f"Allow {rise:.1f} % more perplexity{published}, and {c.name} is the pick: {rate} "
        f"(--max-perplexity-rise {rise:.1f})."
    )


def _as_shown(value: float, rounded: Callable[[float], int]) -> float:
    """``value`` with the figures that are shown of it, rounded so that it admits the row."""
    if value == 0:
        return 0.0
    unit = max(10.0 ** (math.floor(math.log10(value)) - 2), 0.001)
    nearest = round(value / unit)
    exact = math.isclose(nearest, value / unit, rel_tol=1e-12)
    return (nearest if exact else rounded(value / unit)) * unit


def _up(share: float) -> float:
    """In hundredths, rounded up to a tenth, so that the figure named does admit the row."""
    return math.ceil(1000 * share - 1e-9) / 10


def _as_if_ran(candidates: Sequence[Candidate], c: Candidate) -> tuple[Candidate, ...]:
    return tuple(replace(x, ready=True) if x is c else x for x in candidates)


# ---------------------------------------------------------------- other changes


def _not_run(
    candidates: Sequence[Candidate], constraints: Constraints, objective: Objective
) -> Iterator[str]:
    """Rows that did not run, and by their predictions would be the pick if they did."""
    for c in candidates:
        status = c.row.status
        if status not in ("failed", "unavailable") or broken(c, constraints) != ("run",):
            continue
        again = choose(_as_if_ran(candidates, c), constraints, objective)
        if again.pick is not None and again.pick.name == c.name and c.need_bytes is not None:
            yield (
                f"{c.name} ({STATUS_WORDS[status]}) would be the pick if it ran as predicted: "
                f"{rate_text(c)} tokens/s in {memory_text(c, c.need_bytes)}."
            )


def _less_memory(
    candidates: Sequence[Candidate],
    constraints: Constraints,
    objective: Objective,
    choice: Choice,
) -> Iterator[str]:
    """The pick of a budget that is too small for this one."""
    pick = choice.pick
    if pick is None or pick.footprint_bytes is None or pick.footprint_bytes < 2:
        return
    field = "memory_bytes" if pick.on_gpu else "ram_bytes"
    below = math.ceil(pick.footprint_bytes / (1 - constraints.margin)) - 1
    tighter = replace(constraints, **{field: below})  # type: ignore[arg-type]
    again = choose(candidates, tighter, objective)
    if again.pick is not None and "memory" in broken(pick, tighter):
        yield (
            f"With less than {format_bytes(below + 1)} of {place_text(pick)}: {again.pick.name}, "
            f"{rate_text(again.pick)} tokens/s."
        )


def _other_objectives(
    candidates: Sequence[Candidate],
    constraints: Constraints,
    objective: Objective,
    choice: Choice,
) -> Iterator[str]:
    """The picks of the other objectives, where they differ, in one sentence."""
    if choice.pick is None:
        return
    parts = []
    for other in OBJECTIVES:
        pick = choose(candidates, constraints, other).pick
        if other != objective and pick is not None and pick.name != choice.pick.name:
            parts.append(f"{other}: {pick.name} ({_facts(pick)})")
    if parts:
        yield f"By another objective: {'; '.join(parts)}."


def _facts(c: Candidate) -> str:
    facts = [f"{format_rate(rate_number(c))} tokens/s"]
    if c.need_bytes is not None:
        facts.append(memory_text(c, c.need_bytes))
    if c.perplexity is not None and c.perplexity.mean >= 0.0005:
        facts.append(f"perplexity +{format_percent(c.perplexity.mean)}")
    return ", ".join(facts)
