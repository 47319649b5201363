"""The 4-bit codes of a GPTQ or AWQ layer, whichever way its library packs them.

GPTQModel's layer ─► whole multiples of a group's scale ─► codes 0…15, and the one that is zero
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_MIDDLE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Codes:
    """A layer's weights are (codes − zeros) · scales, exactly."""

    codes: torch.Tensor
    """uint8[N, K] of 0…15."""
    scales: torch.Tensor
    """[K / group, N]."""
    zeros: torch.Tensor
    """float32[K / group, N], whole numbers of 0…15: around 8, where the codes allow it."""
    bias: torch.Tensor | None
    group: int


def codes_of(layer: Any, maker: str) -> Int4Codes:
    """The codes of one of GPTQModel's layers of plain torch operations, for the kernel ``maker``.

    Raises ValueError for act-order, whose groups are not of neighbours.
    """
    group, scales = int(layer.group_size), layer.scales
    order = getattr(layer, "g_idx", None)
    inputs = torch.arange(layer.in_features, device=scales.device)
    if order is not None and not torch.equal(order.long(), inputs // group):
        raise ValueError(f"{maker} takes no activation order")
    # In place: every other copy of four bytes a weight would be part of the row's peak.
    multiples = _weight(layer).to(torch.float32, copy=True).view(-1, group, layer.out_features)
    multiples.div_(scales.float()[:, None])  # [K / group, group, N]; a scale may be 0
    torch.nan_to_num(multiples, out=multiples).round_()
    low, high = multiples.amin(1), multiples.amax(1)
    zeros = torch.full_like(low, _MIDDLE).clamp(max=15 - high).maximum(-low)
    codes = multiples.add_(zeros[:, None]).to(torch.uint8).view(layer.in_features, -1)
    return Int4Codes(
        codes=codes.t().contiguous(), scales=scales, zeros=zeros, bias=layer.bias, group=group
    )


def _weight(layer: Any) -> Any:
    """Weights [K, N] of a layer, in its scales' type."""
    if type(layer).__name__ != "AwqTorchLinear":
        return layer.dequantize_weight()
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.bits, layer.group_size)
