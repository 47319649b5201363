"""A ResNet with random weights, from its blocks and a seed: ResNet-50 and smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLASSES = 1000
"""That a network tells apart, as on ImageNet."""
RESNET_50 = (3, 4, 6, 3)
"""Blocks of each stage."""


def resnet(seed: int, *, blocks: Sequence[int] = RESNET_50) -> torch.nn.Module:
    """A ResNet of bottleneck blocks in training mode; torch's generator begins with ``seed``."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    config = ResNetConfig(num_labels=CLASSES, depths=list(blocks))
    model: torch.nn.Module = ResNetForImageClassification(config)
    return model
