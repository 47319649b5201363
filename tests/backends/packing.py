"""Stored layouts of quantised matrices, packed from their definitions.

Nothing here comes from the libraries that read them. GPTQ's and AWQ's matrices are [in, out] with
``y = x @ w``; ``q`` are the stored integers, and scales have few enough mantissa bits that
``(q - zero) * scale`` is exact in bfloat16, so that a dense model with the same weights is a
closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column that the i-th field of an int32 holds. Source: Lin et al., AWQ, GEMM kernel's layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """A matrix as integers with a scale and a zero per group of inputs and output."""

    q: np.ndarray  # int64 [in, out], 0 … 2^bits - 1
    zero: np.ndarray  # int64 [groups, out]
    scale: np.ndarray  # float32 [groups, out]
    group_of: np.ndarray  # int64 [in]: the group that each input belongs to
    bits: int

    def dense(self) -> np.ndarray:
        """The weights that this stands for: float32 [in, out]."""
        steps = (self.q - self.zero[self.group_of]).astype(np.float32)
        return steps * self.scale[self.group_of]


def random_integers(
    rows: int, columns: int, *, bits: int, group: int, sym: bool, act_order: bool, seed: int
) -> Integers:
    """Integers whose dense weights have a spread of about 0.02; ``group`` -1 is one group."""
    random = np.random.default_rng(seed)
    groups = 1 if group == -1 else rows // group
    order = random.permutation(rows) if act_order else np.arange(rows)
    group_of = np.empty(rows, dtype=np.int64)
    group_of[order] = np.arange(rows) // (rows // groups)
    middle = 2 ** (bits - 1)
    # 0 is left out: the first GPTQ layout stores zero - 1 and has no room for -1.
    near = max(1, middle // 4)
    zero = random.integers(middle - near, middle + near + 1, (groups, columns))
    if sym:
        zero = np.full_like(zero, middle)
    # Around the zero, as weights are around 0: a mean would drive attention to one-hot.
    q = np.rint(random.normal(zero[group_of], 2**bits / 6)).astype(np.int64)
    scale = random.integers(4, 8, (groups, columns)) / 4 * (2.0 ** -(bits + 4))
    return Integers(
        q=q.clip(0, 2**bits - 1),
        zero=zero,
        scale=scale.astype(np.float32),
        group_of=group_of,
        bits=bits,
    )


def pack_fields(values: np.ndarray, bits: int) -> np.ndarray:
    """Rows of small integers as one stream of bits per column, in int32: [n, m] → [n·bits÷32, m].

    The first row takes the lowest bits; with 3 bits a value may lie across two words.
    """
    stream = ((values[:, None, :] >> np.arange(bits)[None, :, None]) & 1).astype(np.uint64)
    words = stream.reshape(-1, 32, values.shape[1])  # [words, bit, m]
    packed = (words << np.arange(32, dtype=np.uint64)[None, :, None]).sum(axis=1, dtype=np.uint64)
    return packed.astype(np.uint32).view(np.int32)


def gptq_tensors(matrix: Integers) -> dict[str, np.ndarray]:
    """AutoGPTQ's tensors: inputs packed down the rows, zeros along the outputs and less one."""
    return {
        "qweight": pack_fields(matrix.q, matrix.bits),
        "qzeros": np.ascontiguousarray(pack_fields((matrix.zero - 1).T, matrix.bits).T),
        "scales": matrix.scale.astype(np.float16),
        "g_idx": matrix.group_of.astype(np.int32),
    }


def awq_tensors(matrix: Integers) -> dict[str, np.ndarray]:
    """AutoAWQ's GEMM tensors: eight outputs to an int32, interleaved; zeros as they are."""

    def pack(values: np.ndarray) -> np.ndarray:
        fields = values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER]
        words = (fields.astype(np.uint64) << (4 * np.arange(8, dtype=np.uint64))).sum(
            axis=-1, dtype=np.uint64
        )
        return words.astype(np.uint32).view(np.int32)

    return {
        "qweight": pack(matrix.q),
        "qzeros": pack(matrix.zero),
        "scales": matrix.scale.astype(np.float16),
    }


def fp8_tensors(
    weight: torch.Tensor, block: int = 128
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """FP8 in blocks of a matrix [out, in], and the matrix that this stands for, in float32.

    A block of ``block`` × ``block`` weights in e4m3 has one float32 scale, by which it is
    multiplied. Source: DeepSeek-V3, 2024, section 3.3.
    """
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows // block, block, columns // block, block)
    scale = blocks.abs().amax(dim=(1, 3)) / 448  # e4m3's largest number
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    dense = (codes.float() * scale[:, None, :, None]).reshape(rows, columns)
    return {"weight": codes.reshape(rows, columns), "weight_scale_inv": scale}, dense
