"""The ladder to a memory target as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmfit.planning.advice.ladder import MemoryPath, Rung
from llmfit.report._column import UNKNOWN, Column, Detail
from llmfit.report._layout import hanging, styled, widest
from llmfit.report._text import plain
from llmfit.report.lines import hardware_text, synthetic_option
from llmfit.units import GB, MB, format_bytes, format_count, format_number

if TYPE_CHECKING:
    from rich.console import RenderableType

PathFormat = Literal["table", "json"]


def render_path(path: MemoryPath, fmt: PathFormat, *, width: int = 120, color: bool = False) -> str:
    """The path as text that ends in a newline; ``width`` and ``color`` are of the table."""
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(path) + "\n"
    from rich.text import Text

    notes = _numbered(path)
    marks = ["".join(sign for sign, _, owners in notes if rung in owners) for rung in path.rungs]
    table, _, full_width = widest(
        lambda detail: _columns(path, detail),
        width=width,
        styles=["bold" if rung.fits else "" for rung in path.rungs],
        marks=marks,
    )
    parts: list[RenderableType] = [Text(_heading(path), style="bold"), Text(), table, Text()]
    parts += [hanging(f"{sign} ", text) for sign, text, _ in notes]
    parts.append(Text(_outcome(path), style="bold"))
    parts += [Text(line, style="dim") for line in _legend(path, full_width)]
    return styled(parts, width=width, color=color)


# ---------------------------------------------------------------- around the table


def _heading(path: MemoryPath) -> str:
    work = path.rungs[0].workload
    parts = [plain(path.model.name)]
    if path.model.parameters is not None:
        parts.append(f"{format_count(path.model.parameters)} parameters")
    parts.append(f"to {format_bytes(path.target_bytes)}")
    if path.hardware is not None:
        parts.append(hardware_text(path.hardware))
    else:
        parts.append("a GPU that is not here")
    parts.append(f"batch {work.batch}")
    parts.append(f"prompt {work.prompt_tokens:,} + {work.new_tokens:,} new tokens")
    if work.prefill_chunk is not None:
        parts.append(f"prefill in chunks of {work.prefill_chunk:,}")
    return " · ".join(parts)


def _numbered(path: MemoryPath) -> list[tuple[str, str, tuple[Rung, ...]]]:
    """Sign, text and rungs of each different reason why a rung was not measured."""
    if not path.measured:
        return []
    owners: dict[str, list[Rung]] = {}
    for rung in path.rungs:
        if rung.measured_reason is not None:
            owners.setdefault(plain(rung.measured_reason), []).append(rung)
    signs = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return [
        (str(number).translate(signs), text, tuple(rungs))
        for number, (text, rungs) in enumerate(owners.items(), start=1)
    ]


def _outcome(path: MemoryPath) -> str:
    last = path.rungs[-1]
    if not path.reached:
        return _sentence(plain(path.notes[-1]))
    need = last.measured_total_bytes
    how = "measured" if need is not None else "predicted"
    if need is None:
        need = last.predicted.total_bytes if last.predicted is not None else 0
    where = "RAM" if last.device == "cpu" else "GPU memory"
    target = format_bytes(path.target_bytes)
    return f"{plain(last.label)} fits {target}: {format_bytes(need)} of {where}, {how}."


def _legend(path: MemoryPath, full_width: int | None) -> list[str]:
    notes = path.notes if path.reached else path.notes[:-1]
    lines = [_sentence(plain(note)) for note in notes]
    whole = "CUDA context" if path.device == "cuda" else "interpreter"
    lines.append(f"memory: the peak, {whole} and all; max context: tokens that fit the target")
    if any(rung.quality not in (None, "unchanged") for rung in path.rungs):
        lines.append("quality: published perplexity of each format, on other models")
    if full_width is not None:
        lines.append(f"All columns: a terminal {full_width} wide")
    if not path.measured:
        lines.append(f"Measure each step{_elsewhere(path)}: {_measuring_command(path)}")
    return lines


def _elsewhere(path: MemoryPath) -> str:
    return ", where there is a GPU" if path.hardware is None else ""


def _measuring_command(path: MemoryPath) -> str:
    name = "" if path.model.source == "embedded" else f" {plain(path.model.name)}"
    synthetic = synthetic_option(path.model)
    return f"llmfit path{name} --to-gb {path.target_bytes / GB:g} --measure{synthetic}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


# ---------------------------------------------------------------- columns


def _columns(path: MemoryPath, detail: Detail) -> tuple[Column, ...]:
    rungs = path.rungs
    sizes = [rung.predicted.total_bytes for rung in rungs if rung.predicted is not None]
    unit, name = (GB, "GB") if max(sizes) >= GB else (MB, "MB")
    both = len({rung.device for rung in rungs}) > 1

    def part(head: str, field: str) -> Column:
        cells = tuple(_part(rung, field, unit) for rung in rungs)
        return Column(head=head, unit=name, cells=cells)

    totals = tuple(
        _part(rung, "total_bytes", unit) + (" RAM" if both and rung.device == "cpu" else "")
        for rung in rungs
    )
    chosen = [
        Column(
            head="step", unit="", cells=tuple(plain(rung.label) for rung in rungs), align="left"
        ),
        Column(head="predicted", unit=name, cells=totals),
    ]
    if detail >= Detail.LEAN:
        chosen += [
            part("weights", "weights_bytes"),
            part("KV cache", "kv_cache_bytes"),
            part("activations", "activation_bytes"),
        ]
    measured = tuple(
        UNKNOWN if rung.measured_total_bytes is None
        else format_number(rung.measured_total_bytes / unit)
        for rung in rungs
    )  # fmt: skip
    chosen += [
        Column(head="measured", unit=name, cells=measured, known=path.measured),
        Column(head="fits", unit="", cells=tuple(_fits(rung) for rung in rungs)),
        Column(head="max", unit="context", cells=tuple(_context(rung) for rung in rungs)),
        Column(
            head="quality",
            unit="published",
            cells=tuple(
                plain(rung.quality or UNKNOWN).removeprefix("perplexity ") for rung in rungs
            ),
            align="left",
        ),
    ]
    return tuple(column for column in chosen if column.known)


def _part(rung: Rung, field: str, unit: int) -> str:
    return (
        UNKNOWN if rung.predicted is None else format_number(getattr(rung.predicted, field) / unit)
    )


def _fits(rung: Rung) -> str:
    return UNKNOWN if rung.fits is None else "✓" if rung.fits else "✗"


def _context(rung: Rung) -> str:
    return UNKNOWN if rung.max_context is None else f"{rung.max_context:,}"
