"""Bytes of a model's weights in each format, from its shape.

    format            linear layers of the blocks               everything else
    bf16, sdpa, vllm  2 bytes a weight                          2 bytes
    int8              1 byte, a float32 scale a row             2 bytes
    nf4               half a byte, statistics a block of 64     2 bytes
    gptq, awq         half a byte, scale and zero a group       2 bytes
    int8wo            1 byte, scale and zero a row              2 bytes
    int4wo            half a byte, scale and zero a group       2 bytes
    fp8               1 byte, a float32 scale a row             2 bytes
    hqq               half a byte, scale and zero a group       2 bytes
    gguf:TYPE         a type for every tensor                   the same
    gguf-gpu:TYPE     the same                                  the same; tables read by rows in RAM

``onnx`` is not among them: onnxruntime packs the matrices anew as it loads, and its peak was 491 MB
for files of 154 MB, so the files' bytes tell nothing.

Everything else is embeddings, output head, norms, biases, routers, and experts that transformers
holds in one fused parameter, which no library here replaces. ``gguf_mix`` knows GGUF, ``split``
what of this lies on which of several GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil

from llmfit.planning.memory.gguf_mix import gguf_bytes, gguf_read_bytes
from llmfit.planning.memory.gguf_mixtures import DEFAULT_TYPE
from llmfit.planning.memory.kv_cache import is_llama_cpp
from llmfit.records import Device
from llmfit.shape import LOOKUPS, LayerShape, Matrix, ModelShape

UNQUANTIZED = frozenset({"bf16", "sdpa", "compiled", "offload", "vllm"})
"""Backends that keep every weight in 16 bits, as vLLM does unless it is given a quantised model."""

_ON_GPUS_ALONE = frozenset({"int4wo", "fp8", "gguf-gpu", "vllm"})
"""Backends that have no bytes on a CPU, where they do not run."""

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
_GROUP_INT4WO = 128
_TILE_ROWS, TILE_COLUMNS = 8, 1024
"""What torchao pads a matrix to in whole for tinygemm's tiles.
Source: torchao 0.18, Int4TilePackedTo4dTensor.from_hp."""
_FP8_STEP = 16
"""Rows and columns of a matrix that FP8 products take come in multiples of this.
Source: torchao 0.18, _fp8_mm_compat."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightParts:
    """Bytes of the weights by where they stand in a model, in the order of its modules."""

    embedding: int
    extra: int
    """Further matrices before the layers: learned positions, projections."""
    layers: tuple[int, ...]
    last: int
    """Vectors outside the layers: the last norm, a bias of the head."""
    head: int
    """0 where the head is the embedding."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.embedding + self.extra + sum(self.layers) + self.last + self.head


@lru_cache(maxsize=64)  # the search for the largest context asks again and again
def weights_bytes(
    shape: ModelShape, backend: str, *, stored: str | None = None, device: Device = "cuda"
) -> int | None:
    """Bytes of all weights as the format holds them, or None where its layout is not known here.

    ``backend`` is a backend's id, or for planning alone ``gptq:int8`` and ``nf4:double`` (double
    quantisation). ``stored`` is the checkpoint's own method, ``device`` where it runs; None, too,
    where the format does not run there.
    """
    if not _runs_on(device, backend):
        return None
    if is_llama_cpp(backend):
        on_gpu = backend.partition(":")[0] == "gguf-gpu"
        return gguf_bytes(shape, _gguf_type(backend), on_gpu=on_gpu)
    parts = weight_parts(shape, backend, stored=stored, device=device)
    return None if parts is None else parts.total


def weight_parts(
    shape: ModelShape, backend: str, *, stored: str | None = None, device: Device = "cuda"
) -> WeightParts | None:
    """The bytes that ``weights_bytes`` sums, by part; None where its layout is not known here.

    None for GGUF, too, which is no model of transformers' modules.
    """
    packing = _packing(shape, backend, stored, device)
    return None if packing is None else _parts(shape, packing)


def placed_parts(shape: ModelShape, backend: str) -> WeightParts | None:
    """What transformers takes the weights for while it places them on several GPUs.

    Of bitsandbytes' layers that is their codes alone, without the statistics. Source: transformers
    5.23, quantizers/base.py, param_element_size.
    """
    bits = _CODE_BITS.get(backend)
    if bits is None:
        return weight_parts(shape, backend)
    return _parts(shape, partial(_linear_only, pack=partial(_codes, bits=bits)))


def _parts(shape: ModelShape, packing: _Packing) -> WeightParts:
    kinds = [_layer_bytes(kind, packing) for kind in shape.kinds]
    return WeightParts(
        embedding=shape.embedding.parameters * _BYTES_16,
        extra=sum(matrix.parameters for matrix in shape.extra) * _BYTES_16,
        layers=tuple(kinds[index] for index in shape.layers),
        last=shape.vectors * _BYTES_16,
        head=0 if shape.tied else shape.head.parameters * _BYTES_16,
    )


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
    embedding and of tables like it a row a sequence; the output head whole, also where it is the
    embedding.
    """
    if not _runs_on(device, backend):
        return None
    if is_llama_cpp(backend):
        return gguf_read_bytes(shape, _gguf_type(backend), batch)
    packing = _packing(shape, backend, stored, device)
    if packing is None:
        return None
    layers = sum(
        _layer_bytes(layer, packing, partial(expected_copies, batch=batch))
        for layer in shape.of_layers()
    )
    head = shape.head.parameters + shape.vectors
    whole = sum(m.parameters for m in shape.extra if m.name not in LOOKUPS)
    rows = shape.hidden_size + sum(m.columns for m in shape.extra if m.name in LOOKUPS)
    return round(layers + _BYTES_16 * (head + whole + batch * rows))


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
    if name in UNQUANTIZED or name == "stored" or is_llama_cpp(backend):
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


def _runs_on(device: Device, backend: str) -> bool:
    return device == "cuda" or backend.partition(":")[0] not in _ON_GPUS_ALONE


def _gguf_type(backend: str) -> str:
    return backend.partition(":")[2] or DEFAULT_TYPE


# ---------------------------------------------------------------- packings


def _packing(
    shape: ModelShape, backend: str, stored: str | None, device: Device
) -> _Packing | None:
    """How a format holds the matrices of the blocks; None where that is not known here."""
    if not _runs_on(device, backend):
        return None
    if backend == "vllm" and stored is not None:  # repacked for kernels of its own
        return None
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


def _int4wo(matrix: Matrix) -> int:
    """Half a byte a weight, scale and zero point in 16 bits a group, padded to whole tiles.

    Source: torchao 0.18, Int4TilePackedTo4dTensor, qdata and scale_and_zero.
    """
    if matrix.columns % _GROUP_INT4WO:
        return _plain(matrix)
    rows = ceil(matrix.rows / _TILE_ROWS) * _TILE_ROWS
    values = rows * ceil(matrix.columns / TILE_COLUMNS) * TILE_COLUMNS
    return values // 2 + 2 * _BYTES_16 * values // _GROUP_INT4WO


def _fp8_rows(matrix: Matrix) -> int:
    """A byte a weight and a float32 scale a row. Source: torchao 0.18, Float8Tensor, PerRow."""
    if matrix.rows % _FP8_STEP or matrix.columns % _FP8_STEP:
        return _plain(matrix)
    return matrix.rows * matrix.columns + 4 * matrix.rows


_MODULES: dict[str, _Packing] = {
    "int8wo": _int8wo,
    "int4wo": _int4wo,
    "fp8": _fp8_rows,
    "hqq": _hqq,
}
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
_CODE_BITS = {"int8": 8, "nf4": 4, "nf4:double": 4}


def _codes(matrix: Matrix, *, bits: int) -> int:
    """The codes alone."""
    return matrix.rows * matrix.columns * bits // 8


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
