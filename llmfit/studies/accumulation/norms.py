"""A seed ─► how far gradients in parts are from the whole's, with batch norm and layer norm."""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.studies.steps import gradients_of, relative_difference

ROWS, PARTS = 32, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NormDifferences:
    """Of gradients in parts from the whole's, relative."""

    batch: float
    """With batch norm."""
    layer: float
    """With layer norm."""


def norm_differences(seed: int) -> NormDifferences:
    """Gradients of a small network, its rows at once and in parts."""
    import torch
    from torch import nn

    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(ROWS, 8, generator=random), torch.randn(ROWS, generator=random)

    def apart(norm: nn.Module) -> float:
        model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 1))

        def backward(parts: int) -> None:
            pairs = zip(x.chunk(parts), y.chunk(parts), strict=True)
            for rows, wanted in pairs:
                squares = (model(rows).squeeze(1) - wanted).square()
                (squares.sum() / ROWS).backward()

        whole = gradients_of(model, lambda: backward(1))
        return relative_difference(whole, gradients_of(model, lambda: backward(PARTS)))

    return NormDifferences(batch=apart(nn.BatchNorm1d(16)), layer=apart(nn.LayerNorm(16)))
