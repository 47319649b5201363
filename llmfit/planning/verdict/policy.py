"""The choice itself: candidates, constraints and an objective in, one of them out.

    candidates ─► within every constraint ─► tied for the best by the objective
               ─► not beaten in everything by another ─► best by the next measures

Nothing here is worded: ``recommend.py`` says why, and ``changes.py`` asks again with other bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmfit.planning.verdict.candidate import (
    TIE_SHARE,
    Candidate,
    closer,
    faster,
    more_accurate,
    smaller,
)
from llmfit.planning.verdict.constraints import Constraints, Objective
from llmfit.planning.verdict.pareto import Better, front

Bound = Literal["run", "device", "memory", "known rate", "rate", "accuracy", "perplexity"]
Measure = Literal["speed", "memory", "perplexity", "accuracy", "balance"]

BALANCE_TIE_SHARE: float = 1 - (1 - TIE_SHARE) ** (1 / 3)
"""Two balances tie where one of their three parts alone could differ by the share of a tie."""

_ORDERS: Mapping[Objective, tuple[tuple[Measure, ...], tuple[Measure, ...]]] = {
    "speed": (("speed",), ("memory", "perplexity", "accuracy")),
    "quality": (("perplexity", "accuracy"), ("speed", "memory")),
    "memory": (("memory",), ("speed", "perplexity", "accuracy")),
    "balanced": (("balance",), ("speed", "memory", "perplexity", "accuracy")),
}
"""Of each objective what it goes by, and what settles its ties, in this order."""

_MEASURES: Mapping[Measure, Better[Candidate]] = {
    "speed": faster,
    "memory": smaller,
    "perplexity": closer,
    "accuracy": more_accurate,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, and among what."""

    pick: Candidate | None
    suitable: tuple[Candidate, ...]
    """Those within every constraint."""
    tied: tuple[Candidate, ...]
    """Those as good as the pick by the objective, without it."""
    front: tuple[Candidate, ...]
    """Of all that are there and fit: those that no other beats in speed, memory and quality."""
    settled_by: Measure | None
    """What the pick is best in of those that tie, and better than some; None for nothing."""
    balance: Mapping[str, float]
    """Balance of each suitable candidate, by its name."""


def choose(
    candidates: Sequence[Candidate], constraints: Constraints, objective: Objective
) -> Choice:
    """The best candidate within the constraints by the objective; its ties kept."""
    suitable = [c for c in candidates if not broken(c, constraints)]
    hard: set[Bound] = {"run", "device", "memory", "known rate"}
    there = [c for c in candidates if not hard & set(broken(c, constraints))]
    unbeaten = front(there, tuple(_MEASURES.values()))
    balance = _balances(suitable, constraints)
    first, rest = _ORDERS[objective]
    best = _narrowed(_known(suitable, objective), first, balance)
    left = _narrowed([c for c in best if c in unbeaten] or best, rest, balance)
    pick = min(left, key=_order, default=None)
    tied = tuple(c for c in best if c is not pick)
    return Choice(
        pick=pick,
        suitable=tuple(suitable),
        tied=tied,
        front=unbeaten,
        settled_by=None if pick is None else _settled_by(pick, tied, rest),
        balance=balance,
    )


def broken(candidate: Candidate, constraints: Constraints) -> tuple[Bound, ...]:
    """The constraints that a candidate is known to break; what is not known breaks none."""
    rate, limit = candidate.rate, constraints.limit_bytes(on_gpu=candidate.on_gpu)
    place = "gpu" if candidate.on_gpu else "cpu"
    least = constraints.min_tokens_per_s
    perplexity, accuracy = candidate.perplexity, candidate.acc_norm
    found: dict[Bound, bool] = {
        "run": not candidate.ready,
        "device": constraints.device not in (None, place),
        "memory": limit is not None and (candidate.footprint_bytes or 0) > limit,
        "known rate": rate is None,
        "rate": least is not None and rate is not None and rate.median < least,
        "accuracy": accuracy is not None and accuracy.high < -constraints.acc_norm_loss,
        "perplexity": perplexity is not None and perplexity.low > constraints.perplexity_rise,
    }
    return tuple(bound for bound, is_broken in found.items() if is_broken)


def is_known(candidate: Candidate, objective: Objective) -> bool:
    """False where the figures that the objective goes by are not known of the candidate."""
    quality = candidate.perplexity is not None or candidate.acc_norm is not None
    known: dict[Objective, bool] = {
        "speed": candidate.rate is not None,
        "quality": quality,
        "memory": candidate.need_bytes is not None,
        "balanced": candidate.need_bytes is not None and quality,
    }
    return known[objective]


def _known(candidates: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """Those whose figures are known; all, where none's are."""
    return [c for c in candidates if is_known(c, objective)] or list(candidates)


def _settled_by(
    pick: Candidate, tied: Sequence[Candidate], measures: Sequence[Measure]
) -> Measure | None:
    for measure in measures:
        better = _MEASURES[measure]
        if any(better(pick, c) for c in tied) and not any(better(c, pick) for c in tied):
            return measure
    return None


def _narrowed(
    candidates: Sequence[Candidate], measures: Sequence[Measure], balance: Mapping[str, float]
) -> list[Candidate]:
    """Those that tie with the best by each of the measures in turn."""
    left = list(candidates)
    for measure in measures:
        if not left:
            break
        better = _more_balanced(balance) if measure == "balance" else _MEASURES[measure]
        ranks = [(_rank(c, measure, balance), _order(c)) for c in left]
        best = left[ranks.index(min(ranks))]
        left = [c for c in left if not better(best, c)]
    return left


def _rank(candidate: Candidate, measure: Measure, balance: Mapping[str, float]) -> float:
    """The candidate's figure by a measure, the least the best, what is not known last."""
    if measure == "speed":
        return -candidate.rate.median if candidate.rate is not None else math.inf
    if measure == "memory":
        return _memory(candidate)
    if measure == "perplexity":
        return candidate.perplexity.high if candidate.perplexity is not None else math.inf
    if measure == "accuracy":
        return -candidate.acc_norm.low if candidate.acc_norm is not None else math.inf
    return -balance[candidate.name]


def _order(candidate: Candidate) -> tuple[float, float, str]:
    """For a choice that is the same in every order of rows: smaller, faster, by name."""
    return _memory(candidate), _rank(candidate, "speed", {}), candidate.name


def _memory(candidate: Candidate) -> float:
    """Bytes, those on a CPU below all on a GPU."""
    if candidate.need_bytes is None:
        return math.inf
    return candidate.need_bytes if candidate.on_gpu else -1 / (1 + candidate.need_bytes)


# ---------------------------------------------------------------- balance


def _balances(suitable: Sequence[Candidate], constraints: Constraints) -> dict[str, float]:
    """Each candidate's balance: the geometric mean of three shares of the best, each 0…1.

    Speed over the fastest; the least memory over its own; and the perplexity, of which a rise
    that uses up all that is allowed counts as half. What is not known counts as the best. A
    choice: with it a format twice as fast makes up for one twice as large.
    """
    fastest = max((c.rate.median for c in suitable if c.rate is not None), default=1.0)
    least = min((c.need_bytes for c in suitable if c.need_bytes is not None), default=1)

    def parts(c: Candidate) -> tuple[float, float, float]:
        speed = c.rate.median / fastest if c.rate is not None else 1.0
        memory = least / c.need_bytes if c.need_bytes else 1.0
        rise = max(0.0, c.perplexity.mean) if c.perplexity is not None else 0.0
        allowed = constraints.perplexity_rise
        used = min(1.0, rise / allowed) if allowed > 0 else float(rise > 0)
        return speed, memory, 1 - used / 2

    return {c.name: math.prod(parts(c)) ** (1 / 3) for c in suitable}


def _more_balanced(balance: Mapping[str, float]) -> Better[Candidate]:
    def better(a: Candidate, b: Candidate) -> bool:
        return balance[b.name] < (1 - BALANCE_TIE_SHARE) * balance[a.name]

    return better
