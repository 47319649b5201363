"""The decision guide: which techniques to try, given memory, task, accuracy and hardware.

    always                     16-bit arithmetic, flash attention, torch.compile, KV cache
    training                   below 24 GB: checkpointing, accumulation;
                               on a consumer GPU or the edge: QLoRA
    inference, edge            accuracy-critical: INT8; else by place: GPTQ on a server, AWQ or
                               GGUF Q4_K_M on a consumer GPU and a CPU, GGUF Q3_K_M or Q4_K_M
                               on the edge; below 16 GB: ONNX export, distillation as options

What each brings is as it was published, and beside it as own records measured it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from llmfit.errors import UsageError
from llmfit.planning.advice.measured_effects import Effect, measured_effect
from llmfit.planning.advice.situation import HARDWARE_KINDS, TASKS, HardwareKind, Task
from llmfit.planning.advice.techniques import TECHNIQUES, Effort, TechniqueName
from llmfit.records import RunRecord

Strength = Literal["always", "recommended", "option"]

CHECKPOINTING_BELOW_GB = 24.0
"""Training with less memory than this wants checkpointing and accumulation."""
OPTIONS_BELOW_GB = 16.0
"""Inference with less memory than this may want another runtime or a smaller model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One technique to apply, what to expect of it, and how to see for oneself."""

    technique: str
    strength: Strength
    why: str
    """When it applies, and why here."""
    expected: Effect
    """As published."""
    measured: Effect | None = None
    """By own records of this machine; None where there are none."""
    effort: Effort
    command: str
    """The llmfit command that measures it; MODEL stands for a folder or hub id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """The answer of ``llmfit advise --format json``."""

    schema_version: int = 1
    vram_available_gb: float
    task: Task
    accuracy_critical: bool
    hardware: HardwareKind
    advice: tuple[Advice, ...]


def recommend_optimization(
    vram_available_gb: float,
    task: Task,
    accuracy_critical: bool,
    hardware: HardwareKind,
    *,
    records: Sequence[RunRecord] = (),
) -> tuple[Advice, ...]:
    """Techniques to apply, the most general first; each with effect, source and command.

    ``vram_available_gb`` is in GB (10⁹ bytes), 0 where there is no GPU. ``records``, newest first,
    tell what was measured on this machine. Raises UsageError, naming the value.
    """
    _check_vram(vram_available_gb)
    if not _is_task(task):
        raise UsageError(f"unknown task {task!r}; known are {', '.join(TASKS)}.")
    if not _is_hardware(hardware):
        raise UsageError(f"unknown hardware {hardware!r}; known are {', '.join(HARDWARE_KINDS)}.")
    chosen = [
        *_always(task),
        *(
            _training(vram_available_gb, hardware)
            if task == "training"
            else _deployment(vram_available_gb, task, accuracy_critical, hardware)
        ),
    ]
    return tuple(
        _advice(name, strength, why, vram_available_gb, hardware, records)
        for name, strength, why in chosen
    )


def guide(
    vram_available_gb: float,
    task: Task,
    accuracy_critical: bool,
    hardware: HardwareKind,
    *,
    records: Sequence[RunRecord] = (),
) -> Guide:
    """The advice with what it was asked for. Raises UsageError."""
    return Guide(
        vram_available_gb=vram_available_gb,
        task=task,
        accuracy_critical=accuracy_critical,
        hardware=hardware,
        advice=recommend_optimization(
            vram_available_gb, task, accuracy_critical, hardware, records=records
        ),
    )


def _check_vram(gigabytes: object) -> None:
    number = isinstance(gigabytes, int | float) and not isinstance(gigabytes, bool)
    if not (number and math.isfinite(gigabytes) and gigabytes >= 0):  # type: ignore[arg-type, operator]
        raise UsageError(f"vram_available_gb must be a number of GB, 0 or more, not {gigabytes!r}.")


def _is_task(task: object) -> TypeGuard[Task]:
    return task in TASKS


def _is_hardware(hardware: object) -> TypeGuard[HardwareKind]:
    return hardware in HARDWARE_KINDS


# ---------------------------------------------------------------- the rules

Rule = tuple[TechniqueName, Strength, str]


def _always(task: Task) -> Iterator[Rule]:
    yield "bf16", "always", "BF16: half the bytes of FP32 at its range of exponents"
    yield (
        "flash",
        "always",
        "prompts beyond 512 tokens: scores of N × N never reach memory; below that it hardly shows",
    )
    yield "compile", "always", "fuses small operations; worth its compile time on long runs"
    sampling = ", when samples are drawn; a training step has no cache"
    yield (
        "kv_cache",
        "always",
        f"each new token reads the keys and values of those before it instead of computing them "
        f"again{sampling if task == 'training' else ''}",
    )


def _training(vram_gb: float, hardware: HardwareKind) -> Iterator[Rule]:
    if vram_gb < CHECKPOINTING_BELOW_GB:
        below = f"{vram_gb:g} GB is below {CHECKPOINTING_BELOW_GB:g} GB"
        yield "checkpointing", "recommended", f"{below}: activations are computed again, not kept"
        yield "accumulation", "recommended", f"{below}: a large batch as several small ones"
    if hardware in ("consumer_gpu", "edge"):
        yield "qlora", "recommended", f"{_place(hardware)}: only small adapters are trained"


def _deployment(
    vram_gb: float, task: Task, accuracy_critical: bool, hardware: HardwareKind
) -> Iterator[Rule]:
    place = "edge" if task == "edge" else hardware
    where = _place(place)
    if accuracy_critical:
        yield "int8", "recommended", "accuracy is critical: 8 bits lose next to nothing"
    else:
        for name in _FORMATS[place]:
            yield name, "recommended", f"{where}, accuracy not critical: {_FORMAT_WHY[name]}"
    if vram_gb < OPTIONS_BELOW_GB:
        below = f"{vram_gb:g} GB is below {OPTIONS_BELOW_GB:g} GB"
        yield "onnx", "option", f"{below}: a runtime without PyTorch"
        yield "distillation", "option", f"{below}: a smaller model taught by the large one"


_FORMATS: dict[HardwareKind, tuple[TechniqueName, ...]] = {
    "server_gpu": ("gptq",),
    "consumer_gpu": ("awq", "q4_k_m"),
    "cpu": ("q4_k_m", "awq"),
    "edge": ("q3_k_m", "q4_k_m"),
}
"""Deploy formats by place, the likelier first."""

_FORMAT_WHY: dict[TechniqueName, str] = {
    "gptq": "4 bits with the widest choice of fast kernels",
    "awq": "4 bits that keep the weights that matter most",
    "q4_k_m": "4 to 6 bits, runs without a GPU too",
    "q3_k_m": "the smallest with a bearable loss, on models of 8 B and more",
}


def _place(hardware: HardwareKind) -> str:
    words = {"server_gpu": "server GPU", "consumer_gpu": "consumer GPU", "cpu": "CPU"}
    return words.get(hardware, "edge device")


# ---------------------------------------------------------------- one technique


def _advice(
    name: TechniqueName,
    strength: Strength,
    why: str,
    vram_gb: float,
    hardware: HardwareKind,
    records: Sequence[RunRecord],
) -> Advice:
    technique = TECHNIQUES[name]
    bounded = vram_gb > 0 and _has_gpu(hardware) and technique.command.startswith("llmfit compare")
    pair = technique.pair
    advice = Advice(
        technique=technique.label,
        strength=strength,
        why=why,
        expected=technique.expected,
        measured=None if pair is None else measured_effect(records, *pair),
        effort=technique.effort,
        command=technique.command + (f" --gpu-gb {vram_gb:g}" if bounded else ""),
    )
    if name == "int8" and not _has_gpu(hardware):
        # llama.cpp's 8 bits are the other way to them where there is no GPU.
        rows = "llmfit compare MODEL --backends bf16,int8,gguf:q8_0"
        advice = replace(advice, command=rows)
    return advice


def _has_gpu(hardware: HardwareKind) -> bool:
    return hardware in ("server_gpu", "consumer_gpu")
