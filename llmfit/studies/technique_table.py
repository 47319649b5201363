"""What a technique was found to give, held against the expected range: the table of techniques.

    Found (before, after, speed, accuracy lost) ─► judge against Expected ─► StudyTable, findings

The table gives whole percents of memory, tenths of a factor, tenths of a percent of accuracy: a
figure is inside its range when it is so after rounding to that digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmfit.records import Status
from llmfit.studies.base import cell, ratio_cell, share_of
from llmfit.studies.reference import Expected
from llmfit.study_records import (
    BenchmarkResult,
    Cell,
    Ratio,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_percent, format_ratio

Range = tuple[float, float]
Aspect = Literal["memory", "speed", "quality"]
_DIGITS: dict[Aspect, int] = {"memory": 2, "speed": 1, "quality": 3}
_INSIDE = {True: "inside", False: "outside"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two that are compared: its name, seconds of a call or token, and bytes."""

    name: str
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Accuracy lost, a share of 1, and what it is the accuracy of; below 0: it gained."""

    share: float
    of: str
    tie: bool | None = None
    """The data do not tell it from none; None: no interval is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Figures of a technique that changes the model; None where it has no such."""

    layers: str | None = None
    parameters: int | None = None
    trainable: float | None = None
    """Share of the parameters."""
    steps: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    """Nats a token."""
    held_bytes: int | None = None
    """Weights and optimizer state while it trains."""
    process_bytes: int | None = None
    """Peak of the process that generates and is scored, beyond what it held idle."""
    perplexity: float | None = None
    perplexity_change: float | None = None
    """Share by which it is above the baseline's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One technique's figures, or why there are none."""

    technique: str
    status: Status = "ok"
    reason: str | None = None
    before: Side | None = None
    after: Side | None = None
    memory_of: str = ""
    """What the bytes are of."""
    speed: Ratio | None = None
    lost: Loss | None = None
    details: Details | None = None
    checks: tuple[StudyCheck, ...] = ()
    notes: tuple[str, ...] = ()
    benchmarks: tuple[BenchmarkResult, ...] = ()
    artifact: str | None = None

    @property
    def memory_saved(self) -> float | None:
        """Share of the bytes that are no longer needed; below 0: more are."""
        if self.before is None or self.after is None:
            return None
        share = share_of(self.after.bytes, self.before.bytes).value
        return None if share is None else 1 - float(share)

    def value(self, aspect: Aspect) -> float | None:
        """The figure that is held against the range."""
        if aspect == "memory":
            return self.memory_saved
        if aspect == "speed":
            return None if self.speed is None else self.speed.value
        return None if self.lost is None else self.lost.share


def range_of(expected: Expected, aspect: Aspect) -> Range | None:
    """The expected range of one aspect."""
    ranges = {
        "memory": expected.memory_saving,
        "speed": expected.speed,
        "quality": expected.accuracy_loss,
    }
    return ranges[aspect]


def inside(value: float | None, expected: Range | None, aspect: Aspect) -> bool | None:
    """Is ``value``, rounded to the table's digit, within ``expected``? None: nothing to judge.

    Accuracy gained counts as none lost.
    """
    if value is None or expected is None:
        return None
    shown = round(max(0.0, value) if aspect == "quality" else value, _DIGITS[aspect])
    return expected[0] <= shown <= expected[1]


def range_text(expected: Range | None, aspect: Aspect) -> str | None:
    """``50–90 %``, ``1.5–2.5×``, ``0 %``; None for no range."""
    if expected is None:
        return None
    scale, unit = (1, "×") if aspect == "speed" else (100, " %")
    ends = [f"{round(scale * end, 1):g}" for end in expected]
    return (ends[0] if ends[0] == ends[1] else "–".join(ends)) + unit


# ---------------------------------------------------------------- tables


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
    aspects: tuple[Aspect, ...] = ("memory", "speed", "quality")
    for aspect in aspects:
        value, within = found.value(aspect), range_of(expected, aspect)
        verdict = inside(value, within, aspect)
        cells[aspect] = cell(value)
        cells[f"{aspect}_expected"] = cell(range_text(within, aspect))
        cells[f"{aspect}_inside"] = cell(None if verdict is None else _INSIDE[verdict])
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


# ---------------------------------------------------------------- plots and findings


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


def findings(found: Sequence[Found], expected: dict[str, Expected]) -> tuple[str, ...]:
    """How many figures are inside, and a sentence for each technique that was measured."""
    verdicts = [
        verdict
        for each in found
        for aspect in _DIGITS
        if (
            verdict := inside(
                each.value(aspect), range_of(expected[each.technique], aspect), aspect
            )
        )
        is not None
    ]
    summary = f"{sum(verdicts)} of {len(verdicts)} figures are inside the range expected of them."
    told = [_sentence(each, expected[each.technique]) for each in found if each.status == "ok"]
    return (summary, *told)


def _sentence(found: Found, expected: Expected) -> str:
    parts = []
    saved = found.memory_saved
    if saved is not None:
        more = "saves" if saved >= 0 else "needs"
        size = format_percent(abs(saved)) + ("" if saved >= 0 else " more")
        parts.append(f"{more} {size} of memory{_beside(found, expected, 'memory')}")
    if found.speed is not None:
        parts.append(_speed(found.speed) + _beside(found, expected, "speed"))
    if found.lost is not None:
        parts.append(_lost(found.lost) + _beside(found, expected, "quality"))
    return f"{found.technique}: {'; '.join(parts)}."


def _speed(speed: Ratio) -> str:
    if not speed.real:
        return f"no difference in speed beyond the noise ({format_ratio(speed.value)})"
    if speed.value >= 1:
        return f"{format_ratio(speed.value)} as fast"
    return f"slower, {format_ratio(speed.value)} the speed"


def _lost(lost: Loss) -> str:
    if lost.share == 0:
        return f"no accuracy lost ({lost.of})"
    verb = "loses" if lost.share > 0 else "gains"
    noise = ", which is within the noise" if lost.tie else ""
    return f"{verb} {format_percent(abs(lost.share), decimals=2)} of accuracy{noise} ({lost.of})"


def _beside(found: Found, expected: Expected, aspect: Aspect) -> str:
    within = range_of(expected, aspect)
    verdict = inside(found.value(aspect), within, aspect)
    if verdict is None:
        return ""
    return f" (expected {range_text(within, aspect)}: {_INSIDE[verdict]})"
