"""Predicted memory of a deploy format, from a model's plain shape.

    total = weights + KV cache + activations of the prefill + runtime

Counts dense decoder-only models of the Llama shape: attention with grouped queries, a gated MLP,
RMS norms. For any other architecture the prediction is None rather than a guess.
"""

from __future__ import annotations

from llmfit.planning.kv_cache import kv_cache_bytes, quantising_bytes
from llmfit.records import Device, KvCacheDtype, MemoryPrediction, ModelSpec, Workload

DENSE_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})

_BF16 = 2.0
_BLOCK_NF4 = 64
_GROUP = 128
_CUDA_RUNTIME_BYTES = 500_000_000
"""CUDA context and library workspaces, beside what the allocator counts. Source: nvidia-smi of an
idle torch process with cuBLAS loaded, 0.3 to 0.6 GB by GPU and driver."""

# Bits per weight of llama.cpp's types. Source: block structs in ggml-common.h: bytes × 8 ÷ values.
_GGUF_BITS = {
    "q4_k": 144 * 8 / 256,
    "q6_k": 210 * 8 / 256,
    "q8_0": 34 * 8 / 32,
    "f16": 16.0,
    "bf16": 16.0,
    "f32": 32.0,
}


def linear_parameters(spec: ModelSpec) -> tuple[int, int, int]:
    """Weights of one block's linear layers: (attention without value, value, MLP's each third).

    Queries and output have H·D rows or columns, keys and values H_kv·D.
    """
    wide = spec.num_attention_heads * spec.head_dim
    narrow = spec.num_key_value_heads * spec.head_dim
    attention = spec.hidden_size * (2 * wide + narrow)
    return attention, spec.hidden_size * narrow, spec.hidden_size * spec.intermediate_size


def total_parameters(spec: ModelSpec) -> int | None:
    """All parameters of a dense model by its shape; None for other architectures."""
    if spec.model_type not in DENSE_TYPES:
        return None
    attention, value, third = linear_parameters(spec)
    embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tie_word_embeddings else 2)
    blocks = spec.num_hidden_layers * (attention + value + 3 * third)
    return blocks + embeddings + _small_parameters(spec)


def _small_parameters(spec: ModelSpec) -> int:
    """Norm weights and attention biases."""
    per_block = 2 * spec.hidden_size
    if spec.model_type == "qwen3":  # a norm over the head size for queries and for keys
        per_block += 2 * spec.head_dim
    if spec.attention_bias:
        per_block += (spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
        if spec.model_type == "llama":  # its output projection has the bias too
            per_block += spec.hidden_size
    return spec.num_hidden_layers * per_block + spec.hidden_size


def weights_bytes(spec: ModelSpec, backend: str) -> int | None:
    """Bytes of all weights in a format, or None where the format's layout is not known here."""
    if spec.model_type not in DENSE_TYPES:
        return None
    name, _, variant = backend.partition(":")
    if name == "gguf":
        return _gguf_bytes(spec, variant or "q4_k_m")
    attention, value, third = linear_parameters(spec)
    linear = spec.num_hidden_layers * (attention + value + 3 * third)
    total = total_parameters(spec)
    assert total is not None
    per_weight = {
        "bf16": _BF16,
        "sdpa": _BF16,
        "compiled": _BF16,
        # One float32 scale per output row: about 1 ÷ hidden size of a weight.
        "int8": 1.0 + 4.0 / spec.hidden_size,
        "nf4": 0.5 + 4.0 / _BLOCK_NF4,
        # Per group a 16-bit scale and a 4-bit zero.
        "gptq": 0.5 + 2.5 / _GROUP,
        "awq": 0.5 + 2.5 / _GROUP,
    }.get(name)
    if per_weight is None:
        return None
    return round(linear * per_weight + (total - linear) * _BF16)


def _gguf_bytes(spec: ModelSpec, variant: str) -> int | None:
    """Tensor bytes of a GGUF file.

    Q4_K_M holds values and down projections of some layers, and the output head, in Q6_K.
    Source: llama.cpp, llama-quant.cpp, llama_tensor_get_type.
    """
    total = total_parameters(spec)
    assert total is not None
    small = _small_parameters(spec)
    if variant in ("q8_0", "f16", "bf16", "f32"):
        return round((total - small) * _GGUF_BITS[variant] / 8 + 4 * small)
    if variant != "q4_k_m":
        return None
    _, value, third = linear_parameters(spec)
    layers = spec.num_hidden_layers
    better = sum(_more_bits(layer, layers) for layer in range(layers))
    embeddings = spec.vocab_size * spec.hidden_size
    q6 = better * (value + third) + embeddings  # the head, or the tied embedding
    q4 = total - small - q6
    return round((q4 * _GGUF_BITS["q4_k"] + q6 * _GGUF_BITS["q6_k"]) / 8 + 4 * small)


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of layers that get more bits: first and last eighth, every third."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def activation_bytes(spec: ModelSpec, backend: str, workload: Workload) -> int:
    """Largest working set of the prefill, which runs the whole prompt at once.

    The MLP's three intermediates and the residual in 16 bits; eager attention holds the N×N
    scores in 16 bits and their softmax in 32; logits of the last position only, in 32 bits.
    """
    tokens = workload.batch * workload.prompt_tokens
    mlp = tokens * (3 * spec.intermediate_size + 2 * spec.hidden_size) * 2
    attention = 0
    if backend == "bf16":
        scores = workload.batch * spec.num_attention_heads * workload.prompt_tokens**2
        attention = scores * (2 + 4)
    return max(mlp, attention) + workload.batch * spec.vocab_size * 4


def predict_memory(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    device: Device,
    *,
    kv_cache_dtype: KvCacheDtype | None = None,
) -> MemoryPrediction | None:
    """Peak memory by part, or None where the architecture or format is not known here."""
    weights = weights_bytes(spec, backend)
    if weights is None:
        return None
    cache = kv_cache_bytes(spec, workload, backend=backend, kv_cache_dtype=kv_cache_dtype)
    activations = activation_bytes(spec, backend, workload)
    if kv_cache_dtype is not None and not backend.startswith("gguf"):
        activations = max(activations, quantising_bytes(spec, workload))
    runtime = _CUDA_RUNTIME_BYTES if device == "cuda" else 0
    return MemoryPrediction(
        weights_bytes=weights,
        kv_cache_bytes=cache,
        activation_bytes=activations,
        runtime_bytes=runtime,
        total_bytes=weights + cache + activations + runtime,
    )
