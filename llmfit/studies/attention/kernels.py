"""Queries, keys and values ─► the output of one kernel and no other, and how far off it is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STANDARD, FLASH, EFFICIENT, CUDNN, MATH, FLASH_ATTN = (
    "standard",
    "flash",
    "mem-efficient",
    "cuDNN",
    "math",
    "flash-attn",
)
KERNELS = (STANDARD, FLASH, EFFICIENT, CUDNN, MATH, FLASH_ATTN)
_BACKENDS = {
    FLASH: "FLASH_ATTENTION",
    EFFICIENT: "EFFICIENT_ATTENTION",
    CUDNN: "CUDNN_ATTENTION",
    MATH: "MATH",
}
"""Names in torch.nn.attention.SDPBackend."""


def standard(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attention as it is written: scores, mask, softmax, each N × N matrix a tensor in memory.

    ``query: [B, heads, N, D]``, ``key`` and ``value: [B, kv_heads, N, D]`` → ``[B, heads, N, D]``.
    """
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1)  # [B, heads, N, N]
    scores = scores * query.shape[-1] ** -0.5
    if causal:
        square = scores.shape[-2:]
        later = torch.ones(square, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(dim=-1) @ value


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """The output of that kernel and no other, shapes as in ``standard``.

    Raises RuntimeError where torch has no such kernel for these tensors, and ImportError without
    the package flash-attn.
    """
    if kernel == STANDARD:
        return standard(query, key, value, causal=causal)
    if kernel == FLASH_ATTN:
        return _flash_attn(query, key, value, causal=causal)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    with sdpa_kernel([getattr(SDPBackend, _BACKENDS[kernel])]):
        return scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
        )


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """By Tri Dao's own package, whose heads come after the sequence."""
    package = import_module("flash_attn")
    turned = (x.transpose(1, 2) for x in (query, key, value))
    out: Tensor = package.flash_attn_func(*turned, causal=causal)
    return out.transpose(1, 2)


def largest_error(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, queries: int
) -> float:
    """Largest absolute difference of ``out`` to standard attention in float64.

    A query's output depends on no other query, so at most ``queries`` of them are computed, evenly
    spaced, the last among them. It is done head by head: what the check holds is no part of what
    the kernel is said to need.
    """
    import torch

    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    rows = torch.linspace(0, length - 1, min(queries, length)).round().long().unique()
    home = "cpu" if query.device.type == "mps" else query.device  # MPS has no float64
    later = (torch.arange(length)[None, :] > rows[:, None]).to(home)
    errors = []
    for item in range(query.shape[0]):
        for head in range(key.shape[1]):
            asking = slice(head * groups, (head + 1) * groups)
            some, seen = (
                x[item, asking][:, rows.to(x.device)].to(home, torch.float64) for x in (query, out)
            )  # [groups, rows, D]
            own_key, own_value = (x[item, head].to(home, torch.float64) for x in (key, value))
            scores = some @ own_key.T * query.shape[-1] ** -0.5  # [groups, rows, N]
            if causal:
                scores = scores.masked_fill(later, float("-inf"))
            errors.append((seen - scores.softmax(dim=-1) @ own_value).abs().max())
    return torch.stack(errors).max().item()
