"""The preallocated KV cache of the PyTorch decoder, as transformers' models see it.

One buffer per layer, ``keys`` and ``values`` of [B, H_kv, capacity, D], written in place. A
layer is read in one of two modes:

* sliced: ``update`` returns a view of the filled part, so attention costs what is filled and
  no mask is needed. The length is a Python int. Used by prefill and by eager steps.
* fixed: ``update`` returns the whole buffer, and the length is a tensor, so that shapes never
  change and a compiled step is traced once. transformers masks what is not filled yet.
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

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.fixed = False
        self.length = 0
        self.position = torch.zeros((), dtype=torch.int64)  # the length in fixed mode

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
        self.position = self.position.to(self.device)
        # A CUDA graph may only write to tensors whose address is known to stay.
        for tensor in (self.keys, self.values, self.position):
            torch._dynamo.mark_static_address(tensor)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states [B, H_kv, T, D] and return what attention reads: view or whole buffer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[2]
        if self.fixed:
            slots = self.position + torch.arange(count, device=self.device)
            self.position.add_(count)
            self.keys.index_copy_(2, slots, key_states)
            self.values.index_copy_(2, slots, value_states)
            return self.keys, self.values
        end = self.length + count
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

    def fix(self) -> None:
        """Go to fixed mode at the present length."""
        self.position.fill_(self.length)
        self.fixed = True


class StaticKVCache(Cache):
    """A ``StaticKVLayer`` per decoder layer."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[StaticKVLayer(capacity) for _ in range(layers)])

    def fix(self) -> None:
        """Give all layers constant shapes, for a compiled step."""
        for layer in self.layers:
            layer.fix()
