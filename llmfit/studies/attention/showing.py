"""``Found`` ─► the tables and plots: figures by length and kernel, and how they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llmfit.benchmark import speedup
from llmfit.studies.attention.growth_of import (
    FIT_FROM,
    memory_growth,
    memory_theory,
    time_growth,
)
from llmfit.studies.attention.kernels import FLASH, KERNELS, STANDARD
from llmfit.studies.attention.measuring import (
    CAUSAL,
    FULL,
    GROUPED,
    VARIANTS,
    Found,
    Sizes,
    Variant,
    saved,
)
from llmfit.studies.attention.published import GPU, LENGTHS, published_gain, published_steps
from llmfit.studies.base import cell, ratio_cell, time_cell
from llmfit.studies.growth import FIT_NOTE, Growth, growth, growth_plot
from llmfit.study_records import Cell, Series, StudyColumn, StudyPlot, StudyRow, StudyTable

_COLUMNS = (
    StudyColumn(key="time", head="time", unit="s"),
    StudyColumn(key="memory", head="memory", unit="bytes"),
    StudyColumn(key="working", head="allocated", under="in a call", unit="bytes", needed=False),
    StudyColumn(key="error", head="largest", under="error", unit="number"),
    StudyColumn(key="faster", head="speed-up", unit="ratio"),
    StudyColumn(key="less", head="memory", under="saved", unit="ratio"),
)
_PUBLISHED_COLUMNS = (
    StudyColumn(key="faster_published", head="speed-up", under=GPU, unit="ratio"),
    StudyColumn(key="less_published", head="saved", under=GPU, unit="ratio"),
)


def tables(found: Sequence[Found], sizes: Sizes) -> tuple[StudyTable, ...]:
    """One a variant, and one of the growth of all."""
    return (*(_table(found, variant, sizes) for variant in VARIANTS), _growth_table(found))


def _table(found: Sequence[Found], variant: Variant, sizes: Sizes) -> StudyTable:
    own = [each for each in found if each.variant == variant]
    heads = f"{sizes.heads} heads of {sizes.head_width}"
    if variant.grouped:
        heads += f" on {sizes.kv_heads} of keys and values"
    titles = {FULL: "Every token sees all", CAUSAL: "Causal", GROUPED: "Causal, grouped queries"}
    return StudyTable(
        title=f"{titles[variant]}: batch {sizes.batch}, {heads}, {sizes.dtype}",
        head="length, kernel",
        columns=(*_COLUMNS, *_PUBLISHED_COLUMNS) if variant == FULL else _COLUMNS,
        rows=tuple(_row(each, own) for each in sorted(own, key=lambda one: one.length is None)),
        notes=("speed-up and memory saved: standard's ÷ this kernel's",),
    )


def _row(each: Found, own: Sequence[Found]) -> StudyRow:
    name = each.kernel if each.length is None else f"{each.length:,} {each.kernel}"
    cells: dict[str, Cell] = {}
    if each.result is not None:
        cells = {
            "time": time_cell(each.result),
            "memory": cell(each.total_bytes),
            "working": cell(each.result.working_bytes),
            "error": cell(each.trial.error),
        }
        base = _one(own, STANDARD, each.length)
        if base is not None and base.result is not None and each.kernel != STANDARD:
            cells["faster"] = ratio_cell(speedup(base.result, each.result))
            cells["less"] = cell(saved(base, each))
    published = published_gain(each.length)
    if published is not None and (each.kernel, each.variant) == (FLASH, FULL):
        cells["faster_published"] = cell(published.faster)
        cells["less_published"] = cell(published.less)
    return StudyRow(name=name, status=each.trial.status, reason=each.trial.reason, cells=cells)


def _one(found: Iterable[Found], kernel: str, length: int | None) -> Found | None:
    """The kernel at that length."""
    return next((each for each in found if (each.kernel, each.length) == (kernel, length)), None)


# ---------------------------------------------------------------- growth


def _growth_table(found: Sequence[Found]) -> StudyTable:
    rows = [
        _growth_row(
            f"{variant.name} {kernel}",
            kernel,
            time_growth(found, variant, kernel),
            memory_growth(found, variant, kernel),
        )
        for variant in VARIANTS
        for kernel in KERNELS
    ]
    for kernel, steps in published_steps():
        rows.append(
            _growth_row(
                f"{kernel}, {GPU}",
                kernel,
                growth(LENGTHS, [step.seconds for step in steps], first=FIT_FROM),
                growth(LENGTHS, [step.memory_bytes for step in steps], first=FIT_FROM),
            )
        )
    return StudyTable(
        title=f"Growth with the length, from {FIT_FROM:,} on: cost = a · lengthᵇ",
        head="kernel",
        columns=(
            StudyColumn(key="time", head="time", under="b", unit="number"),
            StudyColumn(key="time_theory", head="time", under="theory", unit="number"),
            StudyColumn(key="memory", head="memory", under="b", unit="number"),
            StudyColumn(key="memory_theory", head="memory", under="theory", unit="number"),
        ),
        rows=tuple(row for row in rows if row is not None),
        notes=(FIT_NOTE,),
    )


def _growth_row(
    name: str, kernel: str, time: Growth | None, memory: Growth | None
) -> StudyRow | None:
    """None for a kernel that did not run at two lengths: its own row says why."""
    if time is None:
        return None
    cells = {
        "time": time.as_cell(),
        "time_theory": cell(2),
        "memory_theory": cell(memory_theory(kernel)),
    }
    if memory is not None:
        cells["memory"] = memory.as_cell()
    return StudyRow(name=name, cells=cells)


# ---------------------------------------------------------------- plots


def plots(found: Sequence[Found]) -> tuple[StudyPlot, ...]:
    """Time and memory by length, as measured and as published."""
    times = _series(found, lambda each: each.seconds)
    memory = _series(found, lambda each: each.total_bytes)
    for kernel, steps in published_steps():
        times.append(_published(kernel, [step.seconds for step in steps]))
        memory.append(_published(kernel, [step.memory_bytes for step in steps]))
    return (
        growth_plot("Time of a call", "tokens", "seconds", tuple(times)),
        growth_plot("Memory of a call", "tokens", "bytes", tuple(memory)),
    )


def _published(kernel: str, costs: Sequence[float | None]) -> Series:
    return Series(name=f"{kernel}, {GPU}", x=LENGTHS, y=tuple(costs), reference=True)


def _series(found: Sequence[Found], cost: Callable[[Found], float | None]) -> list[Series]:
    lines = []
    for variant in (FULL, CAUSAL):
        for kernel in KERNELS:
            own = [
                each
                for each in found
                if (each.variant, each.kernel) == (variant, kernel) and each.result is not None
            ]
            if own:
                lines.append(
                    Series(
                        name=f"{kernel}, {variant.name}",
                        x=tuple(each.length or 0 for each in own),
                        y=tuple(cost(each) for each in own),
                    )
                )
    return lines
