"""GPTQ and AWQ for many rows on a CPU: one matrix at a time unpacked, then PyTorch's bf16 product.

PyTorch's product over its int4 packing unpacks each weight again for every few rows, and takes
twice as long as a product in bf16 from some dozens of rows on. Unpacked here, each weight is
rounded to bf16 once, as the GPU's kernels have it; the matrix is gone when its product is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from llmfit.decode.step_linears import input_order, takes_int4
from llmfit.kernels.build import why_no_kernels

NOTE = "several dozen tokens at once: weights unpacked to bf16, a matrix at a time"
_CLASSES = ("TorchAtenLinear", "TorchAtenAwqLinear")
_LEAST_ROWS = 32
"""From so many rows on unpacking pays."""


def unpack_int4_rows(model: nn.Module) -> tuple[str, ...]:
    """Let the model's int4 layers, which have run once, take many rows so; returns the note.

    Nothing happens, and there is no note, where the kernels cannot be compiled or do not suit.
    """
    layers: list[Any] = [
        layer
        for layer in model.modules()
        if type(layer).__name__ in _CLASSES
        and layer.linear_mode == "inference"
        and takes_int4(layer)
    ]
    if not layers or why_no_kernels() is not None:
        return ()
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward, input_order(layer))
    return (NOTE,)


def _forward(
    layer: Any,
    general: Callable[[torch.Tensor], torch.Tensor],
    order: torch.Tensor | None,
    x: torch.Tensor,
) -> torch.Tensor:
    """The layer's output for x [..., K]; GPTQModel's own way for few rows, or another type."""
    if x.numel() < _LEAST_ROWS * x.shape[-1] or x.dtype != torch.bfloat16:
        return general(x)
    weight = torch.ops.llmfit.unpack_int4(layer.qweight, layer.scales_and_zeros, layer.group_size)
    out = linear(x if order is None else x[..., order], weight)
    return out if layer.bias is None else out.add_(layer.bias)
