"""LLM.int8() for many rows on a CPU, with its steps around the two products fused.

bitsandbytes quantises the inputs, marks outliers and rescales the sums in some twenty passes over
memory, which take several times as long as the product itself. Here they are one pass before it and
one after, and one that gathers the outliers; both products stay PyTorch's, and every number is the
same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from llmfit.kernels.build import why_no_kernels

_OUTLIERS, _ROWS = 16, 64
"""Zeros make the outliers' product a multiple of these: oneDNN compiles a kernel for every shape,
which takes ten times as long as that product, and the sums are the same."""
NOTE = "several tokens at once: rounded and rescaled by llmfit, bit-equal to LLM.int8()"


def fuse_int8_rows(model: nn.Module) -> tuple[str, ...]:
    """Let the model's int8 layers, which have run once, take many rows so; returns the note.

    Nothing happens, and there is no note, on a GPU and where the kernels cannot be compiled.
    """
    layers = [
        layer
        for layer in model.modules()
        if type(layer).__name__ == "Linear8bitLt" and _is_ready(layer)
    ]
    if not layers or why_no_kernels() is not None:
        return ()
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)
    return (NOTE,)


def _is_ready(layer: Any) -> bool:
    state = layer.state
    return state.CB is not None and not state.has_fp16_weights and state.CB.device.type == "cpu"


def _forward(layer: Any, general: Callable[[Any], Any], x: torch.Tensor) -> torch.Tensor:
    """The layer's output for x [..., K]; bitsandbytes' own way for one row, or another type."""
    if x.numel() <= layer.in_features or x.dtype != torch.bfloat16:
        result: torch.Tensor = general(x)
        return result
    state, bias = layer.state, layer.bias
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    codes, absmax, outlying = torch.ops.llmfit.quantize_int8(rows, float(state.threshold))
    sums = torch.ops.bitsandbytes.int8_linear_matmul(codes, state.CB)
    out: torch.Tensor = torch.ops.llmfit.rescale_int8(sums, absmax, state.SCB, bias)
    inputs, weights = torch.ops.llmfit.outliers_int8(
        rows, state.CB, state.SCB, outlying, _ROWS, _OUTLIERS
    )
    if len(inputs):
        out = pad(out, (0, 0, 0, len(inputs) - len(rows))).addmm(inputs, weights.t())[: len(rows)]
    return out.view(*x.shape[:-1], -1)
