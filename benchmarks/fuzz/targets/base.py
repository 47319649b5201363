"""What every target is, and what several make their cases from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def _nothing(folder: Path) -> None:
    """A folder without other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader of files from strangers."""

    name: str
    file: str
    """The file that a case is the content of."""
    seeds: Callable[[], Sequence[bytes]]
    """Whole files, of which bytes are changed."""
    structured: Callable[[], SearchStrategy[bytes]]
    """Content of the right form with odd values in it."""
    run: Callable[[Path], None]
    """Reads the folder as llmfit does."""
    furnish: Callable[[Path], None] = _nothing
    """Puts the other files into the folder."""
    hot: int | None = None
    """The first bytes, where those are the ones that count."""
    padded_bytes: int | None = None
    """What the file is filled up to with zeros, which take no room; a case alone is shorter."""
    share: float = 1.0
    """Of the cases that an equal division would give; less where each takes long."""
    warm: Callable[[], None] = field(default=lambda: None)
    """Imports that no case is to pay for."""


def as_files(make: Callable[[], list[dict[str, Any]]]) -> list[bytes]:
    """Each of the tables as a JSON file."""
    return [json.dumps(each, indent=2).encode() for each in make()]
