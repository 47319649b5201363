"""A plan as a table for a terminal, or as markdown: what each format would need and do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from llmfit.records import ModelPlan, PlanRow, SpeedPrediction
from llmfit.report._column import UNKNOWN, Column, Detail
from llmfit.report._layout import hanging, styled, widest
from llmfit.report._text import plain
from llmfit.report.lines import hardware_text, synthetic_option
from llmfit.units import (
    GB,
    MB,
    format_bytes,
    format_count,
    format_number,
    format_rate,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

PlanFormat = Literal["table", "json"]


def render_plan(plan: ModelPlan, fmt: PlanFormat, *, width: int = 120, color: bool = False) -> str:
    """The plan as text that ends in a newline; ``width`` and ``color`` are of the table."""
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(plan) + "\n"
    return _table(plan, width, color)


def _table(plan: ModelPlan, width: int, color: bool) -> str:
    from rich.text import Text

    notes = _numbered(plan)
    marks = ["·".join(sign for sign, _, owners in notes if row in owners) for row in plan.rows]
    table, _, full_width = widest(
        lambda detail: _columns(plan, detail),
        width=width,
        styles=["dim" if row.fits is False else "" for row in plan.rows],
        marks=marks,
    )
    parts: list[RenderableType] = [Text(_heading(plan), style="bold"), Text(), table, Text()]
    if plan.gpus > 1:
        split, _, _ = widest(lambda _: _split_columns(plan), width=width, marks=marks)
        parts += [Text(_split_heading(plan), style="bold"), Text(), split, Text()]
    parts += [hanging(f"{sign} ", text) for sign, text, _ in notes]
    if notes:
        parts.append(Text())
    parts += [Text(line, style="dim") for line in _legend(plan, full_width)]
    return styled(parts, width=width, color=color)


# ---------------------------------------------------------------- around the table


def _heading(plan: ModelPlan) -> str:
    work = plan.workload
    parts = [plain(plan.model.name)]
    if plan.parameters is not None:
        parts.append(f"{format_count(plan.parameters)} parameters")
        if plan.active_parameters is not None and plan.active_parameters < plan.parameters:
            parts[-1] += f", {format_count(plan.active_parameters)} active"
    if plan.gpu is not None:
        parts.append(hardware_text(plan.gpu))
    parts.append(hardware_text(plan.cpu))
    if plan.gpu is not None and plan.gpu_budget_bytes != plan.gpu.memory_bytes:
        parts.append(f"GPU budget {format_bytes(plan.gpu_budget_bytes or 0)}")
    if plan.ram_budget_bytes != plan.cpu.memory_bytes:
        parts.append(f"RAM budget {format_bytes(plan.ram_budget_bytes or 0)}")
    parts.append(f"batch {work.batch}")
    parts.append(f"prompt {work.prompt_tokens:,} + {work.new_tokens:,} new tokens")
    if work.prefill_chunk is not None:
        parts.append(f"prefill in chunks of {work.prefill_chunk:,}")
    if plan.kv_cache_dtype is not None:
        parts.append(f"KV cache in {plan.kv_cache_dtype}")
    return " · ".join(parts)


def _numbered(plan: ModelPlan) -> list[tuple[str, str, tuple[PlanRow, ...]]]:
    """Sign, text and rows of each different reason, basis and note, in the order of the rows."""
    owners: dict[str, list[PlanRow]] = {}
    for row in plan.rows:
        texts = [row.reason] if row.reason else []
        if row.tokens_per_s is not None:
            texts.append(f"speed: {row.tokens_per_s.basis}")
        texts += _split_reasons(row)
        for text in dict.fromkeys(plain(text) for text in (*texts, *row.notes)):
            owners.setdefault(text, []).append(row)
    signs = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return [
        (str(number).translate(signs), text, tuple(rows))
        for number, (text, rows) in enumerate(owners.items(), start=1)
    ]


def _legend(plan: ModelPlan, full_width: int | None) -> list[str]:
    lines = [plain(note) for note in plan.notes]
    lines.append("Predicted, nothing was run. Decode: median expected (range); memory is the peak")
    if plan.gpu is not None and any(row.device == "cpu" for row in plan.rows):
        lines[-1] += "; RAM: on the CPU"
    lines.append("max context: prompt and new tokens that fit, at most the model's own limit")
    if plan.gpus > 1:
        lines.append(
            "balanced: whole layers on each GPU, one computing after the other; tensor: a part of "
            "every matrix on each, all computing at once; the first table is of one GPU"
        )
    if full_width is not None:
        lines.append(f"All columns: a terminal {full_width} wide")
    lines.append("Every figure: --format json")
    lines.append(f"Measure: llmfit compare{_argument(plan)}")
    return lines


def _argument(plan: ModelPlan) -> str:
    if plan.model.source == "embedded":
        return ""
    return f" {plain(plan.model.name)}{synthetic_option(plan.model)}"


# ---------------------------------------------------------------- over several GPUs


def _split_heading(plan: ModelPlan) -> str:
    assert plan.gpu is not None
    budget = "" if plan.gpu_budget_bytes is None else f" of {format_bytes(plan.gpu_budget_bytes)}"
    return f"Over {plan.gpus} × {plain(plan.gpu.name)}{budget}: the fullest GPU"


def _split_reasons(row: PlanRow) -> list[str]:
    """Why it cannot be split; once where both ways say the same."""
    ways: dict[str, list[str]] = {}
    for split in row.splits:
        if split.reason is not None:
            ways.setdefault(split.reason, []).append(split.split)
    several = len(row.splits)
    return [
        f"over several GPUs: {reason}"
        if len(splits) == several
        else f"{' and '.join(splits)}: {reason}"
        for reason, splits in ways.items()
    ]


def _split_columns(plan: ModelPlan) -> tuple[Column, ...]:
    """Per way to split: memory of the fullest GPU, whether it fits, and the fewest that hold it."""
    rows = plan.rows
    unit, name = _unit(
        split.fullest_bytes for row in rows for split in row.splits if split.fullest_bytes
    )
    columns = [
        Column(head="format", unit="", cells=tuple(plain(row.label) for row in rows), align="left")
    ]
    for splits in zip(*(row.splits for row in rows), strict=True):
        way = splits[0].split
        columns += [
            Column(
                head=way,
                unit=f"{name} a GPU",
                cells=tuple(
                    UNKNOWN
                    if split.fullest_bytes is None
                    else format_number(split.fullest_bytes / unit)
                    for split in splits
                ),
            ),
            Column(head="fits", unit="", cells=tuple(_mark(split.fits) for split in splits)),
            Column(
                head="fewest",
                unit="GPUs",
                cells=tuple(
                    UNKNOWN if split.fewest_gpus is None else str(split.fewest_gpus)
                    for split in splits
                ),
            ),
        ]
    return tuple(columns)


# ---------------------------------------------------------------- columns


def _columns(plan: ModelPlan, detail: Detail) -> tuple[Column, ...]:
    rows = plan.rows
    sizes = [row.memory.total_bytes for row in rows if row.memory is not None]
    unit, name = _unit(sizes)
    both = plan.gpu is not None and any(row.device == "cpu" for row in rows)

    def part(head: str, field: str) -> Column:
        return Column(
            head=head,
            unit=name,
            cells=tuple(_size(row, field, unit) for row in rows),
            known=bool(sizes),
        )

    total = tuple(
        _size(row, "total_bytes", unit) + (" RAM" if both and row.device == "cpu" else "")
        for row in rows
    )
    chosen = [
        Column(head="format", unit="", cells=tuple(plain(row.label) for row in rows), align="left"),
        Column(head="memory", unit=f"peak {name}", cells=total),
    ]
    if detail >= Detail.LEAN:
        chosen += [
            part("weights", "weights_bytes"),
            part("KV cache", "kv_cache_bytes"),
            part("activations", "activation_bytes"),
            part("runtime", "runtime_bytes"),
        ]
    chosen += [
        Column(head="fits", unit="", cells=tuple(_mark(row.fits) for row in rows)),
        Column(head="max", unit="context", cells=tuple(_context(row) for row in rows)),
        Column(
            head="decode", unit="tokens/s", cells=tuple(_speed(row.tokens_per_s) for row in rows)
        ),
    ]
    if detail >= Detail.COMPACT:
        prefill = tuple(_speed(row.prefill_tokens_per_s) for row in rows)
        chosen.append(Column(head="prefill", unit="tokens/s", cells=prefill))
    return tuple(column for column in chosen if column.known)


def _size(row: PlanRow, field: str, unit: int) -> str:
    return UNKNOWN if row.memory is None else format_number(getattr(row.memory, field) / unit)


def _unit(sizes: Iterable[int]) -> tuple[int, str]:
    """The unit that suits the largest size."""
    return (MB, "MB") if 0 < max(sizes, default=0) < GB else (GB, "GB")


def _mark(fits: bool | None) -> str:
    return UNKNOWN if fits is None else "✓" if fits else "✗"


def _context(row: PlanRow) -> str:
    return UNKNOWN if row.max_context is None else f"{row.max_context:,}"


def _speed(rate: SpeedPrediction | None) -> str:
    if rate is None:
        return UNKNOWN
    return f"{format_rate(rate.estimate)} ({format_rate(rate.low)}–{format_rate(rate.high)})"
