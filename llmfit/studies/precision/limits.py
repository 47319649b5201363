"""Where FP16 fails: gradients too small for it, activations too large, and what a scaler does.

loss × 2⁻²⁴, learning rate × 2²⁴ ─► the same training in FP32; gradients are 0 in FP16
activations of 80,000            ─► beyond FP16's 65,504: infinite; the scaler skips and halves
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfit.device.execution import TorchDevice
from llmfit.studies.precision.amp import BF16, FP16, FP16_UNSCALED, FP32, Batch, Precision, Trainer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LIMIT_PRECISIONS = (FP32, FP16_UNSCALED, FP16, BF16)
FORMATS = ("float32", "float16", "bfloat16")
SHRINK = 2.0**-24
"""A power of two, so that FP32 trains bit for bit as without it."""
LARGE, WIDTH = 100.0, 8
"""``WIDTH`` products of two such values make an activation of 80,000."""


# ---------------------------------------------------------------- formats


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRange:
    """What a floating-point format can hold."""

    name: str
    bits: int
    largest: float
    smallest_normal: float
    smallest: float
    """The smallest above 0, with fewer digits than a normal number has."""
    epsilon: float
    """From 1 to the next number: the step between numbers, relative to them."""


def format_range(name: str) -> FormatRange:
    """The range of a torch type, by ``torch.finfo``."""
    import torch

    info = torch.finfo(getattr(torch, name))
    return FormatRange(
        name=name,
        bits=info.bits,
        largest=info.max,
        smallest_normal=info.smallest_normal,
        smallest=info.smallest_normal * info.eps,
        epsilon=info.eps,
    )


# ---------------------------------------------------------------- gradients too small


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallGradients:
    """Training with a loss so small that its gradients are below FP16's smallest number."""

    precision: str
    losses: tuple[float, ...]
    """Before each update, undone by ``SHRINK``."""
    zero_share: float
    """Of the gradients of the first step, those that are exactly 0."""

    @property
    def learned(self) -> bool:
        """The loss has at least halved."""
        return self.losses[-1] < self.losses[0] / 2


def regression(seed: int, device: TorchDevice) -> tuple[torch.nn.Module, Batch]:
    """A small network and what it is to learn: a linear function of 16 inputs, 64 examples."""
    import torch

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    x = torch.randn(64, 16)
    batch = {"x": x.to(device), "y": (x @ torch.randn(16, 1) / 4).to(device)}
    return model.to(device), batch


def small_gradients(
    precision: Precision, *, steps: int, seed: int, device: TorchDevice, rate: float = 0.2
) -> SmallGradients:
    """Train the regression with its loss shrunk, and the learning rate grown by as much."""
    import torch

    model, batch = regression(seed, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate / SHRINK)

    def loss_fn(model: torch.nn.Module, batch: Batch) -> Tensor:
        error = model(batch["x"]).float() - batch["y"]
        return error.square().mean() * SHRINK

    trainer = Trainer(precision, model, optimizer, (batch,), loss_fn, device)
    trainer.backward(batch)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    zeros = sum(int((gradient == 0).sum()) for gradient in gradients)
    trainer.update()
    for _ in range(steps - 1):
        trainer.step(batch)
    return SmallGradients(
        precision=precision.name,
        losses=tuple(loss / SHRINK for loss in trainer.losses()),
        zero_share=zeros / sum(gradient.numel() for gradient in gradients),
    )


# ---------------------------------------------------------------- activations too large


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeActivation:
    """One training step of a model whose activations are 80,000."""

    precision: str
    activation: float
    """The largest as computed; infinite where the format ends before."""
    loss: float
    stepped: bool
    """Weights were updated."""
    unchanged: bool
    """Weights are what they were."""
    finite: bool
    """All weights are numbers after the step."""
    scale_before: float | None
    scale_after: float | None
    """The scaler's; None without one."""


def large_activation(precision: Precision, *, device: TorchDevice) -> LargeActivation:
    """One step on ``WIDTH`` inputs of 100 through weights of 100, and back to a loss of 64."""
    import torch

    inner = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    head = torch.nn.Linear(WIDTH, 1, bias=False)
    torch.nn.init.constant_(inner.weight, LARGE)
    torch.nn.init.constant_(head.weight, 1 / (WIDTH * LARGE * LARGE))
    model = torch.nn.Sequential(inner, head).to(device)
    seen: list[Tensor] = []
    inner.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def loss_fn(model: torch.nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"]).float().square().mean()

    batch = {"x": torch.full((4, WIDTH), LARGE, device=device)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = Trainer(precision, model, optimizer, (batch,), loss_fn, device)
    scale_before = trainer.scaler.get_scale() if precision.scaled else None
    trainer.step(batch)
    after = list(model.parameters())
    return LargeActivation(
        precision=precision.name,
        activation=seen[0].abs().max().item(),
        loss=trainer.losses()[-1],
        stepped=trainer.updates == 1,
        unchanged=all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
        finite=_all_finite(after),
        scale_before=scale_before,
        scale_after=trainer.scaler.get_scale() if precision.scaled else None,
    )


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
