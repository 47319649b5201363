"""What is trained: sizes ─► ``Task``, a model with its batches and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmfit.device.execution import TorchDevice
from llmfit.models import data_path
from llmfit.studies.base import StudyContext
from llmfit.studies.precision.amp import Batch
from llmfit.studies.precision.sizes import PrecisionSizes
from llmfit.studies.resnet import resnet
from llmfit.studies.tuning import load_model

if TYPE_CHECKING:
    import torch

LEARNT_CLASSES = 10
"""Classes that the images are of, among all those that the network tells apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model, its data, and how it learns."""

    name: str
    items: str
    """What its throughput counts."""
    items_per_step: int
    build: Callable[[], torch.nn.Module]
    """The same weights each time."""
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    state_copies: int
    """Tensors that the optimizer keeps of each weight."""
    batches: tuple[Batch, ...]


def image_task(sizes: PrecisionSizes, context: StudyContext) -> Task:
    """ResNet-50 by SGD with momentum."""
    import torch

    return Task(
        name="ResNet-50",
        items="images",
        items_per_step=sizes.image_batch,
        build=partial(resnet50, context.seed),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        state_copies=1,
        batches=image_batches(sizes, context.seed, context.device),
    )


def text_task(sizes: PrecisionSizes, context: StudyContext) -> Task:
    """The embedded language model by AdamW."""
    import torch

    return Task(
        name="language model",
        items="tokens",
        items_per_step=sizes.text_batch * sizes.text_tokens,
        build=partial(load_model, "cpu", in_float32=True),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=5e-4),
        state_copies=2,
        batches=text_batches(sizes, context.device),
    )


def resnet50(seed: int) -> torch.nn.Module:
    """ResNet-50 with random weights, the last scale of each block 0.

    Without that its gradients have a norm beyond 1,000 at first, which FP16 does not hold at the
    scaler's usual scale. Source: Goyal et al. 2017, arXiv:1706.02677, section 5.1.
    """
    import torch
    from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer

    model = resnet(seed)
    for module in model.modules():
        if isinstance(module, ResNetBottleNeckLayer):
            torch.nn.init.zeros_(module.layer[-1].normalization.weight)
    return model


def image_batches(sizes: PrecisionSizes, seed: int, device: TorchDevice) -> tuple[Batch, ...]:
    """``pixel_values: float32[B, 3, P, P]``, ``labels: int64[B]``: a pattern a class, and noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(LEARNT_CLASSES, 3, 8, 8, generator=generator)
    shape = sizes.image_batch, 3, sizes.image_pixels, sizes.image_pixels
    batches = []
    for _ in range(sizes.batches):
        labels = torch.randint(LEARNT_CLASSES, shape[:1], generator=generator)
        clean = torch.nn.functional.interpolate(patterns[labels], size=shape[2:])
        pixels = clean + torch.randn(shape, generator=generator)
        batches.append({"pixel_values": pixels.to(device), "labels": labels.to(device)})
    return tuple(batches)


def text_batches(sizes: PrecisionSizes, device: TorchDevice) -> tuple[Batch, ...]:
    """``input_ids`` and ``labels``, int64[B, T]: the calibration text from its begin on.

    The text begins anew where the batches ask for more than it has.
    """
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data_path("embedded") / "tokenizer.json"))
    text = data_path("calibration.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer.encode(text).ids)
    wanted = sizes.batches * sizes.text_batch * sizes.text_tokens
    tokens = tokens.repeat(-(-wanted // len(tokens)))[:wanted].to(device)
    ids = tokens.view(sizes.batches, sizes.text_batch, sizes.text_tokens)
    return tuple({"input_ids": each, "labels": each, "use_cache": False} for each in ids)
