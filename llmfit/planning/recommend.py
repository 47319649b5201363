"""Which row to take, and why: the policy in one place, a pure function of the rows.

    ok rows ─► fits the budget? ─► quality kept? ─► fastest ─► speed ties go to the smaller memory

Every row that is not picked gets its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmfit.planning.quality import (
    ACC_NORM_TOLERANCE,
    PERPLEXITY_TOLERANCE,
    accuracy_kept,
    attach_differences,
    perplexity_kept,
    reference_row,
)
from llmfit.planning.quality import REFERENCE as REFERENCE
from llmfit.records import Difference, Rejection, RunRecord, Sampled, Status, Verdict
from llmfit.stats import overlap
from llmfit.units import format_bytes, format_number, format_percent, format_rate, format_signed

TIE_SHARE = 0.1
"""Two speeds tie where their intervals overlap and the medians differ by at most this share of
the faster. Without the second condition one row of unsteady runs, whose interval is wide, would
tie with every other. A choice."""

STATUS_WORDS: dict[Status, str] = {
    "ok": "ok",
    "failed": "failed",
    "unavailable": "unavailable",
    "does_not_fit": "does not fit",
    "skipped": "skipped",
}


def recommend(
    rows: Sequence[RunRecord], *, budget_bytes: int | None, reference: str = REFERENCE
) -> Verdict:
    """Pick the fastest row that fits and keeps the reference's quality, with reasons.

    ``budget_bytes`` limits the GPU memory of rows on a GPU; None means no limit. Quality is judged
    by ``row.difference``, which is computed here where it is missing; what was not measured is
    not judged, and the reasons say so. No suitable row: backend None. Raises UsageError, naming
    the field, for rows from different machines, versions, models or settings.
    """
    rows = attach_differences(rows, reference=reference)
    standard = reference_row(rows, reference)
    rejected = {row.backend: _why_not(row, budget_bytes) for row in rows}
    suitable = [row for row in rows if rejected[row.backend] is None]
    if not suitable:
        why = _why_none(rows, budget_bytes)
        return Verdict(backend=None, reasons=(why,), rejected=_rejections(rejected))
    fastest = max(suitable, key=lambda row: _rate(row).median)
    tied = [row for row in suitable if _ties(_rate(row), _rate(fastest))]
    pick = min(tied, key=_memory_order)
    for row in suitable:
        rejected[row.backend] = _why_second(row, pick, tied)
    del rejected[pick.backend]
    reasons = (
        _speed_reason(pick, suitable, tied, budget_bytes, standard),
        *_memory_reason(pick, budget_bytes),
        *_quality_reasons(pick, standard, reference),
        *_cpu_reason(pick, suitable),
    )
    return Verdict(backend=pick.backend, reasons=reasons, rejected=_rejections(rejected))


def needed_bytes(row: RunRecord) -> int | None:
    """Peak memory on the row's device: measured, or else predicted, or None."""
    if row.memory is None:
        return None
    measured = row.memory.peak_bytes
    return row.memory.predicted_bytes if measured is None else measured


def fits(row: RunRecord, budget_bytes: int | None) -> bool:
    """False when the row is known to need more GPU memory than the budget."""
    if budget_bytes is None or row.memory is None or row.memory.device != "cuda":
        return True
    need = needed_bytes(row)
    return need is None or need <= budget_bytes


# ---------------------------------------------------------------- why a row is not picked


def _why_not(row: RunRecord, budget_bytes: int | None) -> str | None:
    if row.status != "ok":
        return f"{STATUS_WORDS[row.status]}: {row.reason or 'no reason was recorded'}"
    if budget_bytes is not None and not fits(row, budget_bytes):
        need = format_bytes(needed_bytes(row) or 0)
        return f"does not fit: needs {need} of {format_bytes(budget_bytes)}"
    if row.decode is None:
        return "its decode rate was not measured"
    return _lost_quality(row)


def _lost_quality(row: RunRecord) -> str | None:
    quality = row.difference
    if quality is None:
        return None
    accuracy, perplexity = quality.acc_norm, quality.perplexity_ratio
    if accuracy is not None and not accuracy_kept(quality):
        return (
            f"loses quality: HellaSwag acc_norm {_change(accuracy, 'points', quality.reference)}, "
            f"{100 * ACC_NORM_TOLERANCE:.0f} allowed"
        )
    if perplexity is not None and not perplexity_kept(quality):
        return (
            f"loses quality: perplexity {_change(perplexity, '%', quality.reference)}, "
            f"{100 * PERPLEXITY_TOLERANCE:.0f} % allowed"
        )
    return None


def _why_second(row: RunRecord, pick: RunRecord, tied: Sequence[RunRecord]) -> str:
    if row not in tied:
        return (
            f"slower: {format_rate(_rate(row).median)} tokens/s against "
            f"{format_rate(_rate(pick).median)}"
        )
    need, best = needed_bytes(row), needed_bytes(pick)
    if need is None or best is None:
        return f"as fast as {pick.backend} within the intervals, and its memory is not known"
    return (
        f"as fast as {pick.backend} within the intervals, and takes {_where(row, need)} "
        f"against {_where(pick, best)}"
    )


def _why_none(rows: Sequence[RunRecord], budget_bytes: int | None) -> str:
    if not any(row.status == "ok" for row in rows):
        counts = Counter(STATUS_WORDS[row.status] for row in rows)
        why = ", ".join(f"{word}: {count}" for word, count in sorted(counts.items()))
        return f"No format can be recommended: none of the rows ran ({why or 'there are none'})."
    if budget_bytes is not None and not any(
        row.status == "ok" and fits(row, budget_bytes) for row in rows
    ):
        return f"No format can be recommended: none fits {format_bytes(budget_bytes)}."
    return "No format can be recommended: none that ran and fits keeps the quality."


def _rejections(reasons: dict[str, str | None]) -> tuple[Rejection, ...]:
    return tuple(
        Rejection(backend=backend, reason=reason)
        for backend, reason in reasons.items()
        if reason is not None
    )


# ---------------------------------------------------------------- why the pick


def _speed_reason(
    pick: RunRecord,
    suitable: Sequence[RunRecord],
    tied: Sequence[RunRecord],
    budget_bytes: int | None,
    standard: RunRecord | None,
) -> str:
    virtues = []
    if budget_bytes is not None:
        virtues.append(f"fit {format_bytes(budget_bytes)}")
    if standard is not None:
        virtues.append("keep the quality")
    which = "that " + " and ".join(virtues or ["ran"])
    rate = f"{_rate_text(pick)} tokens/s"
    if len(suitable) == 1:
        return f"{pick.backend}: the only format of those {which}, {rate}."
    others = [f"{row.backend} ({_rate_text(row)})" for row in tied if row is not pick]
    if others:
        return (
            f"{pick.backend}: {rate}, a tie for the fastest of the {len(suitable)} formats "
            f"{which}, with {', '.join(others)}; of these it takes the least memory."
        )
    return f"{pick.backend}: fastest of the {len(suitable)} formats {which}, {rate}."


def _memory_reason(pick: RunRecord, budget_bytes: int | None) -> tuple[str, ...]:
    need = needed_bytes(pick)
    if need is None or pick.memory is None:
        return ()
    how = "Predicted to need" if pick.memory.peak_bytes is None else "Peaks at"
    limit = ""
    if budget_bytes is not None and pick.memory.device == "cuda":
        limit = f" of the {format_bytes(budget_bytes)} allowed"
    return (f"{how} {_where(pick, need)}{limit}.",)


def _quality_reasons(
    pick: RunRecord, standard: RunRecord | None, reference: str
) -> tuple[str, ...]:
    if standard is None:
        return ("Quality was not measured, so it is not judged.",)
    instead: tuple[str, ...] = ()
    if standard.backend != reference:
        instead = (
            f"{reference} has no quality figures here: judged against {standard.backend}, "
            "the best of the rows that have.",
        )
    if standard is pick:
        return (*instead, "It is itself the reference that quality is judged against.")
    sentence = _quality_sentence(pick)
    if sentence is None:
        return (*instead, f"Its quality cannot be compared with {standard.backend}'s: not judged.")
    return (*instead, sentence)


def _quality_sentence(pick: RunRecord) -> str | None:
    """Each figure of the pick with its change against the reference; None without a change."""
    quality, parts = pick.difference, []
    if quality is None:
        return None
    if pick.hellaswag is not None:
        change = _change_or_none(quality.acc_norm, "points", quality.reference)
        parts.append(f"HellaSwag acc_norm {format_percent(pick.hellaswag.acc_norm)}, {change}")
    if pick.perplexity is not None:
        change = _change_or_none(quality.perplexity_ratio, "%", quality.reference)
        parts.append(f"perplexity {format_number(pick.perplexity.token)}, {change}")
    return f"Quality: {'; '.join(parts)}."


def _change_or_none(difference: Difference | None, unit: str, reference: str) -> str:
    if difference is None:
        return f"not comparable with {reference}'s, so not judged"
    return _change(difference, unit, reference)


def _cpu_reason(pick: RunRecord, suitable: Sequence[RunRecord]) -> tuple[str, ...]:
    """The way out when the GPU is taken: the fastest suitable row that runs on the CPU."""
    if pick.device != "cuda":
        return ()
    on_cpu = [row for row in suitable if row.device == "cpu"]
    if not on_cpu:
        return ()
    row = max(on_cpu, key=lambda row: _rate(row).median)
    need = needed_bytes(row)
    memory = "" if need is None else f", {_where(row, need)}"
    return (
        f"Instead {row.backend} if the GPU is busy: {_rate_text(row)} tokens/s on the CPU{memory}.",
    )


# ---------------------------------------------------------------- figures


def _rate(row: RunRecord) -> Sampled:
    if row.decode is None:
        raise ValueError(f"row {row.backend} has no decode rate.")
    return row.decode.tokens_per_s


def _ties(rate: Sampled, fastest: Sampled) -> bool:
    return overlap(rate, fastest) and rate.median >= (1 - TIE_SHARE) * fastest.median


def _rate_text(row: RunRecord) -> str:
    rate = _rate(row)
    return f"{format_rate(rate.median)} ({format_rate(rate.low)}–{format_rate(rate.high)})"


def _memory_order(row: RunRecord) -> tuple[float, float]:
    """GPU memory first, RAM second; unknown memory last."""
    need = needed_bytes(row)
    size = float("inf") if need is None else float(need)
    if row.memory is not None and row.memory.device == "cpu":
        return 0.0, size
    ram = row.memory.peak_ram_bytes if row.memory is not None else None
    return size, float("inf") if ram is None else float(ram)


def _where(row: RunRecord, size_bytes: int) -> str:
    on_gpu = row.memory is not None and row.memory.device == "cuda"
    return f"{format_bytes(size_bytes)} of {'GPU memory' if on_gpu else 'RAM'}"


def _change(difference: Difference, unit: str, reference: str) -> str:
    """A change in hundredths with its interval: ``−0.5 points against bf16 (−1.1 to −0.1)``."""
    ends = (difference.low, difference.high)
    decimals = 1 if max(map(abs, ends)) >= 0.01 else 2
    mean, low, high = (
        format_signed(100 * share, decimals=decimals) for share in (difference.mean, *ends)
    )
    tie = ", a tie" if difference.tie else ""
    return f"{mean} {unit} against {reference} ({low} to {high}{tie})"
