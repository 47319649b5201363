"""Ollama, which takes a GGUF by a Modelfile."""

from __future__ import annotations

from llmfit.engines.base import Engine, Served, program_missing

MODELFILE = "Modelfile"


class Ollama(Engine):
    """``ollama``: a Modelfile makes the model known to its daemon, which serves on port 11434.

    It chooses threads and layers on the GPU itself. Source: docs.ollama.com/modelfile.
    """

    id = "ollama"
    label = "Ollama"
    kind = "gguf"
    formats = ("gguf",)
    serves = False
    install = "https://ollama.com/download"

    def missing(self) -> str | None:
        """See ``Engine.missing``."""
        return program_missing("ollama")

    def command(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command``."""
        return ("ollama", "create", served.name, "-f", MODELFILE)

    def settings(self, served: Served) -> dict[str, str]:
        """See ``Engine.settings``."""
        return {MODELFILE: f"FROM ./{served.path}\nPARAMETER num_ctx {served.context}\n"}
