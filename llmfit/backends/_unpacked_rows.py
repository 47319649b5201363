"""bitsandbytes' 4-bit layers for many rows on a CPU: weights in bf16, PyTorch's product.

    packed codes ─► unpack_4bit_packed ─► bf16[some rows, K] ─► PyTorch's product ─► their columns

bitsandbytes' kernel for CPUs is made for few rows. It looks each code up again for every few of
them and has no tiles, in which a CPU with AMX multiplies ten times as fast; here a code is looked
up once. The weights are those of its own dequantisation, with which it multiplies many rows on a
GPU, and no more than a part of them is held. GPTQ's and AWQ's are not so: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from llmfit.device.cpu import cpu_flags
from llmfit.kernels.build import why_no_kernels

_LEAST_ROWS = {"amx_bf16": 32, "avx512_bf16": 128}
"""By what a CPU multiplies bf16 with, the best first: fewer rows are multiplied sooner than their
weights are unpacked."""
_PART_BYTES = 16 * 2**20
"""Of weights made bf16 at a time: oneDNN wants some hundreds of outputs, also of wide layers."""
_PACKED_ROWS = 32
"""Output rows that are packed together."""
_LEAST_BLOCK = 32
"""Neighbouring inputs that the kernel takes to have one scale."""
NOTE = "{} tokens and more at once: unpacked by llmfit, multiplied in bf16 by PyTorch"

Unpack = Callable[[int, int], torch.Tensor]
"""Weights bf16[end − begin, K] of the output rows begin … end − 1."""


def unpack_for_many_rows(model: nn.Module) -> tuple[str, ...]:
    """Let the model's 4-bit layers, which have run once, take many rows so; returns the note.

    Nothing happens, and there is no note, on a GPU, on a CPU that does not multiply bf16 itself,
    and where the kernels cannot be compiled.
    """
    flags = cpu_flags()
    least = next((rows for flag, rows in _LEAST_ROWS.items() if flag in flags), None)
    if least is None or why_no_kernels() is not None:
        return ()
    layers = [layer for layer in model.modules() if _unpack_of(layer) is not None]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward, least)
    return (NOTE.format(least),) if layers else ()


def _unpack_of(layer: Any) -> Unpack | None:
    """How the layer's weights are unpacked as it now is; None where llmfit cannot."""
    if type(layer).__name__ != "Linear4bit":
        return None
    codes, state = layer.weight.data, layer.weight.quant_state
    packed = getattr(state, "packing_format_for_cpu", False)
    if not packed or codes.device.type != "cpu" or state.blocksize % _LEAST_BLOCK:
        return None
    table, block = state.code.float(), int(state.blocksize)
    return partial(torch.ops.llmfit.unpack_4bit_packed, codes, state.absmax, table, block)


def _forward(
    layer: Any, general: Callable[[Any], Any], least: int, x: torch.Tensor
) -> torch.Tensor:
    """The layer's output for x [..., K]; the library's own way for fewer rows, or another type."""
    few = x.numel() < least * layer.in_features
    unpack = None if few or x.dtype != torch.bfloat16 else _unpack_of(layer)
    if unpack is None:
        result: torch.Tensor = general(x)
        return result
    outputs = _product(x.reshape(-1, layer.in_features), unpack, layer.out_features)
    if layer.bias is not None:  # to the rounded product, as bitsandbytes adds it
        outputs += layer.bias
    return outputs.view(*x.shape[:-1], layer.out_features)


def _product(inputs: torch.Tensor, unpack: Unpack, n_outputs: int) -> torch.Tensor:
    """inputs bf16[M, K] times the weights, which are unpacked part by part: bf16[M, N]."""
    row_bytes = inputs.element_size() * inputs.shape[1]
    at_once = max(1, _PART_BYTES // row_bytes // _PACKED_ROWS) * _PACKED_ROWS
    if at_once >= n_outputs:
        return linear(inputs, unpack(0, n_outputs))
    outputs = inputs.new_empty(len(inputs), n_outputs)
    for begin in range(0, n_outputs, at_once):
        end = min(begin + at_once, n_outputs)
        torch.mm(inputs, unpack(begin, end).t(), out=outputs[:, begin:end])
    return outputs
