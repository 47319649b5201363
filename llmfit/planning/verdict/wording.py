"""A candidate's figures, and why it is not the pick, in the words of a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.planning.comparing.published_quality import published_cost
from llmfit.planning.verdict.candidate import Candidate
from llmfit.planning.verdict.constraints import Constraints, Objective
from llmfit.planning.verdict.policy import Bound, Choice, is_known
from llmfit.records import Difference, Status
from llmfit.units import format_bytes, format_number, format_percent, format_rate, format_signed

STATUS_WORDS: dict[Status, str] = {
    "ok": "ok",
    "failed": "failed",
    "unavailable": "unavailable",
    "does_not_fit": "does not fit",
    "skipped": "skipped",
}


# ---------------------------------------------------------------- figures


def rate_number(candidate: Candidate) -> float:
    """Tokens per second; 0 only for ordering those whose rate is not known."""
    return 0.0 if candidate.rate is None else candidate.rate.median


def rate_text(candidate: Candidate) -> str:
    """``55.0 (54.5–55.5)``; of a prediction ``predicted 55.0 (40.0–70.0)``."""
    rate = candidate.rate
    if rate is None:
        return "unknown"
    text = f"{format_rate(rate.median)} ({format_rate(rate.low)}–{format_rate(rate.high)})"
    return text if candidate.measured else f"predicted {text}"


def memory_text(candidate: Candidate, size_bytes: int) -> str:
    """``4.80 GB of GPU memory``."""
    return f"{format_bytes(size_bytes)} of {place_text(candidate)}"


def place_text(candidate: Candidate) -> str:
    """The memory that the candidate's peak is of."""
    return "GPU memory" if candidate.on_gpu else "RAM"


def budget_text(candidates: Sequence[Candidate], constraints: Constraints) -> str:
    """The budgets of the devices that candidates run on, the margin with them."""
    places = dict.fromkeys(c.on_gpu for c in candidates)
    budgets = [constraints.budget_bytes(on_gpu=place) for place in places]
    text = " and ".join(format_bytes(budget) for budget in budgets if budget is not None)
    return text + _margin_text(constraints)


def _margin_text(constraints: Constraints) -> str:
    if not constraints.margin:
        return ""
    return f" with {format_percent(constraints.margin, decimals=0)} kept free"


def published_sentences(backend: str) -> tuple[str, ...]:
    """What the format of a row that was not scored costs by publication; nothing where unknown."""
    cost = published_cost(backend)
    if cost is None or cost.high == 0:
        return ()
    return (f"Published for its format: perplexity {cost.text} ({cost.source}).",)


def change_text(difference: Difference, unit: str, reference: str) -> str:
    """A change in hundredths with its interval: ``−0.5 points against bf16 (−1.1 to −0.1)``."""
    ends = (difference.low, difference.high)
    decimals = 1 if max(map(abs, ends)) >= 0.01 else 2
    mean, low, high = (
        format_signed(100 * share, decimals=decimals) for share in (difference.mean, *ends)
    )
    tie = ", a tie" if difference.tie else ""
    return f"{mean} {unit} against {reference} ({low} to {high}{tie})"


def quality_sentence(candidate: Candidate) -> str:
    """Each quality figure with its change against the reference, or the published cost."""
    row, quality = candidate.row, candidate.row.difference
    if candidate.published is not None:
        if candidate.published.high == 0:
            return "Quality: unchanged, it runs the model's own 16-bit weights."
        cost = candidate.published.text
        return f"Quality, published: perplexity {cost} ({candidate.published.source})."
    reference = "" if quality is None else quality.reference
    parts = []
    if row.hellaswag is not None:
        change = _change_or_none(candidate.acc_norm, "points", reference)
        parts.append(f"HellaSwag acc_norm {format_percent(row.hellaswag.acc_norm)}, {change}")
    if row.perplexity is not None:
        change = _change_or_none(candidate.perplexity, "%", reference)
        parts.append(f"perplexity {format_number(row.perplexity.token)}, {change}")
    return f"Quality: {'; '.join(parts)}."


def _change_or_none(difference: Difference | None, unit: str, reference: str) -> str:
    if difference is None:
        return f"not comparable with {reference}'s, so not judged"
    return change_text(difference, unit, reference)


# ---------------------------------------------------------------- why a row is not the pick


def bound_text(candidate: Candidate, bound: Bound, constraints: Constraints) -> str:
    """Why the candidate breaks ``bound``, with its figure and what was allowed."""
    row = candidate.row
    if bound == "run":
        return f"{STATUS_WORDS[row.status]}: {row.reason or 'no reason was recorded'}"
    if bound == "device":
        where = "GPU" if candidate.on_gpu else "CPU"
        return f"runs on the {where}, the {(constraints.device or '').upper()} is asked for"
    if bound == "memory":
        budget = constraints.budget_bytes(on_gpu=candidate.on_gpu) or 0
        need = format_bytes(candidate.footprint_bytes or 0)
        return f"does not fit: needs {need} of {format_bytes(budget)}{_margin_text(constraints)}"
    if bound == "known rate":
        known = "was not measured" if row.status == "ok" else "could not be predicted"
        return f"its decode rate {known}"
    if bound == "rate":
        least = format_rate(constraints.min_tokens_per_s or 0)
        return f"too slow: {rate_text(candidate)} tokens/s of at least {least}"
    return _lost_quality(candidate, bound, constraints)


def _lost_quality(candidate: Candidate, bound: Bound, constraints: Constraints) -> str:
    allowed = constraints.acc_norm_loss if bound == "accuracy" else constraints.perplexity_rise
    limit = f"{100 * allowed:.3g}"
    if candidate.published is not None:
        cost = candidate.published.text
        return f"loses quality: perplexity {cost} as published, {limit} % allowed"
    reference = candidate.row.difference.reference if candidate.row.difference is not None else ""
    if bound == "accuracy" and candidate.acc_norm is not None:
        change = change_text(candidate.acc_norm, "points", reference)
        return f"loses quality: HellaSwag acc_norm {change}, {limit} allowed"
    assert candidate.perplexity is not None  # what is not known breaks no bound
    change = change_text(candidate.perplexity, "%", reference)
    return f"loses quality: perplexity {change}, {limit} % allowed"


def second_text(candidate: Candidate, pick: Candidate, choice: Choice, objective: Objective) -> str:
    """Why a candidate within every constraint is not the pick."""
    tied = candidate in choice.tied
    if not is_known(candidate, objective) and (
        objective != "balanced" or is_known(pick, objective)
    ):
        return _not_known(candidate, pick, objective)
    if objective == "speed" and not tied:
        predicted = "" if candidate.measured else "predicted "
        return (
            f"slower: {predicted}{format_rate(rate_number(candidate))} tokens/s against "
            f"{format_rate(rate_number(pick))}"
        )
    if tied:
        return f"{_as_good(candidate, pick, objective)}, and {_behind(candidate, pick, objective)}"
    if objective == "memory":
        if candidate.on_gpu and not pick.on_gpu:
            need = format_bytes(candidate.need_bytes or 0)
            return f"takes GPU memory, {need}, and {pick.name} none"
        return f"larger: {_against(candidate, pick)}"
    if objective == "quality":
        return f"further in quality: {_quality_against(candidate, pick)}"
    own, best = choice.balance[candidate.name], choice.balance[pick.name]
    return (
        f"less balanced: {format_number(own)} against {format_number(best)} (geometric mean of "
        f"speed, memory and quality as shares of the best): {rate_text(candidate)} tokens/s, "
        f"{_against(candidate, pick)}"
    )


def _not_known(candidate: Candidate, pick: Candidate, objective: Objective) -> str:
    """Why a candidate is behind whose figures the objective cannot be judged by."""
    what = "memory or quality" if objective == "balanced" else objective
    if is_known(pick, objective):
        return f"its {what} is not known"
    return f"its {what} is not known, nor {pick.name}'s, and {_rates(candidate, pick)}"


def _as_good(candidate: Candidate, pick: Candidate, objective: Objective) -> str:
    words = {"speed": "fast", "quality": "good", "memory": "small", "balanced": "balanced"}
    within = "ranges" if not candidate.measured else "intervals"
    return f"as {words[objective]} as {pick.name} within the {within}"


def _behind(candidate: Candidate, pick: Candidate, objective: Objective) -> str:
    """What a candidate that ties is behind in."""
    if objective in ("speed", "balanced"):
        if candidate.need_bytes is None or pick.need_bytes is None:
            return "its memory is not known"
        return f"takes {_against(candidate, pick)}"
    return _rates(candidate, pick)


def _rates(candidate: Candidate, pick: Candidate) -> str:
    return (
        f"decodes {format_rate(rate_number(candidate))} tokens/s against "
        f"{format_rate(rate_number(pick))}"
    )


def _against(candidate: Candidate, pick: Candidate) -> str:
    if candidate.need_bytes is None or pick.need_bytes is None:
        return "its memory is not known"
    own, best = memory_text(candidate, candidate.need_bytes), memory_text(pick, pick.need_bytes)
    return f"{own} against {best}"


def _quality_against(candidate: Candidate, pick: Candidate) -> str:
    parts = []
    for own, best, unit in (
        (candidate.perplexity, pick.perplexity, "% perplexity"),
        (candidate.acc_norm, pick.acc_norm, "points of acc_norm"),
    ):
        if own is not None and best is not None:
            decimals = 1 if max(abs(own.mean), abs(best.mean)) >= 0.01 else 2
            figures = (format_signed(100 * d.mean, decimals=decimals) for d in (own, best))
            parts.append(f"{' against '.join(figures)} {unit}")
    return ", ".join(parts)
