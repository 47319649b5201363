"""Linear layers in bf16 on a CPU that has no products in bf16.

PyTorch 2.13 falls back there to a loop of a tenth of float32's speed. Quantising, of which the
result counts and not the time that it takes, has the same sums made in float32; what is measured
or scored stays with PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

_WEIGHTS_AT_ONCE = 2**21
"""Widened at a time: 8 MB, which the caches hold."""


def has_bf16_products() -> bool:
    """True where PyTorch's matrix library, oneDNN, multiplies bf16 here (x86: AVX-512 or AMX)."""
    # A build without oneDNN, as for Apple's CPUs, has not even the question.
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@contextmanager
def products_in_float32() -> Iterator[None]:
    """Let ``functional.linear`` of bf16 tensors in RAM multiply in float32, on such a CPU.

    Sums are float32's and outputs are rounded to bf16, as in PyTorch's own loop and in the
    kernels of a CPU that has such products. Holds for all threads of the process meanwhile.
    """
    if has_bf16_products():
        yield
        return
    original = functional.linear

    def linear(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        plain = type(weight) in (torch.Tensor, torch.nn.Parameter)  # quantised ones look like bf16
        in_bf16 = input.dtype == weight.dtype == torch.bfloat16
        if not (plain and in_bf16 and weight.device.type == "cpu"):
            return original(input, weight, bias)
        wide = input.float()
        parts = weight.split(max(1, _WEIGHTS_AT_ONCE // weight.shape[1]))
        made = [original(wide, part.float()) for part in parts]
        whole = made[0] if len(made) == 1 else torch.cat(made, dim=-1)
        return (whole if bias is None else whole + bias.float()).to(torch.bfloat16)

    functional.linear = linear
    try:
        yield
    finally:
        functional.linear = original
