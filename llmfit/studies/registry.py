"""The studies by name, in the order in which ``llmfit study all`` runs them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, cast

from llmfit.errors import UsageError

if TYPE_CHECKING:
    from llmfit.studies.base import Study

_HOMES = {
    "precision": "llmfit.studies.precision",
    "attention": "llmfit.studies.attention",
    "checkpointing": "llmfit.studies.checkpointing",
    "accumulation": "llmfit.studies.accumulation",
    "compile": "llmfit.studies.compiling",
    "kv-cache": "llmfit.studies.kv_cache",
    "techniques": "llmfit.studies.techniques",
    "onnx": "llmfit.studies.onnx_export",
}

STUDIES: Mapping[str, str] = {
    "precision": "FP32, FP16 and BF16, training and inference",
    "attention": "standard attention against each fused kernel, 512 to 8,192 tokens",
    "checkpointing": "memory and time of a training step with recomputed activations",
    "accumulation": "a large batch in parts: gradients, memory, loss",
    "compile": "torch.compile's modes: compile time, gain, break-even",
    "kv-cache": "generation with and without a KV cache",
    "techniques": "all techniques on the embedded model: memory, speed, quality",
    "onnx": "export with KV cache, onnxruntime against PyTorch",
}
"""Name and what is measured, for a list that imports no study."""


def check_study(name: str) -> None:
    """Raise UsageError where there is no study of that name; none is imported."""
    if name not in _HOMES:
        close = get_close_matches(name, _HOMES, n=1)
        raise UsageError(
            f"unknown study {name!r}; known are {', '.join(_HOMES)}, and all.",
            hint=f"llmfit study {close[0] if close else 'all'}",
        )


def get_study(name: str) -> Study:
    """The study of that name; raises UsageError."""
    check_study(name)
    return cast("Study", import_module(_HOMES[name]))
