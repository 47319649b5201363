"""The studies by name, in the order in which ``llmfit study all`` runs them."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import cast

from llmfit.errors import UsageError
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

STUDIES = tuple(_HOMES)


def get_study(name: str) -> Study:
    """The study of that name; raises UsageError."""
    if name not in _HOMES:
        close = get_close_matches(name, _HOMES, n=1)
        raise UsageError(
            f"unknown study {name!r}; known are {', '.join(_HOMES)}.",
            hint=f"llmfit study {close[0] if close else 'all'}",
        )
    return cast(Study, import_module(_HOMES[name]))
