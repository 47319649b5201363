"""What each preset trains and runs, and how often."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSizes:
    """What is trained, and how often."""

    image_batch: int
    image_pixels: int
    """Of a side."""
    text_batch: int
    text_tokens: int
    """Of a sequence."""
    batches: int
    """Different ones, in turn."""
    warmup: int
    runs: int
    limit_steps: int
    """Updates of the network whose gradients are small."""


DEFAULT = PrecisionSizes(
    image_batch=4,
    image_pixels=64,
    text_batch=2,
    text_tokens=64,
    batches=2,
    warmup=1,
    runs=6,
    limit_steps=40,
)
REFERENCE = PrecisionSizes(
    image_batch=32,
    image_pixels=224,
    text_batch=32,
    text_tokens=512,
    batches=4,
    warmup=3,
    runs=14,
    limit_steps=40,
)
