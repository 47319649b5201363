"""What each preset compiles, in which ways, and how often it runs."""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.studies.resnet import RESNET_50

MODES = ("default", "reduce-overhead", "max-autotune")
BF16_DEFAULT = "BF16 default"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSizes:
    """What is compiled, in which ways, and how often it runs."""

    text_tokens: int
    text_layers: int
    text_ways: tuple[str, ...]
    image_batch: int
    image_pixels: int
    image_blocks: tuple[int, ...]
    """Blocks of each stage."""
    image_ways: tuple[str, ...]
    """Modes; one that begins with ``BF16`` is under autocast."""
    warmup: int
    runs: int


DEFAULT = CompileSizes(
    text_tokens=32,
    text_layers=6,
    text_ways=MODES,
    image_batch=4,
    image_pixels=64,
    image_blocks=(3, 4, 6, 3),
    image_ways=("default", BF16_DEFAULT),
    warmup=3,
    runs=20,
)
REFERENCE = CompileSizes(
    text_tokens=512,
    text_layers=6,
    text_ways=(*MODES, BF16_DEFAULT),
    image_batch=32,
    image_pixels=224,
    image_blocks=RESNET_50,
    image_ways=(*MODES, BF16_DEFAULT),
    warmup=5,
    runs=30,
)
