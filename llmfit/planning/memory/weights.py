"""Bytes of a model's weights in each format, from its shape.

    format            linear layers of the blocks               everything else
    bf16, sdpa …      2 bytes a weight                          2 bytes
    int8              1 byte, a float32 scale a row             2 bytes
    nf4               half a byte, statistics a block of 64     2 bytes
    gptq, awq         half a byte, scale and zero a group       2 bytes
    int8wo            1 byte, scale and zero a row              2 bytes
    hqq               half a byte, scale and zero a group       2 bytes
    gguf:TYPE         a type for every tensor                   the same

Everything else is embeddings, output head, norms, biases, routers, and experts that transformers
holds in one fused parameter, which no library here replaces. ``gguf_mix`` knows GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from math import ceil

from llmfit.planning.memory.gguf_mix import gguf_bytes, gguf_read_bytes
from llmfit.planning.memory.gguf_mixtures import DEFAULT_TYPE
from llmfit.records import Device
from llmfit.shape import LayerShape, Matrix, ModelShape

UNQUANTIZED = frozenset({"bf16", "sdpa", "compiled", "offload"})
"""Backends that keep every weight in 16 bits."""

GROUP_SIZES = (128, 64, 32)
"""Inputs that share a scale in GPTQ and AWQ; the first that suits most weights is taken."""
PACK_ROWS = 32
"""Outputs of a matrix that GPTQModel packs come in multiples of this.
Source: GPTQModel 7.6, ``pack_block``."""

_SIBLINGS = (
    frozenset({"attn_q", "attn_k", "attn_v"}),
    frozenset({"ffn_gate", "ffn_up"}),
    frozenset({"ffn_gate_shexp", "ffn_up_shexp"}),
)
"""Layers fed by one norm, which AWQ rescales together: packed all or none."""

_BYTES_16 = 2
_BLOCK_NF4 = 64
_NESTED_BLOCK = 256
"""Block statistics that double quantisation packs together.
Source: bitsandbytes 0.50, functional.quantize_4bit, compress_statistics."""
_CODE_NF4_BYTES = 16 * 4
_CODE_NESTED_BYTES = 256 * 4 + 4
"""The nested type's own table in float32, and the mean that is subtracted first."""
_GROUP_HQQ = 64
_FP8_BLOCK = 128
_MXFP4_BLOCK = 32

_REPACKED_VALUE_BYTES = {"nf4": 9, "gptq": 8, "awq": 19}
"""Held for each value of a matrix while a CPU's kernel repacks it, its codes in int32 among them.
Source: the peak of loading, with bitsandbytes 0.50 (functional._convert_weight_packed_for_cpu) and
GPTQModel 7.6 (transform_cpu of the two torch_aten kernels)."""

_TRANSPOSED = frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"})
"""GPT-2's matrices are transformers' Conv1D, no ``nn.Linear``; bitsandbytes takes them too.
Source: transformers 5.23, integrations/bitsandbytes.py, replace_with_bnb_linear."""

_Packing = Callable[[Matrix], int]
"""Bytes of one copy of a matrix."""


@lru_cache(maxsize=64)  # the search for the largest context asks again and again
def weights_bytes(
    shape: ModelShape, backend: str, *, stored: str | None = None, device: Device = "cuda"
) -> int | None:
    """Bytes of all weights as the format holds them, or None where its layout is not known here.

    ``backend`` is a backend's id, or for planning alone ``gptq:int8`` and ``nf4:double`` (double
    quantisation). ``stored`` is the checkpoint's own method and ``device`` where it runs, for the
    backend ``stored``.
    """
    if backend.partition(":")[0] == "gguf":
        return gguf_bytes(shape, _gguf_type(backend))
    packing = _packing(shape, backend, stored, device)
    if packing is None:
        return None
    outside = shape.parameters - sum(_layer_values(layer) for layer in shape.of_layers())
    layers = sum(_layer_bytes(layer, packing) for layer in shape.of_layers())
    return outside * _BYTES_16 + layers


def weights_read_bytes(
    shape: ModelShape,
    backend: str,
    batch: int = 1,
    *,
    stored: str | None = None,
    device: Device = "cuda",
) -> int | None:
    """Bytes of weights that one decode step of ``batch`` sequences reads, or None.

    Of the experts as many as ``batch`` independent, even choices are expected to meet; of the
    embedding a row a sequence; the output head whole, also where it is the embedding.
    """
    if backend.partition(":")[0] == "gguf":
        return gguf_read_bytes(shape, _gguf_type(backend), batch)
    packing = _packing(shape, backend, stored, device)
    if packing is None:
        return None
    layers = sum(
        _layer_bytes(layer, packing, partial(expected_copies, batch=batch))
        for layer in shape.of_layers()
    )
    head = shape.head.parameters + shape.vectors + sum(m.parameters for m in shape.extra)
    return round(layers + _BYTES_16 * (head + batch * shape.hidden_size))


def expected_copies(matrix: Matrix, *, batch: int) -> float:
    """Distinct copies that ``batch`` tokens meet, each choosing ``active`` of ``count`` evenly.

    count × (1 − (1 − active ÷ count)^batch): a copy is missed by every token or read once.
    """
    missed = (1.0 - matrix.active / matrix.count) ** batch
    return matrix.count * (1.0 - missed)


def packed_names(shape: ModelShape) -> tuple[int, frozenset[str]]:
    """Group size and matrices that GPTQ and AWQ pack; as ``quantize`` chooses them.

    The group size is the one that lets most weights be packed, the larger of equals. A matrix is
    packed where its shape divides in all layers and its siblings' do too.
    """
    sizes: dict[str, list[Matrix]] = {}
    for layer in shape.of_layers():
        for matrix in layer.matrices:
            if matrix.linear:
                sizes.setdefault(matrix.name, []).append(matrix)
    choices = [(group, _divisible(sizes, group)) for group in GROUP_SIZES]
    return max(choices, key=lambda choice: (_values(sizes, choice[1]), choice[0]))


@lru_cache(maxsize=64)  # likewise
def repacking_bytes(shape: ModelShape, backend: str) -> int:
    """Bytes beside all weights at the end of loading on a CPU, when the largest matrix is repacked.

    0 for a format whose weights are used as they are stored. ``nf4`` is repacked where the CPU has
    AVX-512 with bfloat16, so elsewhere this is an upper bound.
    """
    name = backend.partition(":")[0]
    each = _REPACKED_VALUE_BYTES.get(name, 0)
    if not each or backend == "gptq:int8":
        return 0
    names = None if name == "nf4" else packed_names(shape)[1]
    matrices = (
        matrix.rows * matrix.columns
        for kind in shape.kinds
        for matrix in kind.matrices
        if matrix.linear and (names is None or matrix.name in names)
    )
    return each * max(matrices, default=0)


def unpacked_expert_share(shape: ModelShape, backend: str) -> float:
    """Share of the parameters that are experts which a 4- or 8-bit format leaves in 16 bits.

    transformers holds them in one fused parameter, no ``nn.Linear``, and the formats' libraries
    replace only those. llama.cpp quantises them, and a ready checkpoint is as its maker left it.
    """
    name = backend.partition(":")[0]
    if name in UNQUANTIZED or name in ("gguf", "stored"):
        return 0.0
    fused = sum(
        matrix.parameters
        for layer in shape.of_layers()
        for matrix in layer.matrices
        if matrix.count > 1 and not matrix.linear
    )
    return fused / shape.parameters


# ---------------------------------------------------------------- layers


def _layer_bytes(
    layer: LayerShape, packing: _Packing, copies: Callable[[Matrix], float] | None = None
) -> int:
    """Bytes of a layer, of each matrix ``copies`` (None: all)."""
    matrices = sum(
        packing(matrix) * (matrix.count if copies is None else copies(matrix))
        for matrix in layer.matrices
    )
    return round(matrices) + layer.vectors * _BYTES_16


def _layer_values(layer: LayerShape) -> int:
    return sum(matrix.parameters for matrix in layer.matrices) + layer.vectors


def _divisible(sizes: dict[str, list[Matrix]], group: int) -> frozenset[str]:
    alone = {
        name
        for name, matrices in sizes.items()
        if all(m.rows % PACK_ROWS == 0 and m.columns % group == 0 for m in matrices)
    }
    return frozenset(name for name in alone if _siblings(name) & sizes.keys() <= alone)


def _siblings(name: str) -> frozenset[str]:
    return next((group for group in _SIBLINGS if name in group), frozenset({name}))


def _values(sizes: dict[str, list[Matrix]], names: Iterable[str]) -> int:
    return sum(matrix.parameters for name in names for matrix in sizes[name])


def _gguf_type(backend: str) -> str:
    return backend.partition(":")[2] or DEFAULT_TYPE


# ---------------------------------------------------------------- packings


def _packing(
    shape: ModelShape, backend: str, stored: str | None, device: Device
) -> _Packing | None:
    """How a format holds the matrices of the blocks; None where that is not known here."""
    if backend in UNQUANTIZED:
        return _plain
    if backend == "stored":
        return _stored_packing(stored, device)
    if backend in ("int8", "nf4", "nf4:double"):
        return partial(_linear_only, pack=_BNB[backend])
    if backend in _MODULES:
        return partial(_modules_only, pack=_MODULES[backend])
    if backend in ("gptq", "gptq:int8", "awq"):
        group, names = packed_names(shape)
        pack = partial(
            _grouped,
            bits=8 if backend == "gptq:int8" else 4,
            group=group,
            order=backend != "awq",
            unpacked=device == "cpu" and backend != "gptq:int8",
        )
        return partial(_named_only, names=names, pack=pack)
    return None


def _plain(matrix: Matrix) -> int:
    return matrix.rows * matrix.columns * _BYTES_16


def _linear_only(matrix: Matrix, *, pack: _Packing) -> int:
    return pack(matrix) if matrix.linear or matrix.name in _TRANSPOSED else _plain(matrix)


def _modules_only(matrix: Matrix, *, pack: _Packing) -> int:
    return pack(matrix) if matrix.linear else _plain(matrix)


def _named_only(matrix: Matrix, *, names: frozenset[str], pack: _Packing) -> int:
    return pack(matrix) if matrix.linear and matrix.name in names else _plain(matrix)


def _int8(matrix: Matrix) -> int:
    """A byte a weight and a float32 scale a row. Source: bitsandbytes 0.50, Int8Params, SCB."""
    return matrix.rows * matrix.columns + 4 * matrix.rows


def _int8wo(matrix: Matrix) -> int:
    """A byte a weight, and a row's scale in float32 and zero point in a byte.

    Source: torchao 0.18, Int8Tensor.
    """
    return matrix.rows * matrix.columns + 5 * matrix.rows


def _hqq(matrix: Matrix) -> int:
    """Half a byte a weight, scale and zero point in 16 bits a group; whole groups alone.

    Source: hqq 0.2, HQQLinear, W_q and meta.
    """
    values = matrix.rows * matrix.columns
    if matrix.columns % _GROUP_HQQ:
        return _plain(matrix)
    return values // 2 + 2 * _BYTES_16 * values // _GROUP_HQQ


_MODULES: dict[str, _Packing] = {"int8wo": _int8wo, "hqq": _hqq}
"""Formats whose libraries replace ``nn.Linear`` alone."""


def _nf4(matrix: Matrix, *, double: bool = False) -> int:
    """Half a byte a weight, float32 maximum a block; or the maxima in bytes, nested.

    Source: bitsandbytes 0.50, functional.quantize_4bit and QuantState.
    """
    values = matrix.rows * matrix.columns
    blocks = ceil(values / _BLOCK_NF4)
    packed = ceil(values / 2) + _CODE_NF4_BYTES
    if not double:
        return packed + 4 * blocks
    return packed + blocks + 4 * ceil(blocks / _NESTED_BLOCK) + _CODE_NESTED_BYTES


_BNB: dict[str, _Packing] = {
    "int8": _int8,
    "nf4": _nf4,
    "nf4:double": partial(_nf4, double=True),
}


def _grouped(matrix: Matrix, *, bits: int, group: int, order: bool, unpacked: bool) -> int:
    """Values, zeros and 16-bit scales a group; with ``order`` an int32 group index a column.

    ``unpacked``: torch's int4 kernel for CPUs takes zeros in 16 bits, and both once more side by
    side. Source: GPTQModel 7.6, BaseQuantLinear's buffers qweight, qzeros, scales and g_idx, of
    which AWQ has no g_idx; TorchAtenLinear.transform_cpu, scales_and_zeros.
    """
    groups = ceil(matrix.columns / group) * matrix.rows
    values = matrix.rows * matrix.columns * bits // 8
    zeros = 3 * _BYTES_16 * groups if unpacked else groups * bits // 8
    return values + zeros + _BYTES_16 * groups + 4 * matrix.columns * order


def _stored_packing(method: str | None, device: Device) -> _Packing | None:
    """A checkpoint's own format: packed on a GPU, unpacked to 16 bits on a CPU."""
    if method not in ("fp8", "mxfp4"):
        return None
    if device == "cpu":
        return _plain
    return _fp8 if method == "fp8" else _mxfp4


def _fp8(matrix: Matrix) -> int:
    """A byte a weight and a float32 scale a block of 128 × 128, experts too; routers in 16 bits.

    Source: DeepSeek-V3's checkpoint, weight_scale_inv.
    """
    if not matrix.linear and "_exps" not in matrix.name:
        return _plain(matrix)
    blocks = ceil(matrix.rows / _FP8_BLOCK) * ceil(matrix.columns / _FP8_BLOCK)
    return matrix.rows * matrix.columns + 4 * blocks


def _mxfp4(matrix: Matrix) -> int:
    """Experts in half a byte a weight with a byte of scale a block of 32; all else in 16 bits.

    Source: gpt-oss's checkpoints, *_blocks and *_scales.
    """
    if "_exps" not in matrix.name:
        return _plain(matrix)
    blocks = matrix.rows * ceil(matrix.columns / _MXFP4_BLOCK)
    return matrix.rows * matrix.columns // 2 + blocks
