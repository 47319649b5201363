"""Inference in one precision: a trained model and a way to run it ─► logits of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfit.device.execution import TorchDevice
from llmfit.studies.precision.amp import BF16, FP16, FP32, Batch, Precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A way to run a trained model."""

    name: str
    precision: Precision
    cast: bool = False
    """Weights are cast once, instead of by autocast in each call."""


SERVED = (
    Served(name="FP32", precision=FP32),
    Served(name="FP16 autocast", precision=FP16),
    Served(name="BF16 autocast", precision=BF16),
    Served(name="FP16 weights", precision=FP16, cast=True),
    Served(name="BF16 weights", precision=BF16, cast=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A model ready to give logits."""

    model: torch.nn.Module
    way: Served
    device: TorchDevice

    def logits(self, batch: Batch) -> Tensor:
        """The model's logits; float inputs in the type of its weights."""
        import torch

        dtype = next(self.model.parameters()).dtype
        inputs = {
            key: value.to(dtype) if _is_float(value) else value for key, value in batch.items()
        }
        precision = FP32 if self.way.cast else self.way.precision
        # no_grad: the counter of FLOPs does not see inference mode.
        with torch.no_grad(), precision.autocast(self.device):
            found: Tensor = self.model(**inputs).logits
        return found


def _is_float(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()


def logits_fn(model: torch.nn.Module, way: Served, device: TorchDevice) -> Server:
    """``model`` served that way; the one with cast weights is a copy."""
    from copy import deepcopy

    import torch

    if way.cast and way.precision.dtype is not None:
        model = deepcopy(model).to(getattr(torch, way.precision.dtype))
    return Server(model=model, way=way, device=device)
