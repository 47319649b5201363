"""Products of one row of inputs with a matrix on a GPU, in Triton, for decode steps.

    x [1, K] ─► fields [F, K / F]: the inputs of one field of all words side by side
    words int32 [N, K / F] ─► fields ─► sums over K ─► [1, N]

A product of one row reads each weight once, and is bound by that if what is done with a weight
takes no longer: on a GPU of 2024 some three instructions for one of 4 bits (``gpu_ptx``). A byte
becomes a float32 by setting the bits of 2^23 above it and subtracting 2^23, where it is in its
word: the input of its field is scaled instead.

Every program sums whole rows, always in the same order. Matrices of the same inputs are one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from llmfit.kernels.gpu_ptx import (
    FLOAT_SCALE,
    INT4_BFLOAT16,
    INT4_FLOAT16,
    PACKED_SCALE,
    SIGNED_TABLE,
    TABLE,
)
from llmfit.kernels.gpu_support import FUSED, MOST_MATRICES

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""True where Triton's interpreter runs the kernels, which knows no instructions of NVIDIA's."""


@triton.jit
def _matrix(program, a, b, c, rows_a, rows_b, rows_c, BLOCK_ROWS: tl.constexpr):
    """Which of three matrices a program belongs to: it, its rows, the output's start, the block."""
    matrix, rows, start, block = a, rows_a, 0, program
    if block >= tl.cdiv(rows_a, BLOCK_ROWS):
        block -= tl.cdiv(rows_a, BLOCK_ROWS)
        matrix, rows, start = b, rows_b, rows_a
        if block >= tl.cdiv(rows_b, BLOCK_ROWS):
            block -= tl.cdiv(rows_b, BLOCK_ROWS)
            matrix, rows, start = c, rows_c, rows_a + rows_b
    return matrix, rows, start, block


@triton.jit
def _finish(
    total, row, out, bias_a, bias_b, bias_c, rows_a, rows_b, rows_c,
    BLOCK_ROWS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Add the program's rows of the bias to ``total`` and store them in the output's type."""
    bias, rows, start, _ = _matrix(
        tl.program_id(0), bias_a, bias_b, bias_c, rows_a, rows_b, rows_c, BLOCK_ROWS
    )
    if BIASED:
        total += tl.load(bias + row, row < rows, 0.0).to(tl.float32)
    tl.store(out + start + row, total.to(out.dtype.element_ty), row < rows)


@triton.jit
def _bf16_rows(
    x, a, b, c, bias_a, bias_b, bias_c, out, rows_a, rows_b, rows_c,
    INPUTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    matrix, rows, _, block = _matrix(tl.program_id(0), a, b, c, rows_a, rows_b, rows_c, BLOCK_ROWS)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_INPUTS)
    line = matrix + row.to(tl.int64)[:, None] * INPUTS
    valid = (row < rows)[:, None]
    sums = tl.zeros([BLOCK_ROWS, BLOCK_INPUTS], tl.float32)
    held = valid & (column < INPUTS)[None, :]
    weights = tl.load(line + column[None, :], held, 0.0, eviction_policy="evict_first")
    for first in range(0, INPUTS, BLOCK_INPUTS):
        at = first + column
        later = at + BLOCK_INPUTS
        held = valid & (later < INPUTS)[None, :]
        following = tl.load(line + later[None, :], held, 0.0, eviction_policy="evict_first")
        inputs = tl.load(x + at, at < INPUTS, 0.0)
        sums += weights.to(tl.float32) * inputs.to(tl.float32)[None, :]
        weights = following
    total = tl.sum(sums, 1)
    _finish(
        total, row, out, bias_a, bias_b, bias_c, rows_a, rows_b, rows_c, BLOCK_ROWS, BIASED
    )  # fmt: skip


@triton.jit
def _raised(words, magic, MASK: tl.constexpr):
    """2^23 and the bits of MASK. ``magic``, no constant, makes it one instruction, not two."""
    return ((words & MASK) | magic).to(tl.float32, bitcast=True)


@triton.jit
def _dot_int8(words, x, at, inside, magic, WORDS: tl.constexpr):
    """Of every word, sum of its signed bytes times their inputs."""
    part = tl.zeros(words.shape, tl.float32)
    shifted = words ^ tl.full([1, 1], -0x7F7F7F80, tl.int32)  # 0x80808080: each byte 128 more
    for pair in tl.static_range(2):
        moved = shifted if pair == 0 else shifted >> 16
        even = tl.load(x + 2 * pair * WORDS + at, inside, 0.0)
        odd = tl.load(x + (2 * pair + 1) * WORDS + at, inside, 0.0)
        part += (_raised(moved, magic, 0xFF) - (8388608.0 + 128)) * even[None, :]
        part += (_raised(moved, magic, 0xFF00) - (8388608.0 + 128 * 256)) * odd[None, :]
    return part


@triton.jit
def _halves(pairs):
    """Both float16 of each int32, widened."""
    low = (pairs & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _scale_and_zero(both, FLOAT16: tl.constexpr):
    """Of int4: the scale in 16 bits and, above it, the code that stands for 0, as float16."""
    half = tl.float16 if FLOAT16 else tl.bfloat16
    scale = (both & 0xFFFF).to(tl.int16).to(half, bitcast=True).to(tl.float32)
    return scale, (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _looked_up(table, code, SIGNED: tl.constexpr):
    """The values of codes, as float32; ``table`` is that of ``table_of``."""
    low = (tl.load(table + 32 * (code // 4)) >> (8 * (code % 4))) & 0xFF
    high = (tl.load(table + 32 * (4 + code // 4)) >> (8 * (code % 4))) & 0xFF
    value = (low | high << 8).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.where(code < 8, -value, value) if SIGNED else value


@triton.jit
def _interpreted_dot(word, scale, table, xa, xb, xc, xd, KIND: tl.constexpr, SIGNED: tl.constexpr):
    """What the PTX of int4 and NF4 makes of one word, for the interpreter."""
    part = tl.zeros(word.shape, tl.float32)
    for pair in tl.static_range(4):
        low, high = _halves(xa if pair == 0 else xb if pair == 1 else xc if pair == 2 else xd)
        if KIND == "nf4":
            first, second = (word >> (8 * pair)) & 15, (word >> (8 * pair + 4)) & 15
            part += _looked_up(table, first, SIGNED) * low
            part += _looked_up(table, second, SIGNED) * high
        else:
            _, zero = _scale_and_zero(scale, KIND == "int4 float16")
            first, second = (word >> (4 * pair)) & 15, (word >> (4 * pair + 16)) & 15
            part += (first.to(tl.float32) - zero) * low + (second.to(tl.float32) - zero) * high
    if KIND == "nf4":
        return scale * part
    unit, _ = _scale_and_zero(scale, KIND == "int4 float16")
    return unit * part


@triton.jit
def _four(values):
    """[..., 4 M] → four of [..., M]: the first of each four neighbours, the second, and so on."""
    if len(values.shape) == 1:
        even, odd = tl.split(values.reshape([values.shape[0] // 4, 2, 2]))
    else:
        even, odd = tl.split(values.reshape([values.shape[0], values.shape[1] // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _scales_at(line, place, held, KIND: tl.constexpr, INTERPRETED: tl.constexpr):
    """Scales [N, M] from ``line`` [N, 1] on, in the layout of what they multiply.

    A load would have one of its own, in which Triton then computes.
    """
    if INTERPRETED:
        scales = tl.load(line + place, held, 0)
    elif KIND == "nf4":
        scales = tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [(line + tl.where(held, place, 0)).to(tl.int64)],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        scales = tl.inline_asm_elementwise(
            "ld.global.nc.b32 $0, [$1];", "=r,l", [(line + tl.where(held, place, 0)).to(tl.int64)],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return scales


@triton.jit
def _code_rows(
    x, a, b, c, scales_a, scales_b, scales_c, bias_a, bias_b, bias_c, table, out,
    rows_a, rows_b, rows_c,
    WORDS: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WORDS: tl.constexpr, BIASED: tl.constexpr,
    UNIT: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """Products with 4-bit codes. GROUP is the words that share a scale, a multiple of four.

    KIND is nf4, whose scales are float32, int4 float16 or int4 bfloat16; with SIGNED the table of
    nf4 is of magnitudes.
    """
    program = tl.program_id(0)
    matrix, rows, _, block = _matrix(program, a, b, c, rows_a, rows_b, rows_c, BLOCK_ROWS)
    scales, _, _, _ = _matrix(
        program, scales_a, scales_b, scales_c, rows_a, rows_b, rows_c, BLOCK_ROWS
    )
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = (row < rows)[:, None]
    column, quad = tl.arange(0, BLOCK_WORDS), 4 * tl.arange(0, BLOCK_WORDS // 4)[None, :]
    line = matrix + row.to(tl.int64)[:, None] * WORDS
    scale_line = scales + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * (WORDS // GROUP)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_WORDS // 4], tl.float32)
    held = valid & (column < WORDS)[None, :]
    words = tl.load(line + column[None, :], held, 0, eviction_policy="evict_first")
    scale = _scales_at(scale_line, quad // GROUP, valid & (quad < WORDS), KIND, INTERPRETED)
    if KIND == "nf4":
        lane = tl.arange(0, BLOCK_WORDS // 4)[None, :] % 32
        t0, t1 = tl.load(table + lane), tl.load(table + 32 + lane)
        t2, t3 = tl.load(table + 64 + lane), tl.load(table + 96 + lane)
        t4, t5 = tl.load(table + 128 + lane), tl.load(table + 160 + lane)
        t6, t7 = tl.load(table + 192 + lane), tl.load(table + 224 + lane)
    for first in range(0, WORDS, BLOCK_WORDS):
        at = first + column
        inside = at < WORDS
        later, quad_later = at + BLOCK_WORDS, first + BLOCK_WORDS + quad
        held = valid & (later < WORDS)[None, :]
        following = tl.load(line + later[None, :], held, 0, eviction_policy="evict_first")
        held_scale = valid & (quad_later < WORDS)
        scale_later = _scales_at(scale_line, quad_later // GROUP, held_scale, KIND, INTERPRETED)
        w0, w1, w2, w3 = _four(words)
        a0, a1, a2, a3 = _four(tl.load(x + at, inside, 0))
        b0, b1, b2, b3 = _four(tl.load(x + WORDS + at, inside, 0))
        c0, c1, c2, c3 = _four(tl.load(x + 2 * WORDS + at, inside, 0))
        d0, d1, d2, d3 = _four(tl.load(x + 3 * WORDS + at, inside, 0))
        if INTERPRETED:
            sums += _interpreted_dot(w0, scale, table, a0, b0, c0, d0, KIND, SIGNED)
            sums += _interpreted_dot(w1, scale, table, a1, b1, c1, d1, KIND, SIGNED)
            sums += _interpreted_dot(w2, scale, table, a2, b2, c2, d2, KIND, SIGNED)
            sums += _interpreted_dot(w3, scale, table, a3, b3, c3, d3, KIND, SIGNED)
        elif KIND == "nf4":
            sums = tl.inline_asm_elementwise(
                SIGNED_TABLE if SIGNED else TABLE, FLOAT_SCALE,
                [
                    sums, w0, w1, w2, w3, scale,
                    a0[None, :], b0[None, :], c0[None, :], d0[None, :],
                    a1[None, :], b1[None, :], c1[None, :], d1[None, :],
                    a2[None, :], b2[None, :], c2[None, :], d2[None, :],
                    a3[None, :], b3[None, :], c3[None, :], d3[None, :],
                    t0, t1, t2, t3, t4, t5, t6, t7,
                ],
                dtype=tl.float32, is_pure=True, pack=1,
            )  # fmt: skip
        else:
            sums = tl.inline_asm_elementwise(
                INT4_FLOAT16 if KIND == "int4 float16" else INT4_BFLOAT16, PACKED_SCALE,
                [
                    sums, w0, w1, w2, w3, scale,
                    a0[None, :], b0[None, :], c0[None, :], d0[None, :],
                    a1[None, :], b1[None, :], c1[None, :], d1[None, :],
                    a2[None, :], b2[None, :], c2[None, :], d2[None, :],
                    a3[None, :], b3[None, :], c3[None, :], d3[None, :],
                ],
                dtype=tl.float32, is_pure=True, pack=1,
            )  # fmt: skip
        words, scale = following, scale_later
    total = tl.sum(sums, 1) * UNIT
    _finish(
        total, row, out, bias_a, bias_b, bias_c, rows_a, rows_b, rows_c, BLOCK_ROWS, BIASED
    )  # fmt: skip


@triton.jit
def _byte_rows(
    x, a, b, c, scales_a, scales_b, scales_c, bias_a, bias_b, bias_c, out,
    rows_a, rows_b, rows_c, magic,
    WORDS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WORDS: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Products with signed bytes, of which each row has one float32 scale."""
    program = tl.program_id(0)
    matrix, rows, _, block = _matrix(program, a, b, c, rows_a, rows_b, rows_c, BLOCK_ROWS)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_WORDS)
    line = matrix + row.to(tl.int64)[:, None] * WORDS
    valid = (row < rows)[:, None]
    sums = tl.zeros([BLOCK_ROWS, BLOCK_WORDS], tl.float32)
    held = valid & (column < WORDS)[None, :]
    words = tl.load(line + column[None, :], held, 0, eviction_policy="evict_first")
    for first in range(0, WORDS, BLOCK_WORDS):
        at = first + column
        later = at + BLOCK_WORDS
        held = valid & (later < WORDS)[None, :]
        following = tl.load(line + later[None, :], held, 0, eviction_policy="evict_first")
        sums += _dot_int8(words, x, at, at < WORDS, magic, WORDS)
        words = following
    scales, _, _, _ = _matrix(
        program, scales_a, scales_b, scales_c, rows_a, rows_b, rows_c, BLOCK_ROWS
    )
    total = tl.sum(sums, 1) * tl.load(scales + row, row < rows, 0.0)
    _finish(
        total, row, out, bias_a, bias_b, bias_c, rows_a, rows_b, rows_c, BLOCK_ROWS, BIASED
    )  # fmt: skip


@triton.jit
def _unpack_int4(
    words, scales, out, rows,
    WORDS: tl.constexpr, GROUP: tl.constexpr, FLOAT16: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    """The weights of 4-bit codes, row by row, in the type of their scales."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    at = tl.program_id(1) * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)[None, :]
    held = (row < rows) & (at < 8 * WORDS)
    code = (tl.load(words + row * WORDS + at // 8, held, 0) >> (at % 8 * 4)) & 15
    both = tl.load(scales + row * (WORDS // GROUP) + at // (8 * GROUP), held, 0)
    unit, zero = _scale_and_zero(both, FLOAT16)
    weights = (code.to(tl.float32) - zero) * unit
    tl.store(out + row * (8 * WORDS) + at, weights.to(out.dtype.element_ty), held)


# ---------------------------------------------------------------- launches

_MANY_ROWS = 16_384
"""From so many on a program of one warp is faster than one of two, on an H200 and for the shapes of
Llama-3.1-8B: in between either is, by 5 %."""
_RAISE = 0x4B000000
"""The bits of 2^23."""
_SIGNED = " signed"
"""What the kind ends in whose table is of magnitudes."""


_SHRUNK = 2.0**-6
_LARGEST = 511.0
"""Inputs of 4-bit codes are float16, so many times smaller: of 16 products none overflows then,
where inputs are below 32,704, which is cut off. Smaller ones than 0.004 lose bits, as numbers that
small beside others do."""


def table_of(values: torch.Tensor, *, signed: bool = False) -> torch.Tensor:
    """What 16 codes stand for, as ``linears_packed`` takes it: int32 [8, 32], as float16.

    The lower bytes of four codes in each of four words, then the higher ones, for every lane of a
    warp: from one word for all lanes ptxas would fetch each use anew. With ``signed`` they are of
    magnitudes, and the first eight codes negative.
    """
    values = values.abs() if signed else values
    halves = values.half().view(torch.uint8).view(16, 2).t().contiguous().view(-1)
    return halves.view(torch.int32)[:, None].repeat(1, 32)


def int8_fields_of(x: torch.Tensor) -> torch.Tensor:
    """Inputs [K] as ``linears_packed`` takes them for int8: float32 [4, K / 4].

    Of the fields that are 256 times as much where they are, a 256th.
    """
    fields = x.reshape(-1, 4).t().float()
    return torch.stack((fields[::2], fields[1::2] / 256), 1).view(4, -1)


def int4_fields_of(x: torch.Tensor) -> torch.Tensor:
    """Inputs [K] as ``linears_packed`` takes them for int4: float16 [4, K / 8, 2].

    The pairs are those of the fields in the two halves of a word.
    """
    return _shrunk(x).view(-1, 2, 4).permute(2, 0, 1).contiguous()


def nf4_fields_of(x: torch.Tensor) -> torch.Tensor:
    """Inputs [K] as ``linears_packed`` takes them for NF4: float16 [4, K / 8, 2].

    The pairs are those of each byte, whose low half is the second.
    """
    return _shrunk(x).view(-1, 4, 2).flip(2).permute(1, 0, 2).contiguous()


def _shrunk(x: torch.Tensor) -> torch.Tensor:
    return (x.reshape(-1).float() * _SHRUNK).clamp(-_LARGEST, _LARGEST).half()


@torch.library.custom_op(
    "llmfit_gpu::linears_bf16",
    mutates_args=(),
    schema="(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor",
)
def linears_bf16(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
) -> torch.Tensor:
    """x [..., K] of one row times each of up to three matrices [N, K], side by side [..., ΣN]."""
    inputs = x.shape[-1]
    rows = [weight.shape[0] for weight in weights]
    out = x.new_empty((*x.shape[:-1], sum(rows)))
    block_rows, warps = (64 if INTERPRETED else 1), 8
    _bf16_rows[(_programs(rows, block_rows),)](
        x, *_three(weights), *_three(biases or weights), out, *_three_counts(rows),
        INPUTS=inputs, BLOCK_ROWS=block_rows, BLOCK_INPUTS=256 * warps,
        BIASED=bool(biases), num_warps=warps, **FUSED,
    )  # fmt: skip
    return out


@linears_bf16.register_fake
def _(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], sum(weight.shape[0] for weight in weights)))


@torch.library.custom_op(
    "llmfit_gpu::linears_packed",
    mutates_args=(),
    schema=(
        "(Tensor fields, Tensor[] words, Tensor[] scales, Tensor[] biases, Tensor? table, "
        "str kind, int group, ScalarType dtype) -> Tensor"
    ),
)
def linears_packed(
    fields: torch.Tensor,
    words: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    table: torch.Tensor | None,
    kind: str,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``fields`` of one row times each of up to three packed matrices, side by side [ΣN].

    ``words`` int32 [N, K / F]; ``kind`` is int8, of which each row has one float32 scale, or
    one of ``_code_rows``, of whose ``scales`` each is of ``group`` words. ``table`` is that of
    ``table_of`` for NF4, for nf4 signed with ``signed``.
    """
    rows = [each.shape[0] for each in words]
    out = fields.new_empty(sum(rows), dtype=dtype)
    tensors = (*_three(words), *_three(scales), *_three(biases or scales))
    width, biased = words[0].shape[1], bool(biases)
    block_rows, warps = (64 if INTERPRETED else 4), 1 if sum(rows) >= _MANY_ROWS else 2
    if kind == "int8":
        _byte_rows[(_programs(rows, block_rows),)](
            fields, *tensors, out, *_three_counts(rows), _RAISE, WORDS=width,
            BLOCK_ROWS=block_rows, BLOCK_WORDS=128 * warps, BIASED=biased, num_warps=warps,
            **FUSED,
        )  # fmt: skip
        return out
    _code_rows[(_programs(rows, block_rows),)](
        fields.view(torch.int32), *tensors, fields if table is None else table, out,
        *_three_counts(rows), WORDS=width, GROUP=group, KIND=kind.removesuffix(_SIGNED),
        SIGNED=kind.endswith(_SIGNED), INTERPRETED=INTERPRETED,
        BLOCK_ROWS=block_rows, BLOCK_WORDS=128 * warps, BIASED=biased, UNIT=1 / _SHRUNK,
        num_warps=warps, **FUSED,
    )  # fmt: skip
    return out


@linears_packed.register_fake
def _(
    fields: torch.Tensor,
    words: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    table: torch.Tensor | None,
    kind: str,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return fields.new_empty(sum(each.shape[0] for each in words), dtype=dtype)


@torch.library.custom_op(
    "llmfit_gpu::unpack_int4",
    mutates_args=(),
    schema="(Tensor words, Tensor scales, int group, ScalarType dtype, bool float16) -> Tensor",
)
def unpack_int4(
    words: torch.Tensor, scales: torch.Tensor, group: int, dtype: torch.dtype, float16: bool
) -> torch.Tensor:
    """The weights [N, K] that ``words`` int32 [N, K / 8] and ``scales`` [N, K / 8 / group] are.

    ``float16`` where the scales are, else they are bfloat16.
    """
    rows, width = words.shape
    out = words.new_empty((rows, 8 * width), dtype=dtype)
    block_rows, block_inputs = 4, 512
    _unpack_int4[(triton.cdiv(rows, block_rows), triton.cdiv(8 * width, block_inputs))](
        words, scales, out, rows, WORDS=width, GROUP=group, FLOAT16=float16,
        BLOCK_ROWS=block_rows, BLOCK_INPUTS=block_inputs, **FUSED,
    )  # fmt: skip
    return out


@unpack_int4.register_fake
def _(
    words: torch.Tensor, scales: torch.Tensor, group: int, dtype: torch.dtype, float16: bool
) -> torch.Tensor:
    return words.new_empty((words.shape[0], 8 * words.shape[1]), dtype=dtype)


def _three(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [*tensors, *[tensors[0]] * (MOST_MATRICES - len(tensors))]


def _three_counts(rows: Sequence[int]) -> list[int]:
    return [*rows, *[0] * (MOST_MATRICES - len(rows))]


def _programs(rows: Sequence[int], block_rows: int) -> int:
    return sum(triton.cdiv(count, block_rows) for count in rows)
