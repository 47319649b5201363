"""PyTorch's own 4-bit product (tinygemm) over the weights of a GPTQ or AWQ layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llmfit.backends._int4_codes import codes_of

_MIDDLE = 8
"""The code that stands for the zero. Source: PyTorch, aten/src/ATen/native/cuda/int4mm.cu:
weight = (code − 8) · scale + zero."""
_TILES = (8, 4, 2)
"""Inputs packed together, in tiles of 16. Source: ibid., innerKTiles."""


class TinyGemmLinear(nn.Module):
    """x [..., K] → [..., N] in bfloat16; each ``group`` of codes has a scale and a zero.

    Inputs of another type, as transformers runs AWQ on a GPU in float16, are rounded to it.
    """

    bias: torch.Tensor | None

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bias: Any, group: int
    ) -> None:
        """``codes`` uint8[N, K] of 0…15; ``scales`` and ``zeros`` [K / group, N].

        Raises ValueError for shapes that the kernel does not take.
        """
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.group = group
        on_gpu = codes.device.type == "cuda"
        if on_gpu:
            tiles = next((n for n in _TILES if self.in_features % (16 * n) == 0), None)
            if tiles is None or self.out_features % 8:
                raise ValueError(f"tinygemm takes no layer of {self.in_features}→{len(codes)}")
            pairs = codes[:, ::2] << 4 | codes[:, 1::2]
            packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        self._product = (
            torch.ops.aten._weight_int4pack_mm
            if on_gpu
            else torch.ops.aten._weight_int4pack_mm_for_cpu
        )
        self.register_buffer("packed", packed)
        self.register_buffer("scales_and_zeros", torch.stack([scales, zeros], -1).bfloat16())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        out: torch.Tensor = self._product(rows, self.packed, self.group, self.scales_and_zeros)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


def to_tinygemm(layer: Any) -> TinyGemmLinear:
    """The same weights as one of GPTQModel's layers of plain torch operations.

    Codes are kept exactly; a group's zero, where it is another code than 8, is rounded to
    bfloat16. Raises ValueError for act-order, and for shapes that tinygemm does not take.
    """
    made = codes_of(layer, "tinygemm")
    return TinyGemmLinear(
        made.codes, made.scales, (_MIDDLE - made.zeros) * made.scales, made.bias, made.group
    )
