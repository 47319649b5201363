"""Found ─► tables (figures beside their ranges, baselines, what became of the model) and plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmfit.studies.base import cell, ratio_cell
from llmfit.studies.reference import Expected
from llmfit.studies.techniques.found import (
    ASPECTS,
    INSIDE,
    Aspect,
    Details,
    Found,
    inside,
    range_of,
    range_text,
)
from llmfit.study_records import Cell, Series, StudyColumn, StudyPlot, StudyRow, StudyTable

NOTES = (
    "mixed precision is a training step in BF16 autocast over float32 weights, which keep their "
    "bytes: only activations shrink.",
    "A tenth of this model's 5.2 M parameters is the embedding, which formats leave in 16 bits "
    "and layers cut off do not touch: savings of a large model's weights are larger.",
    "In a model so small a kernel's launch and Python outweigh its arithmetic: speed-ups that come "
    "from less work or fewer bytes are smaller than a large model's, and a KV cache has little to "
    "save.",
    "Formats: memory is of the weights, speed of decoding against bf16 weights with the same fused "
    "attention, accuracy against the bf16 row of the same comparison.",
)


def main_table(found: Sequence[Found], expected: dict[str, Expected]) -> StudyTable:
    """Technique by technique: memory saved, speed, accuracy lost, each against its range."""
    return StudyTable(
        title="Techniques: measured, and inside or outside what is expected",
        head="technique",
        columns=(
            *_aspect_columns("memory", "memory", "saved", "share"),
            *_aspect_columns("speed", "speed", "", "ratio"),
            *_aspect_columns("quality", "accuracy", "lost", "share"),
            StudyColumn(key="memory_of", head="memory of", unit="text", needed=False),
            StudyColumn(key="quality_of", head="accuracy of", unit="text", needed=False),
        ),
        rows=tuple(_main_row(each, expected[each.technique]) for each in found),
        notes=("Below 0: more memory, or accuracy gained.",),
    )


def _aspect_columns(
    aspect: Aspect, head: str, under: str, unit: Literal["share", "ratio"]
) -> tuple[StudyColumn, ...]:
    return (
        StudyColumn(key=aspect, head=head, under=under, unit=unit),
        StudyColumn(
            key=f"{aspect}_expected", head="expected", under=head, unit="text", needed=False
        ),
        StudyColumn(key=f"{aspect}_inside", head="in range", unit="text"),
    )


def _main_row(found: Found, expected: Expected) -> StudyRow:
    cells: dict[str, Cell] = {}
    for aspect in ASPECTS:
        value, within = found.value(aspect), range_of(expected, aspect)
        verdict = inside(value, within, aspect)
        cells[aspect] = cell(value)
        cells[f"{aspect}_expected"] = cell(range_text(within, aspect))
        cells[f"{aspect}_inside"] = cell(None if verdict is None else INSIDE[verdict])
    if found.speed is not None:
        cells["speed"] = ratio_cell(found.speed)
    cells["memory_of"] = cell(found.memory_of or None)
    cells["quality_of"] = cell(None if found.lost is None else found.lost.of)
    return StudyRow(name=found.technique, status=found.status, reason=found.reason, cells=cells)


def absolute_table(found: Sequence[Found]) -> StudyTable:
    """Seconds and bytes of each technique and of the baseline that it is held against."""
    return StudyTable(
        title="Baselines, and the same with the technique",
        head="technique",
        columns=(
            StudyColumn(key="baseline", head="baseline", unit="text", needed=False),
            StudyColumn(key="seconds_before", head="time", under="baseline", unit="s"),
            StudyColumn(key="seconds_after", head="time", under="technique", unit="s"),
            StudyColumn(key="bytes_before", head="memory", under="baseline", unit="bytes"),
            StudyColumn(key="bytes_after", head="memory", under="technique", unit="bytes"),
        ),
        rows=tuple(_absolute_row(each) for each in found),
    )


def _absolute_row(found: Found) -> StudyRow:
    cells: dict[str, Cell] = {}
    if found.before is not None and found.after is not None:
        cells = {
            "baseline": cell(found.before.name),
            "seconds_before": cell(found.before.seconds),
            "seconds_after": cell(found.after.seconds),
            "bytes_before": cell(found.before.bytes),
            "bytes_after": cell(found.after.bytes),
        }
    return StudyRow(name=found.technique, status=found.status, reason=found.reason, cells=cells)


def details_table(found: Sequence[Found]) -> StudyTable:
    """What became of the model, for those techniques that change it."""
    return StudyTable(
        title="What became of the model",
        head="technique",
        columns=(
            StudyColumn(key="layers", head="layers", under="kept", unit="text", needed=False),
            StudyColumn(key="parameters", head="parameters", unit="count", needed=False),
            StudyColumn(key="trainable", head="trained", under="share", unit="share"),
            StudyColumn(key="steps", head="steps", unit="count"),
            StudyColumn(key="first_loss", head="loss", under="before", unit="number"),
            StudyColumn(key="last_loss", head="loss", under="after", unit="number"),
            StudyColumn(key="held_bytes", head="held", unit="bytes", needed=False),
            StudyColumn(
                key="process_bytes", head="process", under="peak", unit="bytes", needed=False
            ),
            StudyColumn(key="perplexity", head="perplexity", unit="number"),
            StudyColumn(key="perplexity_change", head="change", unit="share"),
        ),
        rows=tuple(
            StudyRow(name=each.technique, cells=_detail_cells(each.details))
            for each in found
            if each.details is not None
        ),
    )


def _detail_cells(details: Details) -> dict[str, Cell]:
    names = (
        "layers", "parameters", "trainable", "steps", "first_loss", "last_loss",
        "held_bytes", "process_bytes", "perplexity", "perplexity_change",
    )  # fmt: skip
    return {name: cell(getattr(details, name)) for name in names}


# ---------------------------------------------------------------- plots


def plots(found: Sequence[Found], expected: dict[str, Expected]) -> tuple[StudyPlot, ...]:
    """A panel for each aspect: ours beside both ends of the expected range."""
    ran = [each for each in found if each.status == "ok"]
    if not ran:
        return ()
    return (
        _bars(ran, expected, "memory", "Memory saved", "share of the baseline's"),
        _bars(ran, expected, "speed", "Speed", "times the baseline's"),
        _bars(ran, expected, "quality", "Accuracy lost", "share of 1"),
    )


def _bars(
    found: Sequence[Found], expected: dict[str, Expected], aspect: Aspect, title: str, y_label: str
) -> StudyPlot:
    names = tuple(each.technique for each in found)
    ranges = [range_of(expected[name], aspect) for name in names]
    return StudyPlot(
        title=title,
        kind="bars",
        x_label="technique",
        y_label=y_label,
        series=(
            Series(name="measured", x=names, y=tuple(each.value(aspect) for each in found)),
            *(
                Series(
                    name=f"expected, {end}",
                    x=names,
                    y=tuple(None if bounds is None else bounds[place] for bounds in ranges),
                    reference=True,
                )
                for place, end in enumerate(("least", "most"))
            ),
        ),
    )
