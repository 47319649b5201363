"""The engines there are."""

from __future__ import annotations

from difflib import get_close_matches

from llmfit.engines.base import Engine
from llmfit.engines.llama_cpp import LlamaCppPython, LlamaServer
from llmfit.engines.ollama import Ollama
from llmfit.engines.transformers_serve import TransformersServe
from llmfit.engines.vllm import Vllm
from llmfit.errors import UsageError
from llmfit.records import Device

ENGINES: dict[str, Engine] = {
    engine.id: engine
    for engine in (Vllm(), TransformersServe(), LlamaServer(), LlamaCppPython(), Ollama())
}


def get_engine(name: str) -> Engine:
    """The engine of that id. Raises UsageError."""
    if name in ENGINES:
        return ENGINES[name]
    close = get_close_matches(name, ENGINES, n=1)
    raise UsageError(
        f"unknown engine {name!r}; known are {', '.join(ENGINES)}.",
        hint=f"--engine {close[0] if close else next(iter(ENGINES))}",
    )


def engine_for(backend: str, device: Device) -> Engine:
    """The engine that serves a format here: of those that do, the first that is installed.

    Raises UsageError where none does, or none is installed.
    """
    row = backend.partition(":")[0]
    able = [
        each
        for each in ENGINES.values()
        if row in each.formats and device in each.devices and each.serves
    ]
    if not able:
        raise UsageError(
            f"no engine serves {backend}.",
            hint=f"--backend {', '.join(sorted({f for e in ENGINES.values() for f in e.formats}))}",
        )
    for engine in able:
        if engine.missing() is None:
            return engine
    raise UsageError(
        f"none of {', '.join(each.label for each in able)} is installed, which serve {backend}.",
        hint=able[-1].install,
    )
