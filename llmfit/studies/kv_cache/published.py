"""The technique table ─► the speed-up that is published of a KV cache."""

from __future__ import annotations

from llmfit.studies.reference import TECHNIQUES


def published_speedup() -> tuple[float, float]:
    """The technique table's range of speed-ups."""
    speed = TECHNIQUES["KV cache"].speed
    assert speed is not None  # the table gives one
    return speed


def published_text() -> str:
    """The same to be read: ``10–50×``."""
    low, high = published_speedup()
    return f"{low:g}–{high:g}×"
