"""The ladder from FP32 down to a memory target: what each step saves, as far as it is needed.

    FP32 · BF16 · + SDPA · INT8 · NF4, GPTQ, AWQ · GGUF Q4_K_M, Q3_K_M, Q2_K
         · quantised KV cache · shorter context

The order is that of what a step takes away: nothing that shows, then precision of the weights,
then of the cache, and the length of the text last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmfit.planning.comparing.published_quality import published_cost
from llmfit.planning.memory.context import max_context
from llmfit.planning.memory.kv_cache import unsuited
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import (
    SCHEMA_VERSION,
    Device,
    Hardware,
    KvCacheDtype,
    MemoryPrediction,
    ModelSpec,
    Status,
    Workload,
)

FP32_REASON = "planned only: no row runs in FP32"

_TORCH_STEPS = (
    ("BF16", "bf16"),
    ("+ SDPA", "sdpa"),
    ("INT8", "int8"),
    ("NF4", "nf4"),
    ("GPTQ INT4", "gptq"),
    ("AWQ INT4", "awq"),
)
_GGUF_STEPS = (
    ("GGUF Q4_K_M", "gguf"),
    ("GGUF Q3_K_M", "gguf:q3_k_m"),
    ("GGUF Q2_K", "gguf:q2_k"),
)
_CACHE_STEPS: tuple[KvCacheDtype, ...] = ("q8_0", "q4_0")
_GOOD_SHARE = 1 / 4
"""Of the context asked for: a format that holds so much goes before a smaller that holds more."""
_LEAST_CONTEXT = 3
"""A prompt token, and the two new ones that a rate needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of the ladder: a format with its workload, and the memory that it takes."""

    label: str
    backend: str | None
    """None for FP32, which no row runs."""
    device: Device
    """Whose memory it is: GGUF runs on the CPU, whatever the others run on."""
    workload: Workload
    kv_cache_dtype: KvCacheDtype | None = None
    predicted: MemoryPrediction | None
    max_context: int | None = None
    """Tokens of prompt and continuation that would fit the target; None where not known."""
    quality: str | None = None
    """Published change of perplexity, of other models; None where none is known."""
    fits: bool | None
    """Within the target: by the measurement, where there is one, else by the prediction."""
    status: Status | None = None
    """Of the row that was run to measure it; None where none was."""
    measured_bytes: int | None = None
    """Peak in the device's memory."""
    measured_total_bytes: int | None = None
    """With the driver's or the interpreter's share: what is held against the target."""
    measured_reason: str | None = None
    """Why it was not measured, or did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPath:
    """The ladder of one model as far down as the target asks for."""

    schema_version: int = SCHEMA_VERSION
    model: ModelSpec
    target_bytes: int
    device: Device
    """Where the PyTorch rungs run."""
    hardware: Hardware | None
    """The part of this machine that they run on; None where it is not here."""
    measured: bool
    """Whether measurements were asked for."""
    rungs: tuple[Rung, ...]
    """From the top; the last is the one that fits, where one does."""
    reached: bool
    notes: tuple[str, ...] = ()
    command: str | None = None


def ladder(
    spec: ModelSpec, workload: Workload, device: Device, target_bytes: int
) -> tuple[Rung, ...]:
    """Every rung there is, from FP32 down; ``device`` is that of the PyTorch formats.

    The rungs of a smaller cache stand on the smallest formats, that of a shorter context on the
    first that holds a good share of it. All predictions are None where the model's shape is not
    known.
    """
    rungs = [_fp32(spec, workload, device, target_bytes)]
    rungs += [
        _rung(spec, label, backend, workload, device, target_bytes)
        for label, backend in _TORCH_STEPS
    ]
    rungs += [
        _rung(spec, label, backend, workload, "cpu", target_bytes) for label, backend in _GGUF_STEPS
    ]
    return (*rungs, *_last_steps(spec, rungs, device, target_bytes))


def needed(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs down to the first that fits; all of them where none does."""
    for index, rung in enumerate(rungs):
        if rung.fits:
            return tuple(rungs[: index + 1])
    return tuple(rungs)


def _fp32(spec: ModelSpec, workload: Workload, device: Device, target_bytes: int) -> Rung:
    """BF16 with every value twice as wide; runtime is the same."""
    half = predict_memory(spec, "bf16", workload, device)
    predicted = None
    if half is not None:
        weights, cache = 2 * half.weights_bytes, 2 * half.kv_cache_bytes
        activations = 2 * half.activation_bytes
        predicted = replace(
            half,
            weights_bytes=weights,
            kv_cache_bytes=cache,
            activation_bytes=activations,
            total_bytes=weights + cache + activations + half.runtime_bytes,
        )
    return Rung(
        label="FP32",
        backend=None,
        device=device,
        workload=workload,
        predicted=predicted,
        quality="unchanged",
        fits=_fits(predicted, target_bytes),
        measured_reason=FP32_REASON,
    )


def _rung(
    spec: ModelSpec,
    label: str,
    backend: str,
    workload: Workload,
    device: Device,
    target_bytes: int,
    kv_cache_dtype: KvCacheDtype | None = None,
) -> Rung:
    predicted = predict_memory(spec, backend, workload, device, kv_cache_dtype=kv_cache_dtype)
    return Rung(
        label=label,
        backend=backend,
        device=device,
        workload=workload,
        kv_cache_dtype=kv_cache_dtype,
        predicted=predicted,
        max_context=max_context(
            spec, backend, workload, device, target_bytes, kv_cache_dtype=kv_cache_dtype
        ),
        quality=None if kv_cache_dtype is not None else _quality(backend),
        fits=_fits(predicted, target_bytes),
    )


def _last_steps(
    spec: ModelSpec, rungs: Sequence[Rung], device: Device, target_bytes: int
) -> Iterator[Rung]:
    """A quantised cache on the smallest format of each device, then a shorter context."""
    known = [rung for rung in rungs if rung.predicted is not None and rung.backend is not None]
    found: list[Rung] = []
    for place in dict.fromkeys((device, *(rung.device for rung in known))):
        there = [rung for rung in known if rung.device == place]
        if there:
            found += _smaller_caches(spec, min(there, key=_total), target_bytes)
    yield from found
    longest = _longest((*known, *found))
    if longest is not None:
        yield _shortened(spec, longest, target_bytes)


def _smaller_caches(spec: ModelSpec, base: Rung, target_bytes: int) -> Iterator[Rung]:
    if base.backend is None or base.predicted is None or not base.predicted.kv_cache_bytes:
        return
    for dtype in _CACHE_STEPS:
        if unsuited(spec, dtype) is None:
            yield _rung(
                spec,
                f"{base.label}, KV {dtype}",
                base.backend,
                base.workload,
                base.device,
                target_bytes,
                kv_cache_dtype=dtype,
            )


def _longest(rungs: Sequence[Rung]) -> Rung | None:
    """The first that holds a good share of the context within the target, else the one that
    holds most; None where none holds a part of it."""
    holding = [
        rung
        for rung in rungs
        if _LEAST_CONTEXT <= (rung.max_context or 0) < _context(rung.workload)
    ]
    for rung in holding:
        if (rung.max_context or 0) >= _GOOD_SHARE * _context(rung.workload):
            return rung
    return max(holding, key=lambda rung: rung.max_context or 0, default=None)


def _shortened(spec: ModelSpec, rung: Rung, target_bytes: int) -> Rung:
    """The rung with the largest context that fits, three quarters of it prompt or more."""
    tokens = rung.max_context or 0
    new = max(2, min(rung.workload.new_tokens, tokens // 4))
    assert rung.backend is not None  # FP32 has no largest context
    return _rung(
        spec,
        f"{rung.label}, {tokens:,} tokens",
        rung.backend,
        replace(rung.workload, prompt_tokens=tokens - new, new_tokens=new),
        rung.device,
        target_bytes,
        kv_cache_dtype=rung.kv_cache_dtype,
    )


def _context(workload: Workload) -> int:
    return workload.prompt_tokens + workload.new_tokens


def _total(rung: Rung) -> int:
    assert rung.predicted is not None  # chosen among those that are known
    return rung.predicted.total_bytes


def _fits(predicted: MemoryPrediction | None, target_bytes: int) -> bool | None:
    return None if predicted is None else predicted.total_bytes <= target_bytes


def _quality(backend: str) -> str | None:
    cost = published_cost(backend)
    if cost is None:
        return None
    return "unchanged" if cost.high == 0 else f"perplexity {cost.text}"
