"""transformers' quantised KV cache, in the sizes of llama.cpp's q8_0 and q4_0.

    newest 0 … 127 tokens     as they are, in the model's own type
    all tokens before them    8 or 4 bits a value, by groups within one head of one token

The prompt is quantised when its prefill is done, which itself reads it unquantised. After that,
each time ``RESIDUAL_TOKENS`` new tokens are there, all is quantised again with them. A layer is
dequantised whole for its attention, so one layer's keys and values exist in full size for a
moment, never those of all layers.

HQQ quantises: of the libraries that transformers knows for this, Quanto has no 8 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import QuantizedCache
from transformers.cache_utils import HQQQuantizedLayer

from llmfit.decode.placement import execution_device
from llmfit.device.memory import return_freed_memory
from llmfit.errors import ModelLoadError
from llmfit.planning.memory.kv_cache import HQQ_BITS, RESIDUAL_TOKENS, group_size, hqq_bits
from llmfit.records import KvCacheDtype

_HINT = "without --kv-cache-dtype, the KV cache stays in 16 bits"


def quantized_cache(model: nn.Module, dtype: KvCacheDtype) -> QuantizedCache:
    """An empty cache for ``model``, which grows with what is fed.

    Groups lie within one head of one token (axis 1); other tokens matter only in that HQQ ends its
    search for scales by the mean error over all that is quantised at once. Raises ModelLoadError
    where no group divides the head size, and for models with other than full attention, for
    which transformers has no such cache.
    """
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    head_dim = _head_dim(config)
    group = group_size(head_dim)
    if group is None:
        raise ModelLoadError(
            f"a head size of {head_dim} is no multiple of 32, the least group of a {dtype} "
            "KV cache.",
            hint=_HINT,
        )
    options = {
        "nbits": HQQ_BITS[dtype],
        "axis_key": 1,
        "axis_value": 1,
        "q_group_size": group,
        "residual_length": RESIDUAL_TOKENS,
    }
    try:
        cache = QuantizedCache(backend="hqq", config=config, **options)
    except (ValueError, ImportError) as exc:
        raise ModelLoadError(
            f"transformers has no {dtype} KV cache for {type(model).__name__}: {exc}", hint=_HINT
        ) from exc
    if execution_device(model).type == "cpu":
        cache.layers = [_CpuLayer(**options) for _ in cache.layers]
    return cache


class _CpuLayer(HQQQuantizedLayer):
    """The layer as it is, its scratch memory given back at once.

    Quantising fills small buffers that stay between large ones that go, and the C heap keeps the
    holes: a row's peak would show several times what the cache holds.
    """

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
        quantized = super()._quantize(tensor, axis)
        return_freed_memory()
        return quantized


def describe(model: nn.Module, dtype: KvCacheDtype) -> str:
    """What the cache holds, for the row's notes."""
    head_dim = _head_dim(model.config.get_text_config())  # type: ignore[union-attr,operator]
    device = execution_device(model).type
    peak = "; the peak of RAM holds what quantising needs for a moment" if device == "cpu" else ""
    return (
        f"KV cache {dtype}: hqq, {HQQ_BITS[dtype]} bits in groups of {group_size(head_dim)} "
        f"({hqq_bits(dtype, head_dim):g} bits a value with scales); a sequence's newest 0 to "
        f"{RESIDUAL_TOKENS - 1} tokens, and a prompt (of a chunked one, the chunk) in its own "
        f"prefill, are read unquantised, in scoring too{peak}"
    )


def _head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
