"""The preallocated KV cache of the PyTorch decoder, as transformers' models see it.

One buffer per layer, ``keys`` and ``values`` of [B, H_kv, capacity, D], written in place. The cache
is read in one of two modes:

* sliced: ``update`` returns a view of the filled part, so attention costs what is filled and
  no mask is needed. The length is a Python int. Used by prefill and by eager steps.
* fixed: ``update`` returns the whole buffer, and the length is a tensor of all layers, so that
  shapes never change and a step is traced, or captured, once. What is not filled yet has to be
  masked.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class StaticKVLayer(CacheLayerMixin):
    """The keys and values of one layer, preallocated for ``capacity`` tokens."""

    is_compileable = True
    is_sliding = False

    def __init__(self, capacity: int, position: torch.Tensor) -> None:
        """``position`` int64[] is the length in fixed mode, which ``StaticKVCache`` advances."""
        super().__init__()
        self.capacity = capacity
        self.fixed = False
        self.length = 0
        self.position = position

    def lazy_initialization(
        self, key_states: torch.Tensor, value_states: torch.Tensor | None = None
    ) -> None:
        """Allocate the buffers for states like ``key_states`` [B, H_kv, T, D]."""
        value_states = key_states if value_states is None else value_states
        batch, heads, _, key_dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        make: Any = {"dtype": self.dtype, "device": self.device}
        self.keys = torch.zeros((batch, heads, self.capacity, key_dim), **make)
        self.values = torch.zeros((batch, heads, self.capacity, value_states.shape[-1]), **make)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states [B, H_kv, T, D] and return what attention reads: view or whole buffer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.fixed:
            slot = self.position.reshape(1)
            self.keys.index_copy_(2, slot, key_states)
            self.values.index_copy_(2, slot, value_states)
            return self.keys, self.values
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query of ``query_length`` will meet."""
        return (self.capacity if self.fixed else self.length + query_length), 0

    def get_seq_length(self) -> int | torch.Tensor:
        """Number of tokens held."""
        return self.position if self.fixed else self.length

    def get_max_length(self) -> int:
        """Number of tokens that fit; -1 (no bound) in sliced mode, where masks follow the view."""
        return self.capacity if self.fixed else -1

    get_max_cache_shape = get_max_length  # the name of transformers before 5.20

    def reset(self) -> None:
        """Forget all tokens and return to sliced mode; the buffers stay."""
        self.fixed = False
        self.length = 0


class StaticKVCache(Cache):
    """A ``StaticKVLayer`` per decoder layer."""

    def __init__(self, layers: int, capacity: int, device: torch.device) -> None:
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        """Number of tokens held in fixed mode. One token a step is written at this slot."""
        super().__init__(layers=[StaticKVLayer(capacity, self.position) for _ in range(layers)])

    def fix(self) -> None:
        """Give all layers constant shapes, for a traced or captured step of one token."""
        self.position.fill_(self.layers[0].get_seq_length())
        for layer in self.layers:
            layer.fixed = True
