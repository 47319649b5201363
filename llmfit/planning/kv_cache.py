"""Bytes of the KV cache, in 16 bits and in the two quantised types, by engine.

    type    llama.cpp                          PyTorch rows (HQQ through transformers)
    q8_0    blocks of 32: 34 bytes             8 bits in groups, newest tokens in 16 bits
    q4_0    blocks of 32: 18 bytes             4 bits in groups, newest tokens in 16 bits

A group's scale and zero point are 16 bits each, so groups of 64 take 8.5 and 4.5 bits a value, as
llama.cpp's blocks do.
"""

from __future__ import annotations

from llmfit.records import KvCacheDtype, ModelSpec, Workload

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
) -> int:
    """Bytes of keys and values for prompt and new tokens, as the cache is allocated.

    With a quantised cache a PyTorch row counts up to ``RESIDUAL_TOKENS`` − 1 of the new tokens in
    16 bits, the most that ever are.
    """
    values = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim  # a token
    tokens = workload.prompt_tokens + workload.new_tokens
    plain, bits = tokens, _BITS_16
    if kv_cache_dtype is not None and backend.partition(":")[0] == "gguf":
        plain, bits = 0, _BLOCK_BYTES[kv_cache_dtype] * 8 / BLOCK
    elif kv_cache_dtype is not None:
        plain = min(workload.new_tokens - 1, RESIDUAL_TOKENS - 1)
        bits = hqq_bits(kv_cache_dtype, spec.head_dim)
    per_sequence = values * (plain * _BITS_16 + (tokens - plain) * bits) / 8
    return round(workload.batch * per_sequence)


def quantising_bytes(spec: ModelSpec, workload: Workload) -> int:
    """Working set while a PyTorch row quantises one layer's keys or values, all tokens at once."""
    tokens = workload.batch * (workload.prompt_tokens + workload.new_tokens)
    return tokens * spec.num_key_value_heads * spec.head_dim * _QUANTISING_BYTES
