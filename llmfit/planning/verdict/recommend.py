"""Which row to take, and why: a verdict in words, a pure function of the rows.

    rows ─► candidates ─► policy.choose ─► the pick and its reasons      Verdict.reasons
                                       ├─► the others and theirs         Verdict.rejected
                                       ├─► ties, the Pareto front        Verdict.tied, pareto
                                       └─► choose with other bounds ─►   Verdict.changes

Every row that is not picked gets its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from llmfit.errors import UsageError
from llmfit.planning.comparing.differences import REFERENCE as REFERENCE
from llmfit.planning.comparing.differences import attach_differences, reference_row
from llmfit.planning.verdict.candidate import TIE_SHARE as TIE_SHARE
from llmfit.planning.verdict.candidate import Candidate, candidate, needed_bytes
from llmfit.planning.verdict.changes import changes
from llmfit.planning.verdict.constraints import Constraints, Objective, check_objective
from llmfit.planning.verdict.policy import Choice, broken, choose, is_known
from llmfit.planning.verdict.wording import (
    STATUS_WORDS,
    bound_text,
    budget_text,
    memory_text,
    published_sentences,
    quality_sentence,
    rate_number,
    rate_text,
    second_text,
)
from llmfit.records import Rejection, RunRecord, Verdict
from llmfit.units import format_bytes, format_percent, format_rate

__all__ = ["REFERENCE", "STATUS_WORDS", "TIE_SHARE", "fits", "needed_bytes", "recommend"]


def recommend(
    rows: Sequence[RunRecord],
    constraints: Constraints | None = None,
    *,
    objective: Objective = "speed",
    budget_bytes: int | None = None,
    reference: str = REFERENCE,
) -> Verdict:
    """Pick the row that is best by ``objective`` within ``constraints``, with reasons.

    ``budget_bytes`` is short for the constraint ``memory_bytes``. Quality is judged by
    ``row.difference``, which is computed here where it is missing; what was not measured is not
    judged, and the reasons say so. Where no row ran, those that were only predicted are judged by
    their predictions and the published cost of their format (``Verdict.predicted``). No suitable
    row: backend None. Raises UsageError for an unknown objective, for two different budgets, and,
    naming the field, for rows from different machines, versions, models or settings.
    """
    check_objective(objective)
    bounds = _merged(constraints or Constraints(), budget_bytes)
    rows = attach_differences(rows, reference=reference)
    standard = reference_row(rows, reference)
    predicted = _only_predicted(rows)
    candidates = tuple(candidate(row, standard, predicted=predicted) for row in rows)
    choice = choose(candidates, bounds, objective)
    names = {c.name: c for c in candidates}
    return Verdict(
        backend=None if choice.pick is None else choice.pick.name,
        reasons=_reasons(choice, candidates, bounds, objective, standard, reference, predicted),
        rejected=tuple(
            _rejection(c, choice, bounds, objective)
            for name, c in names.items()
            if choice.pick is None or name != choice.pick.name
        ),
        tied=tuple(c.name for c in choice.tied),
        pareto=tuple(c.name for c in choice.front),
        changes=changes(candidates, bounds, objective, choice),
        predicted=predicted,
    )


def fits(row: RunRecord, budget_bytes: int | None, *, ram_budget_bytes: int | None = None) -> bool:
    """False when the row is known to need more memory than the budget of its device."""
    bounds = Constraints(memory_bytes=budget_bytes, ram_bytes=ram_budget_bytes)
    return "memory" not in broken(candidate(row, None, predicted=False), bounds)


def _merged(constraints: Constraints, budget_bytes: int | None) -> Constraints:
    if budget_bytes is None:
        return constraints
    if constraints.memory_bytes not in (None, budget_bytes):
        raise UsageError(
            f"two budgets of GPU memory are given: {format_bytes(constraints.memory_bytes or 0)} "
            f"and {format_bytes(budget_bytes)}."
        )
    return replace(constraints, memory_bytes=budget_bytes)


def _only_predicted(rows: Sequence[RunRecord]) -> bool:
    """True where no row ran and some were not to: predictions are all there is."""
    return any(row.predicted_only for row in rows) and not any(row.status == "ok" for row in rows)


# ---------------------------------------------------------------- why a row is not picked


def _rejection(
    c: Candidate, choice: Choice, constraints: Constraints, objective: Objective
) -> Rejection:
    bounds = broken(c, constraints)
    if bounds:
        reason = bound_text(c, bounds[0], constraints)
        return Rejection(backend=c.name, reason=reason, bound=bounds[0])
    assert choice.pick is not None  # a candidate that breaks no constraint is suitable
    return Rejection(backend=c.name, reason=second_text(c, choice.pick, choice, objective))


def _why_none(candidates: Sequence[Candidate], constraints: Constraints, *, predicted: bool) -> str:
    """The first of the constraints that leaves no candidate."""
    left = [c for c in candidates if c.ready]
    if not left and not predicted:
        counts = Counter(STATUS_WORDS[c.row.status] for c in candidates)
        why = ", ".join(f"{word}: {count}" for word, count in sorted(counts.items()))
        return f"No format can be recommended: none of the rows ran ({why or 'there are none'})."
    if not left:
        return f"No format can be recommended: none fits {budget_text(candidates, constraints)}."
    for bound, why in (
        ("device", f"none runs on the {(constraints.device or '').upper()}"),
        ("memory", f"none fits {budget_text(candidates, constraints)}"),
        ("known rate", "the decode rate of none is known"),
        (
            "rate",
            f"none that fits reaches {format_rate(constraints.min_tokens_per_s or 0)} tokens/s",
        ),
    ):
        left = [c for c in left if bound not in broken(c, constraints)]
        if not left:
            return f"No format can be recommended: {why}."
    return "No format can be recommended: none that ran and fits keeps the quality."


# ---------------------------------------------------------------- why the pick


def _reasons(
    choice: Choice,
    candidates: Sequence[Candidate],
    constraints: Constraints,
    objective: Objective,
    standard: RunRecord | None,
    reference: str,
    predicted: bool,
) -> tuple[str, ...]:
    pick = choice.pick
    if pick is None:
        return (_why_none(candidates, constraints, predicted=predicted),)
    judged = predicted or standard is not None
    return (
        _first_reason(pick, choice, constraints, objective, judged),
        *(_PREDICTED if predicted else ()),
        *_memory_reason(pick, constraints),
        *_quality_reasons(pick, standard, reference),
        *_cpu_reason(pick, choice.suitable),
    )


_PREDICTED = (
    "Nothing was run: memory and speed are predicted, and quality is the published cost of each "
    "format on other models.",
)

_BEST = {
    "speed": "fastest",
    "quality": "closest in quality",
    "memory": "smallest",
    "balanced": "best balance of speed, memory and quality",
}

_SETTLED = {
    "speed": "of these it is the fastest",
    "memory": "of these it takes the least memory",
    "perplexity": "of these its perplexity is the lowest",
    "accuracy": "of these its accuracy is the highest",
}


_TAKEN_OTHERWISE = {
    "speed": "so the fastest is taken",
    "memory": "so the one that takes the least memory is taken",
    "perplexity": "so the one of the lowest perplexity is taken",
    "accuracy": "so the one of the highest accuracy is taken",
}


def _first_reason(
    pick: Candidate, choice: Choice, constraints: Constraints, objective: Objective, judged: bool
) -> str:
    virtues = []
    if constraints.device is not None:
        virtues.append(f"run on the {constraints.device.upper()}")
    budget = constraints.budget_bytes(on_gpu=pick.on_gpu)
    if constraints.memory_bytes is not None or budget is not None:
        virtues.append(f"fit {format_bytes(constraints.memory_bytes or budget or 0)}")
    if constraints.min_tokens_per_s is not None:
        virtues.append(f"reach {format_rate(constraints.min_tokens_per_s)} tokens/s")
    if judged:
        virtues.append("keep the quality")
    which = "that " + _listed(virtues or ["ran"])
    rate, count = f"{rate_text(pick)} tokens/s", len(choice.suitable)
    if count == 1:
        return f"{pick.name}: the only format of those {which}, {rate}."
    best = _BEST[objective]
    if objective != "balanced" and not is_known(pick, objective):
        taken = _TAKEN_OTHERWISE.get(choice.settled_by or "", "and nothing measured decides")
        return (
            f"{pick.name}: {rate}, of the {count} formats {which}; which is the {best} is not "
            f"known, {taken}."
        )
    if not choice.tied:
        return f"{pick.name}: {best} of the {count} formats {which}, {rate}."
    others = ", ".join(f"{c.name} ({rate_text(c)})" for c in choice.tied)
    settled = _SETTLED.get(choice.settled_by or "", "between these nothing measured decides")
    lead = f"a tie for the {best} of the {count} formats {which}"
    return f"{pick.name}: {rate}, {lead}, with {others}; {settled}."


def _listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _memory_reason(pick: Candidate, constraints: Constraints) -> tuple[str, ...]:
    need, footprint = pick.need_bytes, pick.footprint_bytes
    if need is None or footprint is None or pick.row.memory is None:
        return ()
    how = "Predicted to need" if pick.row.memory.peak_bytes is None else "Peaks at"
    whole, limit = "", ""
    budget = constraints.budget_bytes(on_gpu=pick.on_gpu)
    if budget is not None:
        limit = f" of the {format_bytes(budget)} allowed"
        if constraints.margin:
            limit += f", {format_percent(constraints.margin, decimals=0)} of which stay free"
        if footprint > need:
            share = "driver's" if pick.on_gpu else "interpreter's"
            whole = f", {format_bytes(footprint)} with the {share} share,"
    return (f"{how} {memory_text(pick, need)}{whole}{limit}.",)


def _quality_reasons(
    pick: Candidate, standard: RunRecord | None, reference: str
) -> tuple[str, ...]:
    if pick.published is not None:
        return (quality_sentence(pick),)
    if standard is None:
        return ("Quality was not measured, so it is not judged.", *published_sentences(pick.name))
    instead: tuple[str, ...] = ()
    if standard.backend != reference:
        instead = (
            f"{reference} has no quality figures here: judged against {standard.backend}, "
            "the best of the rows that have.",
        )
    if standard is pick.row:
        return (*instead, "It is itself the reference that quality is judged against.")
    if pick.row.difference is None:
        return (*instead, f"Its quality cannot be compared with {standard.backend}'s: not judged.")
    return (*instead, quality_sentence(pick))


def _cpu_reason(pick: Candidate, suitable: Sequence[Candidate]) -> tuple[str, ...]:
    """The way out when the GPU is taken: the fastest suitable row that runs on the CPU."""
    on_cpu = [c for c in suitable if not c.on_gpu]
    if not pick.on_gpu or not on_cpu:
        return ()
    best = max(on_cpu, key=rate_number)
    memory = "" if best.need_bytes is None else f", {memory_text(best, best.need_bytes)}"
    return (
        f"Instead {best.name} if the GPU is busy: {rate_text(best)} tokens/s on the CPU{memory}.",
    )
