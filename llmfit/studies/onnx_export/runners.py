"""Token ids and a cache ─► logits and the cache with them, by transformers or by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmfit.studies.onnx_export.export import cache_shape

if TYPE_CHECKING:
    from torch import Tensor


class Runner(Protocol):
    """A model with a cache of its own kind."""

    def empty(self) -> Any:
        """A cache without tokens."""
        ...

    def copy(self, past: Any) -> Any:
        """A cache that ``forward`` may change."""
        ...

    def forward(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits ``float32[B, T, V]`` of ``ids: int64[B, T]``, and the cache with them."""
        ...


class EagerRunner:
    """transformers' model with a DynamicCache."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def empty(self) -> Any:
        """A cache without tokens."""
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def copy(self, past: Any) -> Any:
        """A deep one: the model's step grows the cache that it is given."""
        return deepcopy(past)

    def forward(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits ``float32[B, T, V]``, and the cache, which has grown."""
        import torch

        with torch.inference_mode():
            out = self._model(input_ids=ids, past_key_values=past, use_cache=True)
        return out.logits, past


class OnnxRunner:
    """A session of onnxruntime on the CPU, with as many threads as torch has.

    A cache is onnxruntime's own values in the order of the graph's inputs; no copy is made of them.
    """

    def __init__(self, path: str, config: Any) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        # Its threads do not wait for more work by spinning, which would slow whoever is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._empty = cache_shape(config, batch=1, tokens=0)

    def empty(self) -> Any:
        """Keys and values without tokens, for a batch of 1."""
        import torch

        return self.values([torch.zeros(self._empty) for _ in self._inputs[1:]])

    def values(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Tensors as onnxruntime's values."""
        from onnxruntime import OrtValue

        return [OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy()) for tensor in tensors]

    def copy(self, past: Any) -> Any:
        """The same: a graph does not change what it is given."""
        return past

    def forward(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits ``float32[B, T, V]``, and new keys and values."""
        import torch

        given = dict(zip(self._inputs, (*self.values([ids]), *past), strict=True))
        logits, *present = self._session.run_with_ort_values(self._outputs, given)
        return torch.from_numpy(logits.numpy()), present


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Greedy tokens, and the logits ``float32[1, V]`` that each was taken from."""

    tokens: tuple[int, ...]
    logits: tuple[Tensor, ...]


def greedy(runner: Runner, prompt: Tensor, new_tokens: int) -> Generated:
    """The likeliest token ``new_tokens`` times after ``prompt: int64[1, T]``."""
    tokens: list[int] = []
    found: list[Tensor] = []
    ids, past = prompt, runner.empty()
    for _ in range(new_tokens):
        logits, past = runner.forward(ids, past)
        found.append(logits[:, -1].clone())
        ids = found[-1].argmax(-1, keepdim=True)
        tokens.append(int(ids))
    return Generated(tokens=tuple(tokens), logits=tuple(found))
