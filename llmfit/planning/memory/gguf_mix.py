"""The types that llama.cpp's quantiser gives each tensor, and what they come to in bytes.

    ModelShape, "q4_k_m" ─► a TypedTensor each ─► bytes of the file's tensors, bytes a step reads

``gguf_mixtures`` has the rules of each file type; here they meet a model: which of its tensors
there are, what stays unquantised, what a row takes that no block divides. Source: llama.cpp,
src/llama-quant.cpp and conversion/base.py, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llmfit.planning.memory.gguf_mixtures import (
    BLOCKS,
    FLOAT_FILE_TYPES,
    Mixture,
    Place,
    mixture_of,
)
from llmfit.shape import LOOKUPS, Attention, Matrix, ModelShape

_NARROWER: Mapping[str, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""For rows that blocks of 256 do not divide: the type with blocks of 32."""

_IN_FLOAT32 = frozenset(
    {
        "ffn_gate_inp",
        "ffn_gate_inp_shexp",
        "position_embd",
        "token_types",
        "ssm_a",
        "ssm_d",
        "ssm_conv1d",
        "shortconv.conv",
        "altup_correct_coef",
        "altup_predict_coef",
    }
)
"""Matrices that the converter keeps in float32 and the quantiser leaves alone."""

_NOT_QUANTIZED = ("altup", "laurel", "per_layer_model_proj")
"""Small matrices that stay in the 16 bits of the file that is quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedTensor:
    """A tensor of a GGUF file: ``count`` matrices (experts) of [rows, columns] in one type."""

    name: str
    """llama.cpp's, without ``blk.N.`` and ``.weight``."""
    layer: int | None
    """None outside the layers."""
    rows: int
    columns: int
    count: int
    active: int
    """Of ``count`` matrices, those that run for one token."""
    type: str

    @property
    def parameters(self) -> int:
        """Values."""
        return self.count * self.rows * self.columns

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.count * self.matrix_bytes

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one of the ``count`` matrices."""
        return self.rows * row_bytes(self.type, self.columns)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of ``columns`` values, a multiple of the type's block."""
    block = BLOCKS[kind]
    return columns // block.values * block.size_bytes


@functools.lru_cache(maxsize=256)
def tensor_types(shape: ModelShape, file_type: str) -> tuple[TypedTensor, ...] | None:
    """Every matrix of the model's GGUF file with its type, in the quantiser's order.

    Vectors are not among them: they are float32 always. None for an unknown file type.
    """
    if file_type in FLOAT_FILE_TYPES:
        kind = FLOAT_FILE_TYPES[file_type]
        return tuple(
            _typed(matrix, layer, "F32" if _in_float32(matrix) else kind)
            for matrix, layer in _matrices(shape)
        )
    mixture = mixture_of(file_type, shape.model_type)
    if mixture is None:
        return None
    chooser = _Chooser(shape, mixture)
    return tuple(
        _typed(matrix, layer, chooser.choose(matrix, layer)) for matrix, layer in _matrices(shape)
    )


def gguf_bytes(shape: ModelShape, file_type: str, *, on_gpu: bool = False) -> int | None:
    """Bytes of all tensors of the model's GGUF file, metadata and padding apart.

    ``on_gpu``: of those that are there when all layers are. llama.cpp leaves the tables of the
    input in RAM; an embedding that is the output head too is copied to the GPU as that. Factors of
    rotary embeddings, below 1 KB where a model has any, are left out. None for an unknown file
    type. Source: llama.cpp, llama_model_base::load_tensors, dev_input.
    """
    tensors = tensor_types(shape, file_type)
    if tensors is None:
        return None
    in_ram = LOOKUPS if shape.tied else LOOKUPS | {"token_embd"}
    held = (tensor for tensor in tensors if not (on_gpu and tensor.name in in_ram))
    return sum(tensor.size_bytes for tensor in held) + _vector_bytes(shape)


def gguf_read_bytes(shape: ModelShape, file_type: str, batch: int = 1) -> int | None:
    """Bytes of weights that one decode step of ``batch`` sequences reads.

    Of experts, the mean number of different ones that ``batch`` independent choices take; of an
    embedding, one row per sequence. None for an unknown file type.
    """
    tensors = tensor_types(shape, file_type)
    if tensors is None:
        return None
    read = sum(_read_bytes(tensor, batch, tied=shape.tied) for tensor in tensors)
    return round(read) + _vector_bytes(shape)


def _read_bytes(tensor: TypedTensor, batch: int, *, tied: bool) -> float:
    rows = batch * row_bytes(tensor.type, tensor.columns)
    if tensor.name == "token_embd":
        return rows + (tensor.size_bytes if tied else 0)
    if tensor.name in LOOKUPS:
        return rows
    met = tensor.count * (1 - (1 - tensor.active / tensor.count) ** batch)
    return met * tensor.matrix_bytes


def _vector_bytes(shape: ModelShape) -> int:
    return 4 * (shape.vectors + sum(layer.vectors for layer in shape.of_layers()))


def _typed(matrix: Matrix, layer: int | None, kind: str) -> TypedTensor:
    return TypedTensor(
        name=matrix.name,
        layer=layer,
        rows=matrix.rows,
        columns=matrix.columns,
        count=matrix.count,
        active=matrix.active,
        type=kind,
    )


def _matrices(shape: ModelShape) -> Iterator[tuple[Matrix, int | None]]:
    """The matrices as they stand in the file, by layer and then by name, and their layers."""
    outside = (shape.embedding, *(() if shape.tied else (shape.head,)), *shape.extra)
    for matrix in sorted(outside, key=lambda each: each.name):
        yield matrix, None
    for index, layer in enumerate(shape.of_layers()):
        stored = [part for each in layer.matrices for part in _as_stored(each, layer.attention)]
        for matrix in sorted(stored, key=lambda each: each.name):
            yield matrix, index


def _as_stored(matrix: Matrix, attention: Attention | None) -> tuple[Matrix, ...]:
    """The matrix, or its two halves where latent attention's up-projection is stored apart.

    The keys' half is transposed, a matrix for each head, so that it can be applied to queries.
    """
    if matrix.name != "attn_kv_b" or attention is None or attention.latent_dim is None:
        return (matrix,)
    rank, heads = matrix.columns, attention.heads
    plain = attention.key_dim - (attention.latent_dim - rank)
    keys = Matrix(name="attn_k_b", rows=rank, columns=plain, count=heads, active=heads)
    return keys, replace(keys, name="attn_v_b", rows=attention.value_dim, columns=rank)


def _in_float32(matrix: Matrix) -> bool:
    return matrix.rows * matrix.count == 1 or matrix.name in _IN_FLOAT32


class _Chooser:
    """Chooses tensor by tensor, in the file's order: some rules count what went before."""

    def __init__(self, shape: ModelShape, mixture: Mixture) -> None:
        self.mixture = mixture
        self.falcon = shape.model_type == "falcon"
        self.tied = shape.tied
        self.layers = len(shape.layers)
        self.experts = _experts(shape)
        self.queries_per_key = _queries_per_key(shape)
        self.of_values = sum(matrix.name in _VALUES for matrix, _ in _matrices(shape))
        self.large_llama = _large_llama(shape)
        self.values_seen = 0
        self.downs_seen = 0

    def choose(self, matrix: Matrix, layer: int | None) -> str:
        """The tensor's type."""
        if _in_float32(matrix):
            return "F32"
        if matrix.name.startswith(_NOT_QUANTIZED):
            return "F16"
        return _fitting(self._wanted(matrix, layer), matrix.columns)

    def _wanted(self, matrix: Matrix, layer: int | None) -> str:
        mixture, name = self.mixture, matrix.name
        base = mixture.base
        if name == "output" or (self.tied and name in _EMBEDDINGS):
            fits = matrix.columns % BLOCKS[base].values == 0
            return mixture.output if fits else "Q8_0"
        if mixture.stacked is not None:
            return mixture.stacked if matrix.count > 1 else base
        if name in _EMBEDDINGS:
            return mixture.embedding or base
        if name in _VALUES:
            return self._of_values()
        if name == "attn_k":
            return self._of_keys()
        if name == "attn_q":
            return mixture.queries or base
        if name == "attn_output":
            eight = self.experts == 8 and not self.falcon
            return (mixture.eight_experts_projection if eight else mixture.projection) or base
        if name.startswith("ffn_down"):
            return self._of_down(layer)
        if name.startswith(("ffn_gate", "ffn_up")):
            return mixture.gate_and_up(self._place(layer or 0, self.layers)) or base
        return base

    def _place(self, index: int, of: int) -> Place:
        return Place(index=index, of=of, queries_per_key=self.queries_per_key, experts=self.experts)

    def _of_values(self) -> str:
        place = self._place(self.values_seen, self.of_values)
        self.values_seen += 1
        kind = self.mixture.values(place) or self.mixture.base
        if self.mixture.below_three_bits:
            return kind
        if self.experts == 8:
            return "Q8_0"
        return "Q5_K" if self.large_llama and kind in ("Q3_K", "Q4_K") else kind

    def _of_keys(self) -> str:
        if self.experts == 8:
            return "Q4_K" if self.mixture.below_three_bits else "Q8_0"
        return self.mixture.keys or self.mixture.base

    def _of_down(self, layer: int | None) -> str:
        # A model of experts goes by the layer's number, since it has several in a layer.
        by_layer = self.experts > 1 and not self.mixture.below_three_bits
        index = layer if by_layer and layer is not None else self.downs_seen
        self.downs_seen += 1
        return self.mixture.down(self._place(index, self.layers)) or self.mixture.base


_EMBEDDINGS = frozenset({"token_embd", "per_layer_token_embd"})
_VALUES = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})


def _fitting(kind: str, columns: int) -> str:
    """``kind``, or what the quantiser takes where its blocks do not divide a row."""
    if columns % BLOCKS[kind].values == 0:
        return kind
    narrower = _NARROWER.get(kind, kind)
    return narrower if columns % BLOCKS[narrower].values == 0 else "F16"


def _experts(shape: ModelShape) -> int:
    """Routed experts of a layer; 0 for a dense model."""
    return max(
        (
            matrix.count
            for kind in shape.kinds
            for matrix in kind.matrices
            if matrix.name.endswith("_exps")
        ),
        default=0,
    )


def _queries_per_key(shape: ModelShape) -> int:
    """Of the first layer, as llama.cpp asks; 0 where that has no attention.

    Files of Qwen 3 Next tell one number for all layers.
    """
    layers = shape.of_layers()
    asked = layers if shape.model_type.startswith("qwen3_") else layers[:1]
    first = next((layer.attention for layer in asked if layer.attention is not None), None)
    if first is None:
        return 0
    return first.heads // (1 if first.latent_dim is not None else first.kv_heads)


def _large_llama(shape: ModelShape) -> bool:
    """Whether llama.cpp takes the model for "the 70B", whose value matrices get more bits."""
    if len(shape.layers) != 80:
        return False
    if shape.model_type in ("llama", "mistral", "mixtral"):
        return _queries_per_key(shape) != 1
    return shape.model_type in ("qwen2", "nemotron-nas", "olmo")
