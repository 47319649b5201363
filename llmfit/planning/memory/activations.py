"""The working set of prefill and decode: what is alive at once beside weights and KV cache.

transformers runs a prompt in one or more passes. Of a pass over N tokens a layer holds, in 16 bits
a value and at the fullest of three moments:

    attention    3 × hidden, queries, keys, values; eager attention's scores N × context;
                 keys and values repeated for every query head where a mask rules out flash
    a product    what a format unpacks or accumulates for one matrix
    the MLP      4 × hidden, and 3 × width for activated gate, up and their product

The hidden states are the embeddings, the layer's input, the residual and the normed input. Only
the last token has logits. llama.cpp computes at most a physical batch at once, in 32 bits.

Nothing is fitted. Source: transformers 5.23, modeling_qwen2, sdpa_attention and masking_utils, as
torch's allocator sees them run (the tests do).
"""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.planning.memory.kv_cache import is_llama_cpp, llama_cpp_cells
from llmfit.planning.memory.weights import TILE_COLUMNS
from llmfit.records import Device, Workload
from llmfit.shape import Attention, LayerShape, Matrix, ModelShape

LLAMA_CPP_CHUNK = 512
"""Prompt tokens that llama.cpp computes at once where no chunk is asked for: its physical batch."""

EAGER_ONLY = frozenset({"gemma2", "gpt_oss", "vaultgemma"})
"""Model types without fused attention in transformers: soft caps and sinks suit no kernel of it."""

_BYTES_16 = 2
_BYTES_32 = 4
_IDS_BYTES = 8

_EAGER_SCORE_BYTES = 2 + 4 + 4
"""Per score: product in 16 bits, its copy in 32 bits, the softmax of that. Source: PyTorch, aten/
native/SoftMax.cpp, which converts bfloat16 before it starts."""
_MATH_SCORE_BYTES = 4 + 4 + 1
"""Per score: product and softmax in 32 bits, and a flag, in the plain attention that a CPU falls
back to where keys and values have heads of unlike size. Its mask has 32 bits too.
Source: PyTorch, _scaled_dot_product_attention_math."""
_KEPT_SCORE_BYTES = 2
"""Per score: the weights that a layer's forward keeps until it ends."""
_EAGER_MASK_BYTES = 2
_FUSED_MASK_BYTES = 1 + 2
"""Per pair of tokens: the boolean mask, and the additive one that the kernel makes of it."""

_INT8_VALUE_BYTES = {"cuda": 4 + 2 + 2, "cpu": 4 + 2 + 2}
"""Per value of a product: int32, then float16 and bfloat16 of it on a GPU; int32, bfloat16 of it
and the same with the outliers added on a CPU, where llmfit's kernels are.
Source: bitsandbytes 0.50, int8_mm_dequant, backend cuda; kernels/cpu.cpp."""
_FP8_INPUT_BYTES = 3 * 4 + 1
"""Per value of an input that is rounded: it, scaled and clamped, in 32 bits each, and the outcome.
Source: torchao 0.18, _quantize_affine_float8."""
_HQQ_COPIES = 2
"""Of a weight in 16 bits while it is unpacked: then less the zero point and times the scale, each
a new tensor. Source: hqq 0.2, Quantizer.dequantize."""
_NF4_DIRECT_TOKENS = 4
"""Up to so many tokens are multiplied straight from packed weights on a GPU.
Source: bitsandbytes 0.50, backends/cuda/ops.py, _GEMM_4BIT_CUSTOM_FLOOR_M."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """``new`` tokens of each of ``batch`` sequences that run at once and see ``context`` tokens."""

    batch: int
    new: int
    context: int

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return self.batch * self.new

    @property
    def pairs(self) -> int:
        """Pairs of a new token and a token that it could see."""
        return self.tokens * self.context


def activation_bytes(
    shape: ModelShape,
    backend: str,
    workload: Workload,
    *,
    device: Device,
    eager: bool,
) -> int:
    """Bytes alive beside weights and cache at the fullest moment of prefill and decode.

    ``eager`` says that attention is not fused. The workspace of the matrix library is not counted.
    """
    if is_llama_cpp(backend):
        return _llama_cpp_bytes(shape, workload)
    passes = (*prefill_passes(workload), decode_pass(backend, workload))
    return max(
        pass_bytes(shape, backend, each, device=device, eager=eager, prompt=workload.prompt_tokens)
        for each in passes
    )


def prefill_passes(workload: Workload) -> tuple[Pass, ...]:
    """The passes over the prompt that can be the fullest: the last whole chunk, and the rest."""
    prompt, batch = workload.prompt_tokens, workload.batch
    chunk = min(workload.prefill_chunk or prompt, prompt)
    rest = prompt % chunk
    whole = Pass(batch=batch, new=chunk, context=prompt - rest)
    return (whole, Pass(batch=batch, new=rest, context=prompt)) if rest else (whole,)


def decode_pass(backend: str, workload: Workload) -> Pass:
    """The last decode step; a compiled one sees the whole buffer."""
    context = workload.prompt_tokens + workload.new_tokens
    return Pass(
        batch=workload.batch, new=1, context=context if backend == "compiled" else context - 1
    )


def pass_bytes(
    shape: ModelShape, backend: str, run: Pass, *, device: Device, eager: bool, prompt: int
) -> int:
    """Bytes that one pass of transformers' code holds at its fullest, prompt ids included."""
    kernel = _Kernel(eager=eager, compiled=backend == "compiled" and run.new == 1)
    layers = max(
        max(
            _attention_bytes(shape, kind, backend, run, device, kernel),
            _mlp_bytes(shape, kind, backend, run, device, kernel),
        )
        for kind in shape.kinds
    )
    masks = sum(run.pairs * (_EAGER_MASK_BYTES if eager else 1) for _ in _masks(shape, run, kernel))
    logits = run.batch * shape.vocab_size * _BYTES_16
    # The logits of a pass live on until the next one's take their place.
    last = _stream(shape, run, 3) + logits
    return max(layers, last) + masks + _ids(shape, run, prompt) + logits * (run.context > run.new)


# ---------------------------------------------------------------- one layer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    """How attention runs."""

    eager: bool
    compiled: bool

    def masked(self, attention: Attention, run: Pass) -> bool:
        """Whether a mask is made for this layer in this pass.

        Fused attention needs none for a whole prompt, nor for one token that sees everything.
        """
        if self.eager or self.compiled:
            return True
        beyond = attention.window is not None and run.context >= attention.window
        return beyond or 1 < run.new < run.context

    def repeats(self, attention: Attention, run: Pass) -> bool:
        """Whether keys and values are repeated for every query head."""
        if attention.heads == attention.kv_heads:
            return False
        if self.eager or self.compiled:
            return True
        if attention.key_dim != attention.value_dim or attention.key_dim > 256:
            return run.new > 1
        return run.new > 1 and self.masked(attention, run)


def _attention_bytes(
    shape: ModelShape,
    kind: LayerShape,
    backend: str,
    run: Pass,
    device: Device,
    kernel: _Kernel,
) -> int:
    held = _stream(shape, run, 3)
    products = _products(kind, backend, run, device, feed_forward=False)
    rotated = run.tokens * kind.attention_values * _BYTES_16
    normed = run.tokens * shape.hidden_size * 2 * _BYTES_32  # a norm's input and its square
    fullest = max(products, rotated, normed)
    if kind.attention is not None:
        fullest = max(fullest, _scoring_bytes(kind, kind.attention, run, device, kernel))
    return held + fullest


def _scoring_bytes(
    kind: LayerShape, attention: Attention, run: Pass, device: Device, kernel: _Kernel
) -> int:
    """Queries, what is made of keys and values, and scores or output."""
    rows = {matrix.name: matrix.rows for matrix in kind.matrices}
    queries = run.tokens * attention.heads * attention.key_dim
    values = queries + run.tokens * rows.get("attn_qkv", 0)  # a fused product lives on
    if attention.latent_dim is not None:
        # Unrotated queries and new latents live on; the latents of all tokens are expanded.
        values += queries + run.tokens * attention.latent_dim
        expanded = rows.get("attn_kv_b", 0) + attention.heads * attention.key_dim
        values += run.batch * run.context * expanded
    elif kernel.repeats(attention, run):
        head = attention.key_dim + attention.value_dim
        values += run.batch * run.context * attention.heads * head
    if kernel.eager:
        scores = attention.heads * run.pairs * _EAGER_SCORE_BYTES
        return values * _BYTES_16 + scores
    if device == "cpu" and attention.key_dim != attention.value_dim:
        keys_and_values = run.batch * run.context * attention.heads
        keys_and_values *= attention.key_dim + attention.value_dim
        scores = run.pairs * (attention.heads * _MATH_SCORE_BYTES + _BYTES_32)
        return values * _BYTES_16 + (2 * queries + keys_and_values) * _BYTES_32 + scores
    output = run.tokens * attention.heads * attention.value_dim
    mask = run.pairs * (_FUSED_MASK_BYTES - 1) if kernel.masked(attention, run) else 0
    return (values + output) * _BYTES_16 + mask


def _mlp_bytes(
    shape: ModelShape,
    kind: LayerShape,
    backend: str,
    run: Pass,
    device: Device,
    kernel: _Kernel,
) -> int:
    held = _stream(shape, run, 4)
    if kernel.eager and kind.attention is not None:
        held += kind.attention.heads * run.pairs * _KEPT_SCORE_BYTES
    product = _products(kind, backend, run, device, feed_forward=True)
    return held + max(run.tokens * kind.mlp_values * _BYTES_16, product)


def _products(
    kind: LayerShape, backend: str, run: Pass, device: Device, *, feed_forward: bool
) -> int:
    """Bytes at the fullest product of the MLP, or of the rest of the layer.

    That of ``up`` in a gated MLP, during which the activated gate waits.
    """
    matrices = [m for m in kind.matrices if m.linear and m.name.startswith("ffn_") == feed_forward]
    waiting = max((m.rows for m in matrices if m.name == "ffn_gate"), default=0)
    return max(
        (
            run.tokens * (waiting if m.name == "ffn_up" else 0) * _BYTES_16
            + _product_bytes(m, backend, run, device)
            for m in matrices
        ),
        default=0,
    )


def _product_bytes(matrix: Matrix, backend: str, run: Pass, device: Device) -> int:
    """Bytes of one product: its outcome, and what the format's kernel needs for it."""
    outcome, weights = run.tokens * matrix.rows, matrix.rows * matrix.columns
    if backend == "int8":
        general = weights * _BYTES_32 if device == "cpu" else 0  # without AVX-512, all in float32
        packed = run.tokens * matrix.columns  # the inputs in int8
        return packed + max(outcome * _INT8_VALUE_BYTES[device], general + 2 * outcome * _BYTES_32)
    if backend.partition(":")[0] == "nf4" and (device == "cpu" or run.tokens > _NF4_DIRECT_TOKENS):
        return (outcome + weights) * _BYTES_16
    if backend == "fp8":
        values = run.tokens * matrix.columns
        return max(_FP8_INPUT_BYTES * values, values + outcome * _BYTES_16)
    if backend == "int4wo":
        padded = -(-matrix.columns // TILE_COLUMNS) * TILE_COLUMNS
        copied = padded if padded != matrix.columns else 0
        return (outcome + run.tokens * copied) * _BYTES_16
    if backend == "hqq":
        return (outcome + _HQQ_COPIES * weights) * _BYTES_16
    return outcome * _BYTES_16


# ---------------------------------------------------------------- around the layers


def _stream(shape: ModelShape, run: Pass, tensors: int) -> int:
    """``tensors`` of the hidden size, all tokens."""
    return tensors * run.tokens * shape.hidden_size * _BYTES_16


def _ids(shape: ModelShape, run: Pass, prompt: int) -> int:
    """The prompt's ids, positions, and the rotary tables, which all sequences share."""
    head = max((k.attention.key_dim for k in shape.kinds if k.attention is not None), default=0)
    return _IDS_BYTES * (run.batch * prompt + run.new) + run.new * 2 * head * _BYTES_16


def _masks(shape: ModelShape, run: Pass, kernel: _Kernel) -> frozenset[int | None]:
    """The different masks of a pass, by their window; all live while its layers run."""
    attentions = [kind.attention for kind in shape.kinds if kind.attention is not None]
    return frozenset(each.window for each in attentions if kernel.masked(each, run))


# ---------------------------------------------------------------- llama.cpp


def _llama_cpp_bytes(shape: ModelShape, workload: Workload) -> int:
    """llama.cpp's graph over one physical batch, the packed inputs of its products, the logits.

    Gate, up and product of every expert that runs and four hidden states in 32 bits; flash
    attention's mask in 16. Source: the compute buffer that llama.cpp reports (a test reads it);
    ggml-cpu.c, ggml_graph_plan, for the inputs in blocks of 8 bits.
    """
    batch, prompts = workload.batch, workload.batch * workload.prompt_tokens
    tokens = max(batch, min(workload.prefill_chunk or LLAMA_CPP_CHUNK, prompts))
    cells = llama_cpp_cells(workload.prompt_tokens + workload.new_tokens)
    width = max((_width(kind) for kind in shape.kinds), default=0)
    graph = tokens * ((4 * shape.hidden_size + 3 * width) * _BYTES_32 + cells * _BYTES_16)
    packed = tokens * width * 34 // 32
    return graph + packed + batch * shape.vocab_size * _BYTES_32


def _width(kind: LayerShape) -> int:
    """Outputs of all matrices that a token passes on its way up in the MLP."""
    return max(
        (m.active * m.rows for m in kind.matrices if m.name in ("ffn_up", "ffn_up_exps")),
        default=0,
    )
