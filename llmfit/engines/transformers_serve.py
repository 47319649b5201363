"""transformers' own server: every format that transformers loads, on any device."""

from __future__ import annotations

from importlib.util import find_spec

from llmfit.engines.base import Engine, Served, script

_OPTIONS = {
    "bf16": ("--dtype", "bfloat16", "--attn-implementation", "eager"),
    "sdpa": ("--dtype", "bfloat16", "--attn-implementation", "sdpa"),
    "compiled": ("--dtype", "bfloat16", "--attn-implementation", "sdpa", "--compile"),
    "int8": ("--dtype", "bfloat16", "--quantization", "bnb-8bit"),
    "nf4": ("--dtype", "bfloat16", "--quantization", "bnb-4bit"),
    "gptq": (),
    "awq": (),
}
"""Of ``transformers serve`` 5.23. Its 4 bits quantise the scales too, as ``nf4:double`` does."""


class TransformersServe(Engine):
    """``transformers serve``. It has no limit of context and takes the memory that it takes."""

    id = "transformers"
    label = "transformers serve"
    kind = "folder"
    formats = tuple(_OPTIONS)
    takes = frozenset()
    install = "pip install 'transformers[serving]'"

    def missing(self) -> str | None:
        """See ``Engine.missing``."""
        modules = ("fastapi", "uvicorn", "openai")
        return None if all(map(find_spec, modules)) else "transformers[serving]"

    def command(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command``."""
        return (
            "transformers", "serve", served.path, "--host", served.host, "--port", str(served.port),
            "--device", served.device, *_OPTIONS[served.backend.partition(":")[0]],
            *(("--trust-remote-code",) if served.trust_remote_code else ()),
        )  # fmt: skip

    def command_here(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command_here``."""
        return (script("transformers"), *self.command(served)[1:])

    def notes(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.notes``."""
        notes = ["it sets no bound to context and memory: a request takes what it takes"]
        if served.backend == "nf4":
            notes.append("its 4 bits quantise the scales too, which is the row nf4:double")
        return tuple(notes)

    def asked_as(self, served: Served) -> str:
        """The path: it serves under no other name."""
        return served.path
