"""What a column of the tables is, and how much of it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

UNKNOWN = "–"


class Detail(IntEnum):
    """How much the table shows; each step shows all that the one before it does."""

    LEAST = 0
    """What decides: format, memory, speed, quality, verdict."""
    COMPACT = 1
    """And the divergence."""
    LEAN = 2
    """And predictions, shares of the limit, spreads, changes, further tasks."""
    AGREEMENT = 3
    """And the share of tokens with the same most likely next token."""
    FULL = 4
    """And the perplexity's interval."""
    ALL = 5
    """And the divergence's interval, and the first words of reasons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its head, the second line of the head, and a cell per row."""

    head: str
    unit: str
    cells: tuple[str, ...]
    align: Literal["left", "right"] = "right"
    known: bool = True
    """False when no row has a value: such a column is left out."""
    keys: tuple[float | None, ...] = ()
    """What each cell is sorted by, None last; empty for texts, which sort as they are."""


def with_ties(figures: Iterable[str], ties: Iterable[bool]) -> tuple[str, ...]:
    """Cells for a column aligned left: figures below each other, and = behind those that tie."""
    figures = list(figures)
    width = max(map(len, figures), default=0)
    return tuple(
        figure.rjust(width) + (" =" if tie else "")
        for figure, tie in zip(figures, ties, strict=True)
    )
