"""vLLM."""

from __future__ import annotations

from llmfit.engines.base import Engine, Served, program_missing, script

_AT_LOADING = {"int8wo": "int8_per_channel_weight_only", "fp8": "fp8_per_channel"}
"""Formats that it makes from the model's own weights when it loads them. Source: vLLM 0.33,
QuantizationMethods, which has bitsandbytes no more."""


class Vllm(Engine):
    """``vllm serve``."""

    id = "vllm"
    label = "vLLM"
    kind = "folder"
    formats = ("bf16", "sdpa", "compiled", "int8wo", "fp8", "gptq", "awq")
    devices = frozenset({"cuda"})
    install = "pip install 'vllm>=0.33'"

    def missing(self) -> str | None:
        """See ``Engine.missing``."""
        return program_missing("vllm")

    def command(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command``."""
        share = None if served.gpu_share is None else int(100 * served.gpu_share) / 100
        method = _AT_LOADING.get(served.backend.partition(":")[0])
        return (
            "vllm", "serve", served.path, "--served-model-name", served.name,
            "--max-model-len", str(served.context), "--dtype", "bfloat16",
            *(() if share is None else ("--gpu-memory-utilization", f"{share:.2f}")),
            *(() if method is None else ("--quantization", method)),
            *(("--trust-remote-code",) if served.trust_remote_code else ()),
            "--host", served.host, "--port", str(served.port),
        )  # fmt: skip

    def command_here(self, served: Served) -> tuple[str, ...]:
        """See ``Engine.command_here``."""
        return (script("vllm"), *self.command(served)[1:])
