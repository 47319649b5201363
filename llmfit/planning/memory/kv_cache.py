"""Bytes of the KV cache, in 16 bits and in the two quantised types, by engine.

    type    llama.cpp                          PyTorch rows (HQQ through transformers)
    q8_0    blocks of 32: 34 bytes             8 bits in groups, newest tokens in 16 bits
    q4_0    blocks of 32: 18 bytes             4 bits in groups, newest tokens in 16 bits

A group's scale and zero point are 16 bits each, so groups of 64 take 8.5 and 4.5 bits a value, as
llama.cpp's blocks do.

A layer caches, for every token of prompt and continuation, keys and values of its key heads; of
multi-head latent attention the latent alone, in transformers as in llama.cpp. Both engines keep
all tokens in layers with a sliding window too, since their buffers are of one size for all layers.
A recurrent layer keeps one state a sequence, however long.
"""

from __future__ import annotations

from dataclasses import replace

from llmfit.records import KvCacheDtype, ModelSpec, Workload
from llmfit.shape import Attention, LayerShape

BLOCK = 32
"""Values of one head that llama.cpp quantises together. Source: ggml-common.h, QK8_0, QK4_0."""
HQQ_BITS: dict[KvCacheDtype, int] = {"q8_0": 8, "q4_0": 4}
RESIDUAL_TOKENS = 128
"""transformers' default: when so many new tokens are there, they are quantised too."""

_BLOCK_BYTES: dict[KvCacheDtype, int] = {"q8_0": 34, "q4_0": 18}
"""Source: ggml-common.h, block_q8_0 and block_q4_0: a 16-bit scale and 32 values."""
_GROUP_OVERHEAD_BITS = 32
_QUANTISING_BYTES = 42
"""Working set of HQQ's search for scales, in float32, and of the layer it is given, per value of
one layer's keys. Source: peak resident set of 36 to 46 bytes a value, hqq 0.2.8, 8.4 M values."""
_BITS_16 = 16.0
_CONTEXT_STEP = 256
_VLLM_WINDOW_TOKENS = 2048
"""Room that vLLM's pool has at least: the usual window of a perplexity."""
_VLLM_BLOCK_TOKENS = 128
"""vLLM's largest block, which every sequence has one of in part. Most of its attention kernels take
16. Source: vLLM 0.30, v1/attention/backends, get_supported_kernel_block_sizes."""


def group_size(head_dim: int) -> int | None:
    """Values of one head that HQQ quantises together here, or None where no group divides it."""
    return next((size for size in (64, BLOCK) if head_dim % size == 0), None)


def unsuited(spec: ModelSpec, dtype: KvCacheDtype | None) -> str | None:
    """Why the model cannot have such a cache, in any engine; None where it can."""
    if dtype is None or group_size(spec.head_dim) is not None:
        return None
    return (
        f"--kv-cache-dtype {dtype} needs a head size in multiples of {BLOCK}; "
        f"{spec.name} has {spec.head_dim}"
    )


def hqq_bits(dtype: KvCacheDtype, head_dim: int) -> float:
    """Bits a value in HQQ's groups, with their scales and zero points."""
    size = group_size(head_dim)
    return _BITS_16 if size is None else HQQ_BITS[dtype] + _GROUP_OVERHEAD_BITS / size


def kv_cache_bytes(
    spec: ModelSpec,
    workload: Workload,
    *,
    backend: str = "bf16",
    kv_cache_dtype: KvCacheDtype | None = None,
    vllm_context: int | None = None,
) -> int:
    """Bytes of keys, values and states for prompt and new tokens, as the cache is allocated.

    vLLM's is a pool for all sequences, and for one of ``vllm_context`` tokens (None: the usual
    window) and the token that it predicts. With a quantised cache a PyTorch row counts up to
    ``RESIDUAL_TOKENS`` − 1 of the new tokens in 16 bits, the most that ever are. A model without a
    shape is taken by its plain numbers.
    """
    tokens = workload.prompt_tokens + workload.new_tokens
    plain = tokens
    if kv_cache_dtype is not None:
        plain = min(workload.new_tokens - 1, RESIDUAL_TOKENS - 1)
    if is_llama_cpp(backend):
        tokens = llama_cpp_cells(tokens)
        plain = tokens if kv_cache_dtype is None else 0
    bits = _BITS_16 if kv_cache_dtype is None else _bits(spec, backend, kv_cache_dtype)
    bits_a_value = plain * _BITS_16 + (tokens - plain) * bits
    values = sum(token_values(each, backend) for each in _attentions(spec))
    if backend == "vllm":
        held = _vllm_tokens(workload, vllm_context or vllm_window(spec, workload))
        return round(held * values * bits / 8) + workload.batch * _state_bytes(spec, backend)
    per_sequence = values * bits_a_value / 8
    return round(workload.batch * (per_sequence + _state_bytes(spec, backend)))


def kv_read_bytes(
    spec: ModelSpec,
    context_tokens: int,
    batch: int = 1,
    backend: str = "bf16",
    kv_cache_dtype: KvCacheDtype | None = None,
) -> int:
    """Bytes of cache that one decode step reads with ``context_tokens`` cached a sequence.

    llama.cpp passes over what a sliding window hides; the PyTorch rows read it and mask it.
    """
    bits = _BITS_16 if kv_cache_dtype is None else _bits(spec, backend, kv_cache_dtype)
    total = _state_bytes(spec, backend)
    for attention in _attentions(spec):
        met = context_tokens
        if attention.window is not None and is_llama_cpp(backend):
            met = min(met, attention.window)
        if attention.cached_heads == 0:  # what another layer cached is read here too
            attention = replace(attention, cached_heads=None)
        total += round(met * token_values(attention, backend) * bits / 8)
    return batch * total


def token_values(attention: Attention, backend: str = "bf16") -> int:
    """Values that a layer caches of one token: keys and values, or the latent of both.

    Heads that transformers repeats before it caches are not repeated in llama.cpp.

    Source of the latter: transformers 5.23, DeepseekV3Attention.forward, which expands it for
    every step; llama.cpp, build_deepseek2, whose values are a view of the keys.
    """
    if attention.latent_dim is not None:
        return attention.latent_dim
    heads = attention.cached_heads
    if heads is None or (heads > 0 and is_llama_cpp(backend)):
        heads = attention.kv_heads
    return heads * (attention.key_dim + attention.value_dim)


def quantising_bytes(spec: ModelSpec, workload: Workload) -> int:
    """Working set while a PyTorch row quantises one layer's keys or values, all tokens at once."""
    tokens = workload.batch * (workload.prompt_tokens + workload.new_tokens)
    keys = max((each.kv_heads * each.key_dim for each in _attentions(spec)), default=0)
    return tokens * keys * _QUANTISING_BYTES


def _attentions(spec: ModelSpec) -> tuple[Attention, ...]:
    """The attention of each layer that has one."""
    if spec.shape is not None:
        found = (layer.attention for layer in spec.shape.of_layers())
        return tuple(attention for attention in found if attention is not None)
    plain = Attention(
        heads=spec.num_attention_heads,
        kv_heads=spec.num_key_value_heads,
        key_dim=spec.head_dim,
        value_dim=spec.head_dim,
    )
    return (plain,) * spec.num_hidden_layers


def _state_bytes(spec: ModelSpec, backend: str) -> int:
    """Recurrent states of one sequence: float32 in llama.cpp, 16 bits in transformers' cache.

    Source: llama.cpp, llama_memory_recurrent, made with GGML_TYPE_F32.
    """
    layers: tuple[LayerShape, ...] = spec.shape.of_layers() if spec.shape is not None else ()
    values = sum(layer.state.elements for layer in layers if layer.state is not None)
    return values * (4 if is_llama_cpp(backend) else 2)


def _bits(spec: ModelSpec, backend: str, dtype: KvCacheDtype) -> float:
    """Bits a value of a quantised cache."""
    if is_llama_cpp(backend):
        return _BLOCK_BYTES[dtype] * 8 / BLOCK
    return hqq_bits(dtype, spec.head_dim)


def is_llama_cpp(backend: str) -> bool:
    """True for the rows that llama.cpp runs, on the CPU or on a GPU, of any type."""
    return backend.partition(":")[0] in ("gguf", "gguf-gpu")


def vllm_window(spec: ModelSpec, workload: Workload) -> int:
    """Tokens of the longest sequence that vLLM's pool has room for: the workload's, or a window."""
    tokens = workload.prompt_tokens + workload.new_tokens
    return min(max(tokens, _VLLM_WINDOW_TOKENS), spec.max_position_embeddings)


def _vllm_tokens(workload: Workload, context: int) -> int:
    """Tokens of a pool in whole blocks, one of which vLLM keeps empty.

    Source: vLLM 0.30, v1/core/block_pool.py, null_block.
    """
    asked = workload.prompt_tokens + workload.new_tokens + 1
    block = _VLLM_BLOCK_TOKENS
    blocks = max(workload.batch * -(-asked // block), -(-(context + 1) // block))
    return (blocks + 1) * block


def llama_cpp_cells(tokens: int) -> int:
    """Tokens that llama.cpp makes room for. Source: llama-context.cpp, GGML_PAD(n_ctx, 256)."""
    return -(-tokens // _CONTEXT_STEP) * _CONTEXT_STEP
