"""A GGUF file of random weights, written straight in a file type's mixture.

    config ─► ``GgufShape`` ──────────────────► metadata ─┐
    ModelShape ─► ``tensor_types`` ─► name, type, size ───┼─► GGUF
    noise, quantised once per type by llama.cpp ─► bytes ─┘

No copy in 16 bits exists: for each type and row length a small block of noise is quantised, and
repeated over the tensors. Vectors are what they are in a fresh model: norms 1, biases 0.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmfit.errors import ModelLoadError
from llmfit.planning.memory.gguf_mix import TypedTensor, row_bytes, tensor_types
from llmfit.planning.memory.gguf_mixtures import BLOCKS
from llmfit.quantize.gguf import FILE_TYPES
from llmfit.quantize.gguf_convert import NOTES_KEY, write_metadata
from llmfit.quantize.gguf_rope import rope_tensors
from llmfit.quantize.gguf_shape import GgufShape, refuse, shape_from_config
from llmfit.shape import ModelShape

if TYPE_CHECKING:
    from gguf import GGUFWriter

_TILE_BYTES = 8_000_000
"""What is written at once; one such tile is held for each type and row length."""
_BLOCKS_OF_NOISE = {1: 262_139, 32: 8_191, 256: 1_021}
"""Different blocks of noise by values in a block: about 2¹⁸ values. Primes, so that no row equals
another before as many rows have passed, whatever the rows' length."""
_STEP = 389
"""Blocks by which each tensor begins further on in the noise than the one before."""
_SPREAD = 0.5
"""Standard deviation of a layer's outputs for inputs of 1: no activation grows with the depth."""
_QUANTIZATION_VERSION = 2
"""Source: ggml.h, GGML_QNT_VERSION."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTensor:
    """A tensor to be written."""

    name: str
    dims: tuple[int, ...]
    """Outermost first; rows are the last."""
    type: str
    constant: float | None = None
    """The value of all its elements; None for noise."""

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.dims[:-1]) * row_bytes(self.type, self.dims[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticFile:
    """What a file of random weights will hold."""

    about: GgufShape
    file_type: str
    tensors: tuple[SyntheticTensor, ...]
    """Matrices and vectors; factors of the rotary embedding, which are not random, are apart."""


def plan_synthetic(
    config: Mapping[str, Any], shape: ModelShape, *, architecture: str, file_type: str
) -> SyntheticFile:
    """The tensors that llama.cpp's ``file_type`` of this model has.

    ``config`` is as config.json has it, ``shape`` the same model layer by layer, ``architecture``
    the class name. Raises ModelLoadError for an architecture or a setting that llmfit has no GGUF
    for.
    """
    source = f"the config of {architecture}"
    about = shape_from_config(config, architecture=architecture, source=source)
    tensors = (*_matrices(shape, file_type), *_vectors(config, about, shape))
    _require_complete(about, tensors)
    return SyntheticFile(about=about, file_type=file_type, tensors=tensors)


def write_synthetic(
    planned: SyntheticFile,
    target: Path,
    *,
    name: str,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the planned file to ``target``, with the model's number of tokens that have no text.

    Holds below 100 MB beside what torch and NumPy take. ``seed`` determines every byte. Raises
    OSError where the disk refuses.
    """
    import gguf

    about = planned.about
    factors = {name: values.numpy().tobytes() for name, values in rope_tensors(about).items()}
    writer = gguf.GGUFWriter(path=target, arch=about.architecture.name)
    try:
        write_metadata(writer, about, name=name, file_type=FILE_TYPES[planned.file_type])
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        writer.add_tokenizer_model("none")
        writer.add_array(NOTES_KEY, about.notes)
        for tensor in planned.tensors:
            _announce(writer, tensor)
        for factor, payload in factors.items():
            dims = (len(payload) // BLOCKS["F32"].size_bytes,)
            _announce(writer, SyntheticTensor(name=factor, dims=dims, type="F32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    # gguf's writer takes whole tensors; of the largest, a tile at a time is enough.
    with target.open("ab") as stream:
        _write_tensors(stream, planned, seed, progress, alignment=writer.data_alignment)
        for payload in factors.values():
            stream.write(payload)
            _pad(stream, writer.data_alignment)


def _write_tensors(
    stream: BinaryIO,
    planned: SyntheticFile,
    seed: int,
    progress: Callable[[str, int, int], None],
    *,
    alignment: int,
) -> None:
    noise = _Noise(seed=seed)
    _pad(stream, alignment)
    for done, tensor in enumerate(planned.tensors, start=1):
        noise.write(stream, tensor)
        _pad(stream, alignment)
        progress("make", done, len(planned.tensors))


# ---------------------------------------------------------------- which tensors


def _matrices(shape: ModelShape, file_type: str) -> Iterator[SyntheticTensor]:
    for tensor in tensor_types(shape, file_type) or ():
        experts = () if tensor.count == 1 else (tensor.count,)
        dims = (*experts, tensor.rows, tensor.columns)
        yield SyntheticTensor(name=_full_name(tensor), dims=dims, type=tensor.type)


def _full_name(tensor: TypedTensor) -> str:
    layer = "" if tensor.layer is None else f"blk.{tensor.layer}."
    return f"{layer}{tensor.name}.weight"


def _vectors(
    config: Mapping[str, Any], about: GgufShape, shape: ModelShape
) -> Iterator[SyntheticTensor]:
    """Norms and biases. Raises ModelLoadError where they are not as many as the model has."""
    yield SyntheticTensor(name="output_norm.weight", dims=(about.hidden,), type="F32", constant=1.0)
    norms = [part for part in about.architecture.layer_tensors if part.endswith("_norm")]
    for index, layer in enumerate(shape.of_layers()):
        biased = _biased(config, about)
        lengths = {
            **{f"{part}.weight": _norm_length(part, about) for part in norms},
            **{f"{m.name}.bias": m.rows for m in layer.matrices if m.name in biased},
        }
        refuse(
            sum(lengths.values()) != layer.vectors,
            f"{layer.vectors} values of norms and biases in layer {index}, where "
            f"{sum(lengths.values())} are known",
        )
        for name, length in lengths.items():
            constant = 1.0 if name.endswith(".weight") else 0.0
            yield SyntheticTensor(
                name=f"blk.{index}.{name}", dims=(length,), type="F32", constant=constant
            )


def _norm_length(part: str, about: GgufShape) -> int:
    return about.head_dim if part in ("attn_q_norm", "attn_k_norm") else about.hidden


def _biased(config: Mapping[str, Any], about: GgufShape) -> frozenset[str]:
    """The matrices of a layer that have a bias."""
    names: set[str] = set()
    if about.architecture.name == "qwen2":  # by its code, whatever the config says
        names |= {"attn_q", "attn_k", "attn_v"}
    elif config.get("attention_bias"):
        refuse(not about.architecture.output_bias, "a bias of the attention's output")
        names |= {"attn_q", "attn_k", "attn_v", "attn_output"}
    if config.get("mlp_bias"):
        names |= {"ffn_gate", "ffn_up", "ffn_down"}
    return frozenset(names)


def _require_complete(about: GgufShape, tensors: Sequence[SyntheticTensor]) -> None:
    """Every tensor that llama.cpp asks for is there, and no layer has a matrix of another name."""
    present = {tensor.name for tensor in tensors if tensor.name.endswith(".weight")}
    parts = about.architecture.layer_tensors
    expected = {f"blk.{layer}.{part}.weight" for layer in range(about.layers) for part in parts}
    expected |= {"token_embd.weight", "output_norm.weight"}
    expected |= set() if about.tied else {"output.weight"}
    if odd := present ^ expected:
        raise ModelLoadError(
            f"the shape of this model and llama.cpp's {about.architecture.name} differ in "
            f"{len(odd)} tensors, among them {min(odd)}."
        )


# ---------------------------------------------------------------- their bytes


def _announce(writer: GGUFWriter, tensor: SyntheticTensor) -> None:
    import gguf
    import numpy as np

    # Of these, raw_dtype goes into the file; float32 keeps the dimensions as they are given.
    kind = gguf.GGMLQuantizationType[tensor.type]
    writer.add_tensor_info(
        tensor.name, tensor.dims, np.dtype(np.float32), tensor.size_bytes, raw_dtype=kind
    )


def _pad(stream: BinaryIO, alignment: int) -> None:
    stream.write(bytes(-stream.tell() % alignment))


class _Noise:
    """Random blocks of each type, repeated over tensor after tensor."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._tiles: dict[tuple[str, int], bytes] = {}
        self._begun = 0

    def write(self, stream: BinaryIO, tensor: SyntheticTensor) -> None:
        """Append the tensor's bytes."""
        if tensor.constant is not None:
            stream.write(_constants(tensor.constant, math.prod(tensor.dims)))
            return
        block = BLOCKS[tensor.type]
        tile = memoryview(self._tile(tensor.type, tensor.dims[-1]))
        skipped = self._begun * _STEP % _BLOCKS_OF_NOISE[block.values] * block.size_bytes
        self._begun += 1
        left = tensor.size_bytes
        while left:
            # A tile holds the noise a whole number of times, so the next one goes on from here.
            left -= stream.write(tile[skipped : skipped + left])
            skipped = 0

    def _tile(self, kind: str, columns: int) -> bytes:
        """Noise for rows of ``columns`` values, as often as fits a tile."""
        key = (kind, columns)
        if key not in self._tiles:
            blocks = _quantized_noise(kind, spread=_SPREAD / math.sqrt(columns), seed=self._seed)
            self._tiles[key] = blocks * (_TILE_BYTES // len(blocks) + 1)
        return self._tiles[key]


def _constants(value: float, count: int) -> bytes:
    import numpy as np

    return np.full(count, value, dtype=np.float32).tobytes()


def _quantized_noise(kind: str, *, spread: float, seed: int) -> bytes:
    """Blocks of normal values with standard deviation ``spread``, as llama.cpp stores them."""
    import gguf
    import numpy as np

    block = BLOCKS[kind]
    count = _BLOCKS_OF_NOISE[block.values]
    values = np.random.default_rng(seed).normal(scale=spread, size=count * block.values)
    source = values.astype(np.float32)
    stored = np.empty(count * block.size_bytes, dtype=np.uint8)
    written = _quantizer()(
        int(gguf.GGMLQuantizationType[kind]),
        source.ctypes.data,
        stored.ctypes.data,
        0,
        count,
        block.values,
        None,
    )
    if written != stored.nbytes:
        raise ModelLoadError(
            f"llama.cpp stores {source.size} values of {kind} in {written} bytes, "
            f"{stored.nbytes} were expected."
        )
    return stored.tobytes()


@functools.cache
def _quantizer() -> Any:
    """``ggml_quantize_chunk``. Source: ggml.h."""
    from llama_cpp._ggml import libggml

    function = libggml.ggml_quantize_chunk
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.restype = ctypes.c_size_t
    function.argtypes = (ctypes.c_int, pointer, pointer, number, number, number, pointer)
    return function
