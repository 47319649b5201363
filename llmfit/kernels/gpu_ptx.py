"""PTX of products with 4-bit codes: what one thread does with four words that share a scale.

    word ─► pairs of codes as pairs of float16 ─► times pairs of inputs, 16 of them added up
         ─► float32 ─► times the scale ─► added to the sum

Two pairs of float16 are multiplied and added by one instruction. Integers take a mask for two
codes and a subtraction; what codes of a table stand for takes byte permutes, as registers can be
looked up in by no other. ``benchmarks/gpu_instructions.py`` prints what is made of all that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import triton.language as tl


def _named(names: Mapping[str, str], found: re.Match[str]) -> str:
    return names[found[0]]


def _sum_of_words(start: str, each: str, scale: str) -> tl.constexpr:
    """PTX that adds, to a sum, the products of four words of one scale.

    $0 is the sum that results, $1 that before, $2 to $5 are the words and $6 the scale; from $7 on
    come the four pairs of inputs of each word. ``each`` multiplies word W by pairs A to D into the
    half2 ACC.
    """
    lines = [
        "{ .reg .b32 t, u, m, h, l, k, p, c1, c2, acc0, acc1; .reg .b16 s, z, lo, hi;",
        ".reg .f32 f, g, scale; mov.b32 acc0, 0; mov.b32 acc1, 0;",
        start,
    ]
    for word in range(4):
        names = {"W": f"${2 + word}", "ACC": f"acc{word // 2}"}
        names |= {name: f"${7 + 4 * word + pair}" for pair, name in enumerate("ABCD")}
        lines.append(re.sub(r"\b(W|ACC|A|B|C|D)\b", partial(_named, names), each))
    lines.append("mov.b32 {lo, hi}, acc0; cvt.f32.f16 f, lo; cvt.f32.f16 g, hi; add.f32 f, f, g;")
    lines.append("mov.b32 {lo, hi}, acc1; cvt.f32.f16 g, lo; add.f32 f, f, g;")
    lines.append(f"cvt.f32.f16 g, hi; add.f32 f, f, g; {scale} fma.rn.f32 $0, scale, f, $1; }}")
    return tl.constexpr("\n".join(lines))


_INT4_PAIRS = (
    "lop3.b32 t, W, 0x000f000f, 0x64006400, 0xea; add.rn.f16x2 t, t, c1;"
    "fma.rn.f16x2 ACC, t, A, ACC;"
    "lop3.b32 t, W, 0x00f000f0, 0x64006400, 0xea; fma.rn.f16x2 t, t, k, c2;"
    "fma.rn.f16x2 ACC, t, B, ACC; shr.u32 u, W, 8;"
    "lop3.b32 t, u, 0x000f000f, 0x64006400, 0xea; add.rn.f16x2 t, t, c1;"
    "fma.rn.f16x2 ACC, t, C, ACC;"
    "lop3.b32 t, u, 0x00f000f0, 0x64006400, 0xea; fma.rn.f16x2 t, t, k, c2;"
    "fma.rn.f16x2 ACC, t, D, ACC;"
)
"""A code under the bits of 1024 is that much more in float16, and 16 times the code where it is one
place higher. The zero goes with it, so that what is left are whole numbers, exactly."""
_INT4_START = (
    "mov.b32 {s, z}, $6; mov.b32 t, {z, z}; mov.b32 k, 0x2c002c00;"  # 1/16
    "mov.b32 p, 0xbc00bc00; mov.b32 u, 0xe400e400; fma.rn.f16x2 c1, t, p, u;"  # -z - 1024
    "mov.b32 u, 0xd400d400; fma.rn.f16x2 c2, t, p, u;"  # -z - 64
)
INT4_FLOAT16 = _sum_of_words(_INT4_START, _INT4_PAIRS, "cvt.f32.f16 scale, s;")
INT4_BFLOAT16 = _sum_of_words(_INT4_START, _INT4_PAIRS, "shl.b32 t, $6, 16; mov.b32 scale, t;")
_LOOK_UP_FOUR = "".join(
    f"prmt.b32 {made}, ${first}, ${first + 1}, m; prmt.b32 p, ${first + 2}, ${first + 3}, m;"
    f"lop3.b32 {made}, k, p, {made}, 0xca;"
    for made, first in (("l", 23), ("h", 27))
)
"""The low and the high bytes of the float16 values of four codes: of each code's lower three bits
in either half of the table, of which its highest bit, in k, takes one."""
_TABLE_PAIRS = (
    "and.b32 m, W, 0x77777777; shr.u32 t, W, 3; and.b32 t, t, 0x11111111;"
    "prmt.b32 k, 0xff00, 0, t;"
    + _LOOK_UP_FOUR
    + "prmt.b32 p, l, h, 0x5140; fma.rn.f16x2 ACC, p, A, ACC;"
    "prmt.b32 p, l, h, 0x7362; fma.rn.f16x2 ACC, p, B, ACC;"
    "shr.u32 m, m, 16; shr.u32 t, t, 16;"
    "prmt.b32 k, 0xff00, 0, t;"
    + _LOOK_UP_FOUR
    + "prmt.b32 p, l, h, 0x5140; fma.rn.f16x2 ACC, p, C, ACC;"
    "prmt.b32 p, l, h, 0x7362; fma.rn.f16x2 ACC, p, D, ACC;"
)
TABLE = _sum_of_words("", _TABLE_PAIRS, "mov.f32 scale, $6;")


def _by_sign(codes: str, flipped: str, pairs: str) -> str:
    """Of four codes the values below 0, then those above, times their two pairs of inputs.

    A nibble whose highest bit is set takes the sign of a byte, which is 0 in all high bytes: in
    ``codes`` those of the other half become 0, in ``flipped`` those of this one. Of low bytes with
    that bit set there is left what is 255 in the lowest bits, 1.5e-5.
    """
    made = ""
    for selector, low, high, minus in ((codes, 23, 27, "neg.f16x2 p, p;"), (flipped, 25, 29, "")):
        made += (
            f"prmt.b32 l, ${low}, ${low + 1}, {selector};"
            f"prmt.b32 h, ${high}, ${high + 1}, {selector};"
        )
        for pair, places in zip(pairs, ("0x5140", "0x7362"), strict=True):
            made += f"prmt.b32 p, l, h, {places}; {minus} fma.rn.f16x2 ACC, p, {pair}, ACC;"
    return made


SIGNED_TABLE = _sum_of_words(
    "",
    "xor.b32 t, W, 0x88888888;"
    + _by_sign("W", "t", "AB")
    + "dp2a.lo.u32.u32 m, W, 0x100, 0; dp2a.lo.u32.u32 t, t, 0x100, 0;"
    + _by_sign("m", "t", "CD"),
    "mov.f32 scale, $6;",
)
"""As ``TABLE``, of magnitudes: codes below 8 are negative. What selects bytes is busier than what
multiplies, so the two halves of the table are multiplied apart, and not put together first, and a
word's upper half is moved down by a product with the bytes 0 and 1."""
FLOAT_SCALE = tl.constexpr("=f,f,r,r,r,r,f" + ",r" * 24)
PACKED_SCALE = tl.constexpr("=f,f,r,r,r,r,r" + ",r" * 16)
"""The operands' registers: of both tables, whose eight words are the last, and of both ``INT4``."""
