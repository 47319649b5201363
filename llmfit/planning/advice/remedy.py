"""What to change first where a format does not fit its budget: one change that suffices by itself.

Tried in the order of what it takes away: nothing but speed of the prefill, a little of the text,
precision of the KV cache, precision of the weights, much of the text; running from RAM and disk
comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llmfit.planning.memory.kv_cache import unsuited
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Device, KvCacheDtype, ModelSpec, Workload
from llmfit.units import format_bytes

OFFLOAD = "offload"
"""Backend id of the row that keeps weights beyond the budget elsewhere."""

_CHUNK_TOKENS = 512
"""llama.cpp's own physical batch; GPUs reach their arithmetic rate with fewer tokens."""
_LITTLE_LESS = 3 / 4
"""Share of the prompt that is left where it is shortened a little. Less would cost more than a
quantised cache, which holds the same text in 0.53 or 0.28 of the bytes."""
_LEAST_PROMPT_TOKENS = 128
"""A prompt below this serves another purpose than the one that was asked about."""
_UNQUANTISED_CACHE = frozenset({"bf16", "compiled", OFFLOAD})
"""Rows whose KV cache stays in 16 bits: the reference, constant shapes, and weights elsewhere."""
_CACHE_TYPES: tuple[KvCacheDtype, ...] = ("q8_0", "q4_0")
_SMALLER: dict[Device, tuple[str, ...]] = {
    "cuda": ("int8", "awq", "gptq", "nf4"),
    "cpu": ("int8", "gguf:q6_k", "gguf:q5_k_m", "gguf:q4_k_m", "gguf:q3_k_m", "gguf:q2_k"),
}
"""Formats from the most bits down, those of equal bits by the quality that is published of them."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A row that does not fit."""

    spec: ModelSpec
    backend: str
    workload: Workload
    device: Device
    budget_bytes: int
    kv_cache_dtype: KvCacheDtype | None
    ram_bytes: int | None

    def need_bytes(self) -> int | None:
        """Predicted peak; None where it is not known."""
        memory = predict_memory(
            self.spec,
            self.backend,
            self.workload,
            self.device,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        return None if memory is None else memory.total_bytes

    def fits(self) -> bool:
        """Whether it is known to fit."""
        need = self.need_bytes()
        return need is not None and need <= self.budget_bytes


def first_change(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    device: Device,
    *,
    budget_bytes: int,
    ram_bytes: int | None = None,
    kv_cache_dtype: KvCacheDtype | None = None,
) -> str | None:
    """The first single change by which a row would fit, as options of the command line.

    ``ram_bytes`` is what a row on the CPU may take; None is not known. None where the row fits as
    it is, or its memory is not known.
    """
    case = _Case(spec, backend, workload, device, budget_bytes, kv_cache_dtype, ram_bytes)
    need = case.need_bytes()
    if need is None or need <= budget_bytes:
        return None
    for change in _CHANGES:
        said = change(case)
        if said is not None:
            return said
    return None


def _chunked_prefill(case: _Case) -> str | None:
    """Less of the prompt at once: the same tokens with fewer activations."""
    longest = case.workload.prefill_chunk or case.workload.prompt_tokens
    if longest <= _CHUNK_TOKENS:
        return None
    chunked = replace(case, workload=replace(case.workload, prefill_chunk=_CHUNK_TOKENS))
    return f"--prefill-chunk {_CHUNK_TOKENS}" if chunked.fits() else None


def _slightly_shorter_prompt(case: _Case) -> str | None:
    """The longest prompt that fits, where that is little less than was asked for."""
    return _shorter_prompt(case, int(case.workload.prompt_tokens * _LITTLE_LESS))


def _much_shorter_prompt(case: _Case) -> str | None:
    """The longest prompt that fits at all."""
    return _shorter_prompt(case, _LEAST_PROMPT_TOKENS)


def _shorter_prompt(case: _Case, least_tokens: int) -> str | None:
    """The longest prompt that fits, of at least so many tokens."""
    asked = case.workload.prompt_tokens

    def shortened(prompt_tokens: int) -> _Case:
        return replace(case, workload=replace(case.workload, prompt_tokens=prompt_tokens))

    fitting, too_long = max(1, least_tokens), asked
    if fitting >= asked or not shortened(fitting).fits():
        return None
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if shortened(middle).fits():
            fitting = middle
        else:
            too_long = middle
    return f"--prompt-tokens {fitting}"


def _smaller_cache(case: _Case) -> str | None:
    """A KV cache of fewer bits, where the row and the model can have one."""
    if case.kv_cache_dtype is not None or case.backend in _UNQUANTISED_CACHE:
        return None
    for dtype in _CACHE_TYPES:
        if unsuited(case.spec, dtype) is None and replace(case, kv_cache_dtype=dtype).fits():
            return f"--kv-cache-dtype {dtype}"
    return None


def _smaller_format(case: _Case) -> str | None:
    """The format of most bits that fits; llama.cpp on the CPU where none does on the GPU."""
    if case.spec.quantization is not None:  # other formats are made from unquantised weights
        return None
    need = case.need_bytes()
    for backend in _SMALLER[case.device]:
        smaller = replace(case, backend=backend)
        smaller_need = smaller.need_bytes()
        if smaller_need is None or need is None or smaller_need >= need:
            continue
        if smaller.fits():
            return f"--backends {backend}, which needs {format_bytes(smaller_need)}"
    if case.device == "cpu":
        return None
    on_cpu = replace(case, backend="gguf", device="cpu").need_bytes()
    if on_cpu is None or (case.ram_bytes is not None and on_cpu > case.ram_bytes):
        return None
    return f"--backends gguf, on the CPU, which needs {format_bytes(on_cpu)} of RAM"


def _offload(case: _Case) -> str | None:
    """The rest of the weights elsewhere: it runs, at the rate of the slowest memory."""
    if case.backend == OFFLOAD or case.spec.quantization is not None:
        return None
    where = "in RAM and on disk" if case.device == "cuda" else "on disk"
    return f"--backends {OFFLOAD}, which keeps {where} what does not fit, slowly"


_CHANGES: tuple[Callable[[_Case], str | None], ...] = (
    _chunked_prefill,
    _slightly_shorter_prompt,
    _smaller_cache,
    _smaller_format,
    _much_shorter_prompt,
    _offload,
)
