"""``Found`` ─► the table and plots of it: memory and time of each mode, against off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmfit.benchmark import speedup
from llmfit.studies.base import cell, ratio_cell, share_of, time_cell
from llmfit.studies.checkpointing.measuring import Found, Measured, Sizes
from llmfit.studies.checkpointing.subjects import OFF
from llmfit.studies.reference import CHECKPOINTING
from llmfit.study_records import Cell, Series, StudyColumn, StudyPlot, StudyRow, StudyTable


def table(found: Found, *, published: bool) -> StudyTable:
    """A row a mode; ``published`` sets the reference's figures beside ours."""
    theirs = (
        StudyColumn(key="their_speed", head="speed", under="RTX 3090", unit="ratio"),
        StudyColumn(key="their_memory", head="memory", under="RTX 3090", unit="ratio"),
        StudyColumn(key="their_time", head="step", under="RTX 3090", unit="s", needed=False),
        StudyColumn(key="their_peak", head="peak", under="RTX 3090", unit="bytes", needed=False),
    )
    return StudyTable(
        title=f"A training step: {found.subject}",
        head="mode",
        columns=(
            StudyColumn(key="time", head="step", unit="s"),
            StudyColumn(key="speed", head="speed", under="÷ off", unit="ratio"),
            *(theirs[:1] if published else ()),
            StudyColumn(key="peak", head="peak", unit="bytes"),
            StudyColumn(key="memory", head="memory", under="÷ off", unit="ratio"),
            *(theirs[1:2] if published else ()),
            StudyColumn(key="saved", head="kept for", under="backward", unit="bytes"),
            StudyColumn(key="kept", head="kept", under="÷ off", unit="ratio", needed=False),
            StudyColumn(key="flops", head="operations", under="÷ off", unit="ratio", needed=False),
            StudyColumn(
                key="difference", head="gradients", under="apart by", unit="number", needed=False
            ),
            *(theirs[2:] if published else ()),
        ),
        rows=tuple(_row(m, found.by_mode(OFF), published=published) for m in found.modes),
    )


def _row(measured: Measured, off: Measured, *, published: bool) -> StudyRow:
    theirs = _published_cells(measured.mode) if published else {}
    result, first = measured.result, off.result
    if result is None:
        return StudyRow(
            name=measured.mode, status="does_not_fit", reason=measured.reason, cells=theirs
        )
    cells = {
        "time": time_cell(result),
        "peak": cell(result.peak_bytes),
        "saved": cell(measured.saved_bytes),
        "kept": share_of(measured.saved_bytes, off.saved_bytes),
        "difference": cell(measured.difference),
    }
    if first is not None:
        cells |= {
            "speed": ratio_cell(speedup(first, result)),
            "memory": share_of(result.peak_bytes, first.peak_bytes),
            "flops": share_of(result.flops, first.flops),
        }
    return StudyRow(name=measured.mode, cells=cells | theirs)


def _published_cells(mode: str) -> dict[str, Cell]:
    if mode not in CHECKPOINTING:
        return {}
    theirs, off = CHECKPOINTING[mode], CHECKPOINTING[OFF]
    return {
        "their_speed": cell(off.seconds / theirs.seconds),
        "their_memory": share_of(theirs.memory_bytes, off.memory_bytes),
        "their_time": cell(theirs.seconds),
        "their_peak": cell(theirs.memory_bytes),
    }


def plots(found: Found) -> tuple[StudyPlot, ...]:
    """Memory and time of each mode ÷ off's, the published ones beside."""
    if found.by_mode(OFF).result is None:
        return ()
    modes = tuple(m.mode for m in found.modes)
    published = [_published_cells(mode) for mode in modes]

    def ratios(values: Sequence[float | None]) -> tuple[float | None, ...]:
        first = values[0]
        return tuple(value / first if value and first else None for value in values)

    results = [m.result for m in found.modes]
    peaks = ratios([r.peak_bytes if r else None for r in results])
    kept = ratios([m.saved_bytes for m in found.modes])
    times = ratios([r.latency_s.median if r else None for r in results])
    their_peaks = ratios([_figure(cells, "their_peak") for cells in published])
    their_times = ratios([_figure(cells, "their_time") for cells in published])
    return (
        StudyPlot(
            title="Memory of a training step",
            kind="bars",
            x_label="checkpointing",
            y_label="÷ off",
            series=(
                Series(name="peak", x=modes, y=peaks),
                Series(name="kept for the backward pass", x=modes, y=kept),
                Series(name="peak, RTX 3090", x=modes, y=their_peaks, reference=True),
            ),
        ),
        StudyPlot(
            title="Time of a training step",
            kind="bars",
            x_label="checkpointing",
            y_label="÷ off",
            series=(
                Series(name="time", x=modes, y=times),
                Series(name="RTX 3090", x=modes, y=their_times, reference=True),
            ),
        ),
    )


def _figure(cells: Mapping[str, Cell], key: str) -> float | None:
    value = cells[key].value if key in cells else None
    return float(value) if value is not None else None


def notes(sizes: Sizes) -> tuple[str, ...]:
    """What the columns count, and on which sizes."""
    return (
        "Peak: model, gradients, AdamW's state and all that a step allocates beyond them. Kept for "
        "the backward pass: storages saved by autograd, each once, without parameters.",
        f"Own Transformer: {sizes.layers} layers of width {sizes.width}, {sizes.tokens:,} tokens, "
        f"batch {sizes.batch}, vocabulary {sizes.vocabulary:,}. Selective keeps matrix products "
        "and attention's results; transformers' own switch is for every so many layers.",
    )
