"""GGUF files by llama.cpp: its own server, and llama-cpp-python's."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from llmfit.engines.base import Engine, Served, program_missing, script


class LlamaServer(Engine):
    """llama.cpp's ``llama-server``."""

    id = "llama-server"
    label = "llama-server"
    kind = "gguf"
    formats = ("gguf", "gguf-gpu")
    takes = frozenset({"context", "name", "threads"})
    install = "https://github.com/ggml-org/llama.cpp/releases"

    def missing(self) -> str | None:
        """See ``Engine.missing``."""
        return program_missing("llama-server")

    def command(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command``."""
        threads = () if served.threads is None else ("--threads", str(served.threads))
        # By itself it would use a GPU that it finds, and the figures are of the CPU.
        layers = ("--n-gpu-layers", "all") if served.device == "cuda" else ("--device", "none")
        return (
            "llama-server", "--model", served.path, "--alias", served.name,
            "--ctx-size", str(served.context), *layers, *threads,
            "--host", served.host, "--port", str(served.port),
        )  # fmt: skip

    def command_here(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command_here``."""
        return (script("llama-server"), *self.command(served)[1:])


class LlamaCppPython(Engine):
    """llama-cpp-python's server, which is installed with llmfit; one answer at a time."""

    id = "llama-cpp-python"
    label = "llama-cpp-python's server"
    kind = "gguf"
    formats = ("gguf", "gguf-gpu")
    takes = frozenset({"context", "name", "threads"})
    install = "pip install 'llama-cpp-python[server]'"

    def missing(self) -> str | None:
        """See ``Engine.missing``."""
        modules = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context")
        return None if all(map(find_spec, modules)) else "llama-cpp-python[server]"

    def command(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command``."""
        threads = () if served.threads is None else ("--n_threads", str(served.threads))
        layers = ("--n_gpu_layers", "-1") if served.device == "cuda" else ()
        return (
            "python", "-m", "llama_cpp.server", "--model", served.path,
            "--model_alias", served.name, "--n_ctx", str(served.context), *layers, *threads,
            "--interrupt_requests", "false",  # else a request ends the one before it
            "--host", served.host, "--port", str(served.port),
        )  # fmt: skip

    def command_here(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command_here``."""
        return (sys.executable, *self.command(served)[1:])
