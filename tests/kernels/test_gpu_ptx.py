"""The PTX of 4-bit products, instruction by instruction, without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this system")

from llmfit.kernels import gpu, gpu_ptx

MASK = 0xFFFFFFFF


def halves(word: int) -> np.ndarray:
    """The two float16 of a register."""
    return np.array([word & 0xFFFF, word >> 16], dtype=np.uint16).view(np.float16)


def packed(values: np.ndarray) -> int:
    low, high = (int(each) for each in values.astype(np.float16).view(np.uint16))
    return low | high << 16


def fma(a: int, b: int, c: int) -> int:
    """Rounded once: float64 holds the product of two float16 and the sum exactly enough."""
    return packed(halves(a).astype(float) * halves(b).astype(float) + halves(c).astype(float))


def permuted(a: int, b: int, selector: int) -> int:
    """Bytes by the lower three bits of four nibbles; with the fourth all bits are its sign."""
    every = (a & MASK).to_bytes(4, "little") + (b & MASK).to_bytes(4, "little")
    picked = [selector >> (4 * place) & 15 for place in range(4)]
    signs = [0xFF * (each >> 7) for each in every]
    return int.from_bytes(bytes((*every, *signs)[each] for each in picked), "little")


def logic(a: int, b: int, c: int, table: int) -> int:
    """Bit by bit, the entry of the table that the three bits are the number of."""
    out = 0
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        out |= (table >> index & 1) << bit
    return out


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def real(word: int) -> float:
    return float(np.uint32(word).view(np.float32))


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "mov.f32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shr.u32": lambda a, b: a >> b,
    "dp2a.lo.u32.u32": lambda a, b, c: (
        (a & 0xFFFF) * (b & 0xFF) + (a >> 16) * (b >> 8 & 0xFF) + c & MASK
    ),
    "shl.b32": lambda a, b: a << b & MASK,
    "lop3.b32": logic,
    "prmt.b32": permuted,
    "add.rn.f16x2": lambda a, b: packed(halves(a) + halves(b)),
    "neg.f16x2": lambda a: a ^ 0x80008000,
    "fma.rn.f16x2": fma,
    "cvt.f32.f16": lambda a: bits(float(halves(a)[0])),
    "add.f32": lambda a, b: bits(real(a) + real(b)),
    "fma.rn.f32": lambda a, b, c: bits(real(a) * real(b) + real(c)),
}


def run(text: str, operands: dict[str, int]) -> float:
    """What the text leaves in $0."""
    registers = dict(operands)
    for line in re.split(r"[;\n]", text.strip().strip("{}")):
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith(".reg"):
            continue
        parts = [part.strip() for part in re.findall(r"\{[^}]*\}|[^,\s][^,]*", rest)]
        if parts[0].startswith("{"):  # a register taken apart
            low, high = (part.strip() for part in parts[0].strip("{}").split(","))
            registers[low], registers[high] = (
                registers[parts[1]] & 0xFFFF,
                registers[parts[1]] >> 16,
            )
            continue
        values = [value_of(part, registers) for part in parts[1:]]
        registers[parts[0]] = INSTRUCTIONS[name](*values)
    return real(registers["$0"])


def value_of(part: str, registers: dict[str, int]) -> int:
    if part.startswith("{"):
        low, high = (registers[each.strip()] for each in part.strip("{}").split(","))
        return low | high << 16
    return registers[part] if part in registers else int(part, 0)


def inputs_of(pairs: np.ndarray) -> dict[str, int]:
    """The operands from $7 on: for each word its four pairs."""
    return {
        f"${7 + 4 * word + pair}": packed(pairs[word, pair])
        for word in range(4)
        for pair in range(4)
    }


@pytest.mark.parametrize("scale_type", [torch.float16, torch.bfloat16])
def test_integers_less_their_zero_times_their_scale(scale_type: torch.dtype) -> None:
    """Every code is met, with three zeros; the sum before stays in it."""
    text = gpu_ptx.INT4_FLOAT16 if scale_type == torch.float16 else gpu_ptx.INT4_BFLOAT16
    random = np.random.default_rng(0)
    for zero in (0, 8, 15):
        codes = random.permutation(np.arange(32) % 16).reshape(4, 8)
        x = random.standard_normal((4, 8)).astype(np.float16)
        scale = torch.tensor(0.0371).to(scale_type)
        operands = {f"${2 + word}": code_word(codes[word]) for word in range(4)}
        operands["$1"] = bits(0.25)
        half = int(np.float16(zero).view(np.uint16))
        operands["$6"] = int(scale.view(torch.int16)) & 0xFFFF | half << 16
        operands |= inputs_of(np.stack([x[:, :4], x[:, 4:]], -1))
        wanted = 0.25 + float(scale) * float(((codes - zero) * x.astype(float)).sum())
        assert run(text.value, operands) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("signed", [False, True])
def test_codes_of_a_table_times_their_scale(signed: bool) -> None:
    """Each byte's high half is the first of its two codes, as bitsandbytes packs them."""
    random = np.random.default_rng(0)
    values = random.standard_normal(16).astype(np.float16)
    if signed:
        values = np.sort(np.abs(values)) * np.repeat([-1, 1], 8).astype(np.float16)
    table = gpu.table_of(torch.from_numpy(values), signed=signed)[:, 0]
    text = (gpu_ptx.SIGNED_TABLE if signed else gpu_ptx.TABLE).value
    codes = random.permutation(np.arange(32) % 16).reshape(4, 8)
    x = random.standard_normal((4, 8)).astype(np.float16)
    swapped = codes.reshape(4, 4, 2)[..., ::-1].reshape(4, 8)
    operands = {f"${2 + word}": code_word(swapped[word]) for word in range(4)}
    operands |= {"$1": bits(-0.5), "$6": bits(0.71)}
    operands |= inputs_of(x.reshape(4, 4, 2)[..., ::-1])
    operands |= {f"${23 + index}": int(word) & MASK for index, word in enumerate(table)}
    wanted = -0.5 + 0.71 * float((values[codes].astype(float) * x.astype(float)).sum())
    assert run(text, operands) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("code", range(16))
def test_a_code_of_a_signed_table_is_its_value(code: int) -> None:
    """What the other half of the table leaves is below 1.6e-5. The values are NF4's own."""
    from bitsandbytes.functional import get_4bit_type

    values = get_4bit_type("nf4", device="cpu")
    table = gpu.table_of(values, signed=True)[:, 0]
    one = np.zeros((4, 4, 2), dtype=np.float16)
    one[2, 3, 1] = 1
    operands = {f"${2 + word}": 0 for word in range(4)}
    operands["$4"] = code << 28
    operands |= {"$1": bits(0.0), "$6": bits(1.0)} | inputs_of(one)
    operands |= {f"${23 + index}": int(word) & MASK for index, word in enumerate(table)}
    exact = float(values[code].half())
    assert run(gpu_ptx.SIGNED_TABLE.value, operands) == pytest.approx(exact, abs=1.6e-5)


def code_word(codes: np.ndarray) -> int:
    """Eight codes, the first in the lowest bits."""
    return sum(int(code) << (4 * place) for place, code in enumerate(codes))
