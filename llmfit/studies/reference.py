"""Published figures that studies stand beside: approximate ones of one author, by hardware.

Bytes and seconds throughout; MB is 10⁶, GB 10⁹ bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MB, _MS = 10**6, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceStep:
    """A published time with its memory; None where none is given."""

    seconds: float
    memory_bytes: int | None = None
    items_per_s: float | None = None


RESNET_TRAINING: Mapping[str, ReferenceStep] = {
    "FP32": ReferenceStep(seconds=95 * _MS, memory_bytes=6200 * _MB, items_per_s=336),
    "FP16": ReferenceStep(seconds=41 * _MS, memory_bytes=3100 * _MB, items_per_s=780),
    "BF16": ReferenceStep(seconds=38 * _MS, memory_bytes=3100 * _MB, items_per_s=842),
}
RESNET_TRAINING_OF = "ResNet-50, batch 32, a training step on an RTX 4090 (approximate, published)"

ATTENTION: Mapping[int, tuple[ReferenceStep, ReferenceStep]] = {
    512: (
        ReferenceStep(seconds=0.82 * _MS, memory_bytes=48 * _MB),
        ReferenceStep(seconds=0.31 * _MS, memory_bytes=12 * _MB),
    ),
    1024: (
        ReferenceStep(seconds=2.45 * _MS, memory_bytes=192 * _MB),
        ReferenceStep(seconds=0.58 * _MS, memory_bytes=24 * _MB),
    ),
    2048: (
        ReferenceStep(seconds=9.12 * _MS, memory_bytes=768 * _MB),
        ReferenceStep(seconds=1.12 * _MS, memory_bytes=48 * _MB),
    ),
    4096: (
        ReferenceStep(seconds=35.8 * _MS, memory_bytes=3072 * _MB),
        ReferenceStep(seconds=2.21 * _MS, memory_bytes=96 * _MB),
    ),
    8192: (
        ReferenceStep(seconds=144.2 * _MS, memory_bytes=12288 * _MB),
        ReferenceStep(seconds=4.38 * _MS, memory_bytes=192 * _MB),
    ),
}
"""Standard and flash attention's forward pass, by the length of the sequence."""
ATTENTION_OF = (
    "forward pass, FP16, batch 4, 12 heads of 64, standard → flash on an RTX 4090 "
    "(approximate, published)"
)

CHECKPOINTING: Mapping[str, ReferenceStep] = {
    "off": ReferenceStep(seconds=285 * _MS, memory_bytes=18_400 * _MB),
    "on": ReferenceStep(seconds=378 * _MS, memory_bytes=7_800 * _MB),
}
CHECKPOINTING_OF = (
    "12-layer Transformer, sequence 2,048, batch 8, on an RTX 3090 (approximate, published)"
)

COMPILE: Mapping[str, ReferenceStep] = {
    "eager FP32": ReferenceStep(seconds=12.4 * _MS),
    "compiled FP32": ReferenceStep(seconds=7.8 * _MS),
    "compiled BF16": ReferenceStep(seconds=5.1 * _MS),
}
COMPILE_OF = "ResNet-50, batch 32, inference on an RTX 4090 (approximate, published)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The technique table's range of what a technique gives; None where it gives none.

    ``memory_saving`` and ``accuracy_loss`` are shares of 1, ``speed`` a factor; ends are inside.
    """

    memory_saving: tuple[float, float] | None
    speed: tuple[float, float] | None
    accuracy_loss: tuple[float, float] | None
    effort: str


TECHNIQUES: Mapping[str, Expected] = {
    "mixed precision BF16": Expected(
        memory_saving=(0.5, 0.5), speed=(2, 3), accuracy_loss=(0, 0), effort="low"
    ),
    "flash attention": Expected(
        memory_saving=(0.5, 0.9), speed=(2, 8), accuracy_loss=(0, 0), effort="low"
    ),
    "torch.compile": Expected(
        memory_saving=(0, 0), speed=(1.5, 2.5), accuracy_loss=(0, 0), effort="low"
    ),
    "KV cache": Expected(memory_saving=None, speed=(10, 50), accuracy_loss=(0, 0), effort="low"),
    "gradient checkpointing": Expected(
        memory_saving=(0.5, 0.7), speed=(0.7, 0.7), accuracy_loss=(0, 0), effort="low"
    ),
    "INT8": Expected(
        memory_saving=(0.5, 0.5), speed=(0.9, 1.1), accuracy_loss=(0, 0.005), effort="low"
    ),
    "INT4 GPTQ": Expected(
        memory_saving=(0.75, 0.75), speed=(1.3, 1.8), accuracy_loss=(0.005, 0.015), effort="medium"
    ),
    "INT4 AWQ": Expected(
        memory_saving=(0.75, 0.75), speed=(1.3, 1.8), accuracy_loss=(0.005, 0.015), effort="medium"
    ),
    "distillation": Expected(
        memory_saving=(0.7, 0.9), speed=(5, 20), accuracy_loss=(0.05, 0.15), effort="high"
    ),
    "structured pruning": Expected(
        memory_saving=(0.3, 0.7), speed=(2, 5), accuracy_loss=(0.02, 0.1), effort="high"
    ),
}
TECHNIQUES_OF = "a published table of expected impact, whose author calls it approximate"
