"""Attention of one token over a KV buffer on a GPU, in Triton.

    query [B, H, 1, D], keys and values of ``held`` tokens ─► parts of 64 slots, each by a program
      ─► of each its sum, maximum and weight ─► weighed by a second kernel ─► [B, 1, H, D_v]

The queries that share a key are the rows of one product. What is not held yet is not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmfit.kernels.gpu_support import FUSED

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""True where Triton's interpreter runs the kernels, which knows no products of bfloat16."""
_SLOTS = 64
"""Slots of the KV buffer that a program attends to."""
_PARTS = 64
"""Parts that are weighed at once."""


@triton.jit
def _attend_part(
    query, keys, values, held, out, tops, weights, capacity, scale, window,
    SHARING: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, VALUE_COLUMNS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
    WIDENED: tl.constexpr,
):  # fmt: skip
    """What ``SHARING`` queries of one key head get from SLOTS slots: sum, maximum, weight."""
    head, part = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    value_column = tl.arange(0, VALUE_COLUMNS)
    end = tl.load(held).to(tl.int32)
    first = tl.maximum(end - window, 0) if window > 0 else 0
    asked = tl.load(
        query + (head * SHARING + row)[:, None] * WIDTH + column[None, :],
        (row < SHARING)[:, None] & (column < WIDTH)[None, :],
        0.0,
    )
    if WIDENED:
        asked = asked.to(tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, VALUE_COLUMNS], tl.float32)
    last = tl.minimum((part + 1) * SLOTS, end)
    for offset in tl.static_range(0, SLOTS, BLOCK):
        slot = part * SLOTS + offset + tl.arange(0, BLOCK)
        seen = (slot < last) & (slot >= first)
        line = head.to(tl.int64) * capacity + slot
        key = tl.load(
            keys + line[:, None] * WIDTH + column[None, :],
            seen[:, None] & (column < WIDTH)[None, :],
            0.0,
        )
        value = tl.load(
            values + line[:, None] * VALUE_WIDTH + value_column[None, :],
            seen[:, None] & (value_column < VALUE_WIDTH)[None, :],
            0.0,
        )
        if WIDENED:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * (scale * 1.4426950408889634)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp2(scores - level[:, None])
        fade = tl.exp2(top - level)
        weight = weight * fade + tl.sum(shares, 1)
        total = total * fade[:, None] + tl.dot(
            shares.to(value.dtype), value, input_precision="ieee"
        )
        top = higher
    parts = tl.num_programs(1)
    place = (head * SHARING + row) * parts + part
    tl.store(tops + place, top, row < SHARING)
    tl.store(weights + place, weight, row < SHARING)
    tl.store(
        out + place[:, None] * VALUE_WIDTH + value_column[None, :],
        total,
        (row < SHARING)[:, None] & (value_column < VALUE_WIDTH)[None, :],
    )


@triton.jit
def _attend_whole(
    parts, tops, weights, out, count,
    VALUE_WIDTH: tl.constexpr, VALUE_COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The parts of one query head, each weighted by its share of all exponentials, PARTS at once.

    A long context has thousands: all at once would not find room in a program's registers.
    """
    head, column = tl.program_id(0), tl.arange(0, VALUE_COLUMNS)
    top = tl.full([1], float("-inf"), tl.float32)
    weight = tl.zeros([1], tl.float32)
    total = tl.zeros([VALUE_COLUMNS], tl.float32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        place = head.to(tl.int64) * count + part
        tops_here = tl.load(tops + place, part < count, float("-inf"))
        higher = tl.maximum(top, tl.max(tops_here, 0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        share, fade = tl.exp2(tops_here - level), tl.exp2(top - level)
        weight_here = tl.load(weights + place, part < count, 0.0)
        weight = weight * fade + tl.sum(share * weight_here, 0)
        each = tl.load(
            parts + place[:, None] * VALUE_WIDTH + column[None, :],
            (part < count)[:, None] & (column < VALUE_WIDTH)[None, :],
            0.0,
        )
        total = total * fade + tl.sum(each * share[:, None], 0)
        top = higher
    tl.store(
        out + head * VALUE_WIDTH + column,
        (total / weight).to(out.dtype.element_ty),
        column < VALUE_WIDTH,
    )


@torch.library.custom_op(
    "llmfit_gpu::attend",
    mutates_args=(),
    schema=(
        "(Tensor query, Tensor keys, Tensor values, Tensor held, float scale, int window) -> Tensor"
    ),
)
def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    held: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Attention of one token a sequence over the first ``held`` slots of a KV buffer.

    query [B, H, 1, D], keys [B, H_kv, capacity, D], values [B, H_kv, capacity, D_v] →
    [B, 1, H, D_v].
    With ``window`` above 0 only that many of the last slots are seen. The slots are read in parts
    by programs of their own, whose results a second kernel weighs.
    """
    batch, heads, _, width = query.shape
    shared, capacity, value_width = keys.shape[1], keys.shape[2], values.shape[-1]
    count = triton.cdiv(capacity, _SLOTS)
    parts = query.new_empty((batch * heads, count, value_width), dtype=torch.float32)
    tops = query.new_empty((2, batch * heads, count), dtype=torch.float32)
    out = query.new_empty((batch, 1, heads, value_width))
    columns, value_columns = _power_of_2(width), _power_of_2(value_width)
    _attend_part[(batch * shared, count)](
        query.contiguous(), keys, values, held, parts, tops[0], tops[1], capacity, scale, window,
        SHARING=heads // shared, ROWS=_power_of_2(heads // shared), WIDTH=width,
        VALUE_WIDTH=value_width, COLUMNS=columns, VALUE_COLUMNS=value_columns,
        SLOTS=_SLOTS, BLOCK=_SLOTS, WIDENED=INTERPRETED, num_warps=4, **FUSED,
    )  # fmt: skip
    _attend_whole[(batch * heads,)](
        parts, tops[0], tops[1], out, count,
        VALUE_WIDTH=value_width, VALUE_COLUMNS=value_columns,
        PARTS=min(_PARTS, triton.next_power_of_2(count)), num_warps=4, **FUSED,
    )  # fmt: skip
    return out


@attend.register_fake
def _(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *others: object
) -> torch.Tensor:
    return query.new_empty((query.shape[0], 1, query.shape[1], values.shape[-1]))


def _power_of_2(count: int) -> int:
    """The least that a product of Triton's takes, from ``count`` on."""
    return max(16, triton.next_power_of_2(count))
