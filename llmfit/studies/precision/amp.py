"""Training in one precision: autocast, and for FP16 a scaler of gradients.

    zero_grad ─► autocast forward, loss ─► scaled backward ─► unscale ─► clip ─► step ─► update

A scaler that finds a gradient that is not finite leaves the step out and halves its scale.
Source: Micikevicius et al. 2018, arXiv:1710.03740.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmfit.device.execution import TorchDevice

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch = dict[str, Any]
"""Arguments of a model by name, tensors among them."""
LossFn = Callable[["torch.nn.Module", Batch], "Tensor"]
MAX_NORM = 1.0
"""Norm to which gradients are clipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What a model computes in. Weights, gradients and optimizer stay in FP32."""

    name: str
    dtype: Literal["float16", "bfloat16"] | None = None
    """Of autocast; None computes in FP32."""
    scaled: bool = False
    """With a GradScaler."""

    def autocast(self, device: TorchDevice) -> torch.autocast:
        """The context of a forward pass."""
        import torch

        if self.dtype is None:
            return torch.autocast(device, enabled=False)
        return torch.autocast(device, dtype=getattr(torch, self.dtype))


FP32 = Precision(name="FP32")
FP16 = Precision(name="FP16", dtype="float16", scaled=True)
FP16_UNSCALED = Precision(name="FP16 unscaled", dtype="float16")
BF16 = Precision(name="BF16", dtype="bfloat16")


class Trainer:
    """A model that learns from ``batches``, the next one after each update that was made.

    A step that the scaler leaves out is tried again on its batch, so that the losses of two
    precisions are of the same batches after the same number of updates.
    """

    def __init__(
        self,
        precision: Precision,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[Batch],
        loss_fn: LossFn,
        device: TorchDevice,
    ) -> None:
        import torch

        self.precision = precision
        self.model = model.train()
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(device, enabled=precision.scaled)
        self.tried = self.updates = 0
        self._batches = batches
        self._loss_fn = loss_fn
        self._device = device
        self._losses: list[Tensor] = []
        # The scaler asks the device whether to step: to count its calls needs no second question.
        optimizer.register_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self.updates += 1

    @property
    def skipped(self) -> int:
        """Steps that the scaler left out."""
        return self.tried - self.updates

    def next_batch(self) -> Batch:
        """The batch of the next update."""
        return self._batches[self.updates % len(self._batches)]

    def step(self, batch: Batch) -> None:
        """A whole training step."""
        self.backward(batch)
        self.update()

    def backward(self, batch: Batch) -> None:
        """Gradients of the scaled loss, after those of the step before are dropped."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast(self._device):
            loss = self._loss_fn(self.model, batch)
        self.scaler.scale(loss).backward()
        del self._losses[self.updates :]
        self._losses.append(loss.detach())

    def update(self) -> None:
        """Gradients divided by the scale and clipped; weights changed, unless one is not finite."""
        import torch

        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.tried += 1
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def losses(self) -> tuple[float, ...]:
        """The loss before each update. Waits for the device."""
        return tuple(loss.item() for loss in self._losses)
