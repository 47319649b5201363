"""llmfit's own 4-bit layer for GPUs, over the weights of a GPTQ or AWQ layer.

One row goes to ``llmfit_gpu::linears_packed``, which reads the codes; more are multiplied with the
weights that the codes stand for, made for that product alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llmfit.backends._int4_codes import Int4Codes, codes_of

_IN_A_WORD = 8
_LEAST_GROUP = 4 * _IN_A_WORD
"""The words that a thread reads at once share a scale."""


class PackedInt4Linear(nn.Module):
    """x [..., K] → [..., N]; each group of codes has a scale and a code that is zero.

    ``words`` int32[N, K / 8] hold eight codes of neighbouring inputs each, the first in the lowest
    bits; ``scales_and_zeros`` int32[N, K / group] a scale of 16 bits and, above it, the zero as
    float16.
    """

    bias: torch.Tensor | None

    def __init__(self, made: Int4Codes) -> None:
        """Raises ValueError for groups of other than multiples of 32."""
        super().__init__()
        self.out_features, self.in_features = made.codes.shape
        self._group = made.group // _IN_A_WORD
        self._float16 = made.scales.dtype == torch.float16
        if made.group % _LEAST_GROUP or not (self._float16 or made.scales.dtype == torch.bfloat16):
            raise ValueError(
                f"no groups of {made.group} with scales in {made.scales.dtype} are taken"
            )
        both = [made.scales.view(torch.int16), made.zeros.half().view(torch.int16)]
        self.register_buffer("words", _packed(made.codes))
        self.register_buffer(
            "scales_and_zeros",
            torch.stack(both, -1).transpose(0, 1).contiguous().view(torch.int32).squeeze(-1),
        )
        self.register_buffer("bias", made.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if x.numel() == self.in_features:
            return self.product(self.prepare(x), x)
        import llmfit.kernels.gpu  # noqa: F401

        weights = torch.ops.llmfit_gpu.unpack_int4(
            self._words, self._scales, self._group, x.dtype, self._float16
        )
        return functional.linear(x, weights, self.bias)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """One row of inputs in the form that the kernel reads; a compiled step makes it at once."""
        from llmfit.kernels.gpu import int4_fields_of

        return int4_fields_of(x)

    def product(self, fields: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The output for what ``prepare`` made of ``x``."""
        out: torch.Tensor = torch.ops.llmfit_gpu.linears_packed(
            fields,
            [self._words],
            [self._scales],
            [] if self.bias is None else [self.bias],
            None,
            "int4 float16" if self._float16 else "int4 bfloat16",
            self._group,
            x.dtype,
        )
        return out.view(*x.shape[:-1], self.out_features)

    @property
    def _words(self) -> Any:
        return self.words

    @property
    def _scales(self) -> Any:
        return self.scales_and_zeros


def to_packed_int4(layer: Any) -> PackedInt4Linear:
    """The same weights, exactly, as one of GPTQModel's layers of plain torch operations.

    Raises ValueError for act-order, and for groups that the kernel does not take.
    """
    return PackedInt4Linear(codes_of(layer, "llmfit's kernel"))


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """uint8[N, K] of 0…15 → int32[N, K / 8]."""
    pairs = codes[:, ::2] | codes[:, 1::2] << 4
    return pairs.contiguous().view(torch.int32)
