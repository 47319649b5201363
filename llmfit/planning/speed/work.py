"""What decode and prefill ask of the hardware: bytes to move, arithmetic, layers to start.

    decode step   reads every weight that the token meets, and the KV cache; arithmetic is small
    prefill       the same weights serve all tokens of a pass; arithmetic is what counts

Counted from a model's shape alone, nothing here knows how fast anything is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from llmfit.planning.memory.activations import LLAMA_CPP_CHUNK
from llmfit.planning.memory.kv_cache import is_llama_cpp, kv_read_bytes
from llmfit.planning.memory.weights import weights_read_bytes
from llmfit.records import Device, KvCacheDtype, ModelSpec, Workload
from llmfit.shape import LayerShape, ModelShape

_EAGER = "bf16"
"""The row with plain attention, of products and a softmax in memory."""
_UNPACKING = frozenset({"nf4"})
"""Formats whose kernels multiply one token straight from the packed weights, and unpack them to
16 bits before a product of more. Source: bitsandbytes, autograd/_functions.py, matmul_4bit."""
_UNPACKED_BYTES = 4
"""Per weight: 16 bits written, then read by the product."""
_UNPACKING_STARTS = 1.5
"""A layer's starts with an unpacking kernel before each product, against those without. Source:
bitsandbytes, benchmarking/README.md, H100: 33.1 ms at batch 1, 47.6 at batch 8, launches both."""
_EXPANSION = "attn_kv_b"
"""The matrix that makes keys and values of a latent."""
_EAGER_SCORE_BYTES = 20
"""Per score of eager attention: product written 2, mask added 4, softmax to 32 bits 6, back to 16
bits 6, read by the second product 2. Source: transformers, eager_attention_forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one decode step of the whole batch, or one prefill of it, takes."""

    tokens: int
    """What the rate counts: new tokens of a step, prompt tokens of a prefill."""
    read_bytes: float
    """The least that has to be read: weights, and keys and values."""
    detour_bytes: float = 0.0
    """Moved beside it by kernels that compute nothing: unpacked weights, scores in memory."""
    flops: float
    """Multiply-adds × 2."""
    layer_runs: float
    """Decoder layers × passes, for what each start of a layer costs; more where each layer starts
    more kernels than it does for one token."""


def bytes_per_step(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    kv_cache_dtype: KvCacheDtype | None = None,
    *,
    device: Device = "cuda",
) -> int | None:
    """Bytes that one decode step of the batch must read, at the mean context of the window.

    Weights that run, one embedding row a sequence, keys and values of all that is cached. What a
    checkpoint that came quantised is unpacked to depends on the ``device``. None where the shape
    or the format's layout is not known.
    """
    if spec.shape is None:
        return None
    weights = weights_read_bytes(
        spec.shape, backend, workload.batch, stored=spec.quantization, device=device
    )
    if weights is None:
        return None
    context = _step_context(workload)
    return weights + kv_read_bytes(spec, context, workload.batch, backend, kv_cache_dtype)


def decode_work(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    kv_cache_dtype: KvCacheDtype | None = None,
    *,
    device: Device = "cuda",
) -> Work | None:
    """One decode step of the batch; None where shape or layout is not known."""
    read = bytes_per_step(spec, backend, workload, kv_cache_dtype, device=device)
    shape, batch = spec.shape, workload.batch
    if read is None or shape is None:
        return None
    context = _step_context(workload)
    expanded = context if _expands_latents(backend) else 1
    flops = _layer_flops(shape, context, expanded=expanded) + 2.0 * shape.head.parameters
    detour = _unpacking_bytes(shape, backend, tokens=batch)
    detour += batch * expanded * _latent_bytes(shape, backend)
    if backend == _EAGER:
        detour += batch * context * _repeated_bytes(shape)
    return Work(
        tokens=batch,
        read_bytes=read,
        detour_bytes=detour,
        flops=batch * flops,
        layer_runs=_layer_runs(shape, backend, tokens=batch),
    )


def prefill_work(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    kv_cache_dtype: KvCacheDtype | None = None,
    *,
    device: Device = "cuda",
) -> Work | None:
    """The prefill of all prompts; None where shape or layout is not known.

    Each pass reads the weights again. Products cover the masked half of the scores too, as
    kernels that are given a mask compute it; logits are of each prompt's last token.
    """
    shape, prompt, batch = spec.shape, workload.prompt_tokens, workload.batch
    if shape is None:
        return None
    passes, chunk = _passes(backend, workload)
    per_pass = max(1, batch * prompt // passes)
    weights = weights_read_bytes(shape, backend, per_pass, stored=spec.quantization, device=device)
    if weights is None:
        return None
    context = (prompt + chunk) / 2  # of the mean token: a chunk's tokens meet all up to its end
    cache = kv_read_bytes(spec, round(context), batch, backend, kv_cache_dtype)
    expanded = context / chunk if _expands_latents(backend) else 1.0
    detour = float(passes * _unpacking_bytes(shape, backend, tokens=per_pass))
    detour += batch * prompt * expanded * _latent_bytes(shape, backend)
    if backend == _EAGER:
        detour += batch * prompt * context * _heads(shape) * _EAGER_SCORE_BYTES
        detour += batch * passes * context * _repeated_bytes(shape)
    layers = _layer_flops(shape, context, expanded=expanded)
    return Work(
        tokens=batch * prompt,
        read_bytes=passes * (weights + cache),
        detour_bytes=detour,
        flops=batch * (prompt * layers + 2.0 * shape.head.parameters),
        layer_runs=passes * _layer_runs(shape, backend, tokens=per_pass),
    )


def _step_context(workload: Workload) -> int:
    """Tokens that the mean decode step attends to."""
    return workload.prompt_tokens + workload.new_tokens // 2


def _passes(backend: str, workload: Workload) -> tuple[int, int]:
    """Number of passes over the prompts, and how many tokens of each one a pass takes."""
    prompt = workload.prompt_tokens
    if is_llama_cpp(backend):  # counts the tokens of all sequences together
        chunk = workload.prefill_chunk or LLAMA_CPP_CHUNK
        return ceil(workload.batch * prompt / chunk), min(chunk, prompt)
    chunk = min(workload.prefill_chunk or prompt, prompt)
    return ceil(prompt / chunk), chunk


def _layer_flops(shape: ModelShape, context_tokens: float, *, expanded: float) -> float:
    """FLOPs of all layers for one token, with ``expanded`` latents of the cache for it.

    Two for every weight that runs, the embedding being a lookup; 2 × context × heads × (key +
    value size) for attention, of a sliding window its length at most. Source: Kaplan et al., 2020,
    arXiv:2001.08361, section 2.1; the output head, which they leave out, is added by the callers.
    """
    per_kind = [_kind_flops(kind, context_tokens, expanded) for kind in shape.kinds]
    outside = sum(2.0 * matrix.active_parameters for matrix in shape.extra if matrix.linear)
    return outside + sum(per_kind[index] for index in shape.layers)


def _kind_flops(kind: LayerShape, context_tokens: float, expanded: float) -> float:
    flops = sum(
        2.0 * matrix.active_parameters * (expanded if matrix.name == _EXPANSION else 1.0)
        for matrix in kind.matrices
    )
    if kind.attention is not None:
        heads = kind.attention
        met = context_tokens if heads.window is None else min(context_tokens, heads.window)
        flops += 2.0 * met * heads.heads * (heads.key_dim + heads.value_dim)
    if kind.state is not None:
        flops += 4.0 * kind.state.elements  # updated and read out, a multiply-add each
    return flops


def _expands_latents(backend: str) -> bool:
    """Whether the engine makes keys and values of all cached latents again in each pass.

    transformers does; llama.cpp multiplies queries and outputs instead. Source: transformers 5.23,
    DeepseekV3Attention.expand_kv; llama.cpp, build_deepseek2.
    """
    return not is_llama_cpp(backend)


def _latent_bytes(shape: ModelShape, backend: str) -> int:
    """Bytes moved for one token whose latents are made keys and values: written, then read."""
    if not _expands_latents(backend):
        return 0
    attentions = (kind.attention for kind in shape.of_layers())
    latent = (each for each in attentions if each is not None and each.latent_dim is not None)
    return sum(4 * each.heads * (each.key_dim + each.value_dim) for each in latent)


def _heads(shape: ModelShape) -> int:
    """Attention heads of all layers together."""
    return sum(kind.attention.heads for kind in shape.of_layers() if kind.attention is not None)


def _repeated_bytes(shape: ModelShape) -> int:
    """Bytes moved for one cached token where eager attention repeats keys and values for the heads
    that share them: written in 16 bits, then read. Source: transformers, repeat_kv.
    """
    attentions = (kind.attention for kind in shape.of_layers())
    shared = (each for each in attentions if each is not None and each.heads > each.kv_heads)
    return sum(4 * each.heads * (each.key_dim + each.value_dim) for each in shared)


def _unpacks(backend: str, tokens: int) -> bool:
    return tokens > 1 and backend in _UNPACKING


def _layer_runs(shape: ModelShape, backend: str, *, tokens: int) -> float:
    return len(shape.layers) * (_UNPACKING_STARTS if _unpacks(backend, tokens) else 1.0)


def _unpacking_bytes(shape: ModelShape, backend: str, *, tokens: int) -> int:
    """Bytes moved to unpack the weights before a product of ``tokens``."""
    if not _unpacks(backend, tokens):
        return 0
    layers = shape.of_layers()
    packed = sum(m.parameters for kind in layers for m in kind.matrices if m.linear)
    return _UNPACKED_BYTES * packed
