"""A transformers model ─► its graph in a file, its cache's tensors among what goes in and out."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.errors import StudyError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A graph in a file."""

    path: str
    seconds: float
    file_bytes: int
    nodes: int


def export(model: Any, path: Path) -> Exported:
    """Write a transformers causal language model in float32 with its cache to ``path``.

    Raises StudyError where the exporter cannot.
    """
    import torch
    from torch.export import Dim

    config = model.config
    names = [
        f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")
    ]
    # Sizes of an example: all different, and none is 0 or 1, which torch.export takes for fixed.
    ids = torch.zeros(2, 5, dtype=torch.int64)
    past = [torch.zeros(cache_shape(config, batch=2, tokens=7)) for _ in names]
    batch, tokens, held = Dim("batch"), Dim("tokens"), Dim("past")
    began = time.perf_counter()
    try:
        with _quiet():
            program = torch.onnx.export(
                with_flat_cache(model),
                (ids, *past),
                None,
                dynamo=True,
                verbose=False,
                input_names=["input_ids", *(f"past.{name}" for name in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
                dynamic_shapes=({0: batch, 1: tokens}, tuple({0: batch, 2: held} for _ in names)),
            )
            assert program is not None  # with dynamo it is a program
            program.save(str(path))
    except torch.onnx.OnnxExporterError as error:
        raise StudyError(f"torch.onnx.export: {first_line(error)}") from error
    return Exported(
        path=str(path),
        seconds=time.perf_counter() - began,
        file_bytes=sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
        nodes=len(program.model.graph),
    )


def cache_shape(config: Any, *, batch: int, tokens: int) -> tuple[int, int, int, int]:
    """Of a layer's keys or values: ``[B, kv_heads, P, head_dim]``."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return batch, config.num_key_value_heads, tokens, int(width)


def with_flat_cache(model: Any) -> torch.nn.Module:
    """The model as a function of tensors alone: keys and values in, keys and values out."""
    from torch import nn
    from transformers import DynamicCache

    class WithFlatCache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
            cache = DynamicCache()
            for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
                cache.update(key, value, layer)
            out = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
            present = [kept for layer in cache.layers for kept in (layer.keys, layer.values)]
            return (out.logits, *present)

    return WithFlatCache().eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the exporter does not say which packages it would also know, nor what is outdated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
