"""What a technique was found to give, and whether that is inside the range expected of it.

The table gives whole percents of memory, tenths of a factor, tenths of a percent of accuracy: a
figure is inside its range when it is so after rounding to that digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmfit.records import Status
from llmfit.studies.base import share_of
from llmfit.studies.reference import Expected
from llmfit.study_records import BenchmarkResult, Ratio, StudyCheck

Range = tuple[float, float]
Aspect = Literal["memory", "speed", "quality"]
ASPECTS: tuple[Aspect, ...] = ("memory", "speed", "quality")
INSIDE = {True: "inside", False: "outside"}
_DIGITS: dict[Aspect, int] = {"memory": 2, "speed": 1, "quality": 3}


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
