"""What stands above and below the table, line by line, as plain text."""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.planning.comparing.differences import REFERENCE, reference_row
from llmfit.planning.verdict.recommend import STATUS_WORDS
from llmfit.records import Comparison, Hardware, ModelSpec, RunRecord, Verdict
from llmfit.report._column import Detail
from llmfit.report._quality import main_metric, task_names
from llmfit.report._text import plain
from llmfit.report.columns import PICK
from llmfit.units import (
    GB,
    format_bytes,
    format_count,
    format_gib,
    format_number,
    format_percent,
    format_seconds,
)

_MESSAGES_SHOWN = 3
"""Messages of one kind of warning shown in full; of further rows only the names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footnote:
    """A note or reason below the table, and the rows (by index) that it belongs to."""

    number: int
    text: str
    rows: tuple[int, ...]


def footnotes(comparison: Comparison) -> tuple[Footnote, ...]:
    """Each different reason and note once, numbered in the order of the rows."""
    owners: dict[str, list[int]] = {}
    for index, row in enumerate(comparison.rows):
        texts = list(row.notes)
        if row.status != "ok":
            texts.insert(0, _reason(row))
        if row.predicted_only and row.predicted_tokens_per_s is not None:
            texts.append(f"speed: {row.predicted_tokens_per_s.basis}")
        for text in dict.fromkeys(plain(text) for text in texts):
            owners.setdefault(text, []).append(index)
    return tuple(
        Footnote(number=number, text=text, rows=tuple(indexes))
        for number, (text, indexes) in enumerate(owners.items(), start=1)
    )


def _reason(row: RunRecord) -> str:
    reason = row.reason or "no reason recorded"
    if row.predicted_only and row.status == "skipped" and row.memory and row.memory.predicted:
        return f"predicted, not run: {reason}"
    return f"{STATUS_WORDS[row.status]}: {reason}"


def hardware_text(hardware: Hardware) -> str:
    """``RTX 4060 (8.00 GiB, 272 GB/s, assumed for --gpu-gb 8)``; what is not known is left out."""
    facts = []
    if hardware.memory_bytes is not None:
        ram = " RAM" if hardware.kind == "cpu" else ""
        facts.append(f"{format_gib(hardware.memory_bytes)}{ram}")
    if hardware.bandwidth is not None:
        facts.append(f"{format_number(hardware.bandwidth / GB)} GB/s")
    if hardware.assumed:
        facts.append(plain(hardware.source))
    return plain(hardware.name) + (f" ({', '.join(facts)})" if facts else "")


def heading(comparison: Comparison) -> str:
    """Model, machine, budget and workload in one line."""
    model, work, machine = comparison.model, comparison.workload, comparison.environment
    parts = [plain(model.name)]
    if model.parameters is not None:
        parts.append(f"{format_count(model.parameters)} parameters")
    if comparison.gpu is not None:
        parts.append(f"planned for {hardware_text(comparison.gpu)}")
    elif machine.gpu is not None:
        memory = machine.gpu_memory_bytes
        size = "" if memory is None else f" ({format_gib(memory)})"
        parts.append(plain(machine.gpu) + size)
    else:
        ram = "" if machine.ram_bytes is None else f", {format_gib(machine.ram_bytes)} RAM"
        cores = f"{machine.cpu_cores} core{'' if machine.cpu_cores == 1 else 's'}"
        parts.append(f"{plain(machine.cpu)} ({cores}{ram})")
    if comparison.budget_bytes is not None:
        parts.append(f"budget {format_bytes(comparison.budget_bytes)}")
    if comparison.ram_budget_bytes is not None:
        parts.append(f"RAM budget {format_bytes(comparison.ram_budget_bytes)}")
    parts.append(f"batch {work.batch}")
    parts.append(f"prompt {work.prompt_tokens} + {work.new_tokens} new tokens")
    return " · ".join(parts)


def verdict_lines(comparison: Comparison) -> tuple[str, ...]:
    """The pick first, then its other reasons, the Pareto front, and what would change the pick."""
    verdict = comparison.verdict
    reasons = tuple(plain(reason) for reason in verdict.reasons)
    if verdict.backend is not None and reasons:
        reasons = (f"{PICK} Pick {reasons[0]}", *reasons[1:])
    return (*reasons, *_front(verdict), *(plain(change) for change in verdict.changes))


def _front(verdict: Verdict) -> tuple[str, ...]:
    if len(verdict.pareto) < 2:
        return ()
    names = ", ".join(plain(name) for name in verdict.pareto)
    return (f"None is better in speed, memory and quality at once than: {names}.",)


def warnings(comparison: Comparison) -> tuple[str, ...]:
    """A line for each kind of warning: the rows, what was seen, and what to do about it."""
    kinds: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in comparison.rows:
        for warning in row.warnings:
            kind = kinds.setdefault((warning.code, plain(warning.hint)), {})
            kind.setdefault(plain(warning.message), []).append(plain(row.backend))
    return tuple(_warning(code, hint, seen) for (code, hint), seen in kinds.items())


def _warning(code: str, hint: str, seen: dict[str, list[str]]) -> str:
    """``seen`` maps each different message to the rows that have it."""
    parts = [f"{', '.join(names)}: {message}" for message, names in seen.items()]
    rest = [name for names in list(seen.values())[_MESSAGES_SHOWN:] for name in names]
    if rest:
        parts = [*parts[:_MESSAGES_SHOWN], f"and likewise {', '.join(rest)}"]
    told = "; ".join(part.rstrip(".") for part in parts)
    return f"Warning {plain(code)} · {told} → {hint}"


def reproduction(comparison: Comparison) -> tuple[str, ...]:
    """The command that makes the comparison again, and the one that checks its figures."""
    if comparison.rows and all(row.predicted_only for row in comparison.rows):
        return _how_to_measure(comparison)
    check = f"Check: llmfit reproduce {plain(comparison.record or comparison.run_id)}"
    return (f"Again: {plain(comparison.command)}", check) if comparison.command else (check,)


def _how_to_measure(comparison: Comparison) -> tuple[str, ...]:
    """For a comparison in which nothing was run, the two ways to figures."""
    name = plain(comparison.model.name)
    command = plain(comparison.command or f"llmfit compare {name}")
    fetched = f"hf download {name} where the hub is reached, then {command}"
    if comparison.model.quantization is not None:  # random weights are of unquantised models
        return (f"Measure: {fetched}",)
    return (
        f"Measure memory and speed here, with random weights: {command} --weights synthetic",
        f"Measure quality too: {fetched}",
    )


def synthetic_option(model: ModelSpec) -> str:
    """`` --weights synthetic`` for a model whose weights are not here, where it has such."""
    made = model.source == "catalogue" and model.quantization is None
    return " --weights synthetic" if made else ""


# ---------------------------------------------------------------- legend


def legend(comparison: Comparison, detail: Detail = Detail.ALL) -> tuple[str, ...]:
    """The protocol of each figure, and the meaning of the signs that can occur."""
    rows = comparison.rows
    return (
        *_memory(rows, detail),
        *_speed(rows),
        *_hellaswag(rows),
        *_perplexity(rows, detail),
        *(_divergence(rows, detail) if detail >= Detail.COMPACT else ()),
        *(_tasks(rows) if detail >= Detail.LEAN else ()),
        *_ties(rows),
        *_profiles(rows),
        *_duration(comparison),
    )


def _speed(rows: tuple[RunRecord, ...]) -> tuple[str, ...]:
    counts = [len(row.decode.tokens_per_s.samples) for row in rows if row.decode is not None]
    if not counts:
        return ()
    spread = "± to the farthest of them" if max(counts) < 6 else "± 95 % interval of the median"
    return (f"tokens/s: median of {max(counts)} runs, {spread}",)


def _memory(rows: tuple[RunRecord, ...], detail: Detail) -> tuple[str, ...]:
    if detail < Detail.LEAN or not any(row.memory and row.memory.error_pct for row in rows):
        return ()
    return ("memory: measured (predicted, error of the prediction, runtime apart)",)


def _hellaswag(rows: tuple[RunRecord, ...]) -> tuple[str, ...]:
    counts = sorted({row.hellaswag.n for row in rows if row.hellaswag is not None})
    items = " or ".join(f"{count:,}" for count in counts)
    return (f"HellaSwag: {items} questions, ± standard error",) if counts else ()


def _perplexity(rows: tuple[RunRecord, ...], detail: Detail) -> tuple[str, ...]:
    scores = [row.perplexity for row in rows if row.perplexity is not None]
    interval = detail >= Detail.FULL and any(score.low is not None for score in scores)
    spread = "; ± 95 % bootstrap interval" if interval else ""
    texts = (f"perplexity: {s.n_tokens:,} tokens, {plain(s.protocol)}{spread}" for s in scores)
    return tuple(dict.fromkeys(texts))


def _divergence(rows: tuple[RunRecord, ...], detail: Detail) -> tuple[str, ...]:
    texts: dict[str, None] = {}
    for found in (row.divergence for row in rows if row.divergence is not None):
        name = plain(found.reference)
        text = f"KL({name} ‖ row): nats per token, mean over {found.n_tokens:,} tokens of the text"
        if detail >= Detail.ALL and found.low is not None:
            text += " (95 % bootstrap interval)"
        if detail >= Detail.AGREEMENT:
            text += f"; top-1: share of them whose most likely token is {name}'s too"
        texts[text] = None
    return tuple(texts)


def _tasks(rows: tuple[RunRecord, ...]) -> tuple[str, ...]:
    parts = []
    for name in task_names(rows):
        task = next(task for row in rows for task in row.tasks if task.task == name)
        metric = main_metric(task)
        facts = [
            plain(metric.name) if metric is not None else None,
            f"version {plain(task.version)}" if task.version is not None else None,
            f"{task.n:,} items" if task.n is not None else None,
            f"{task.num_fewshot}-shot" if task.num_fewshot is not None else None,
        ]
        parts.append(f"{plain(name)} ({', '.join(fact for fact in facts if fact)})")
    return (f"tasks by lm-eval, ± standard error: {', '.join(parts)}",) if parts else ()


def _profiles(rows: tuple[RunRecord, ...]) -> tuple[str, ...]:
    """Where each profiled row's decode step goes."""
    lines = []
    for row in rows:
        if row.profile is None:
            continue
        groups = (
            f"{plain(g.name)} {format_percent(g.share, decimals=0)}" for g in row.profile.groups
        )
        step = format_seconds(row.profile.step_s)
        lines.append(f"a decode step of {plain(row.backend)}, {step}: {', '.join(groups)}")
    return tuple(lines)


def _duration(comparison: Comparison) -> tuple[str, ...]:
    """How long all of it took, and how much of that was not spent on any row's own work.

    Rows of a fleet run beside each other: what all of them took is more than the whole.
    """
    total, rows = comparison.total_s, comparison.rows
    if not total:
        return ()
    parts = {
        "making artifacts": [row.quantize_s for row in rows],
        "loading": [row.load_s for row in rows],
        "measuring": [row.measure_s for row in rows],
        "scoring": [row.evaluate_s for row in rows],
    }
    sums = {name: sum(s for s in seconds if s is not None) for name, seconds in parts.items()}
    rest = max(0.0, total - sum(sums.values()))
    told = ", ".join(f"{name} {format_number(spent)} s" for name, spent in sums.items() if spent)
    if comparison.environment.kind is not None:
        return (f"took {format_number(total)} s; rows, side by side: {told}",) if told else ()
    if sum(sums.values()) > total:  # rows of before are gone on with
        return (f"took {format_number(total)} s since it was gone on with; all rows: {told}",)
    overhead = f"the rest {format_number(rest)} s ({format_percent(rest / total)})"
    return (f"took {format_number(total)} s: {', '.join(filter(None, (told, overhead)))}",)


def _ties(rows: tuple[RunRecord, ...]) -> tuple[str, ...]:
    if not any(row.difference is not None for row in rows):
        return ()
    standard = reference_row(rows)
    name = REFERENCE if standard is None else plain(standard.backend)
    return (f"= a tie: the 95 % interval of the paired difference from {name} holds 0",)
