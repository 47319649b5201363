"""Sizes of the study of techniques, and what its measurements share.

A context and sizes in; the device, the room on it, a measured side and the held-out text out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfit.device.allocations import module_bytes
from llmfit.device.memory import free_bytes
from llmfit.errors import DoesNotFit
from llmfit.records import Device
from llmfit.studies.base import StudyContext
from llmfit.studies.techniques.found import Side
from llmfit.studies.tuning import HELD_OUT_TEXT, sequences
from llmfit.study_records import BenchmarkResult
from llmfit.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

TEXT_ACCURACY = "next tokens of the held-out text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of everything that is run. Tokens are those of a sequence, prompt or continuation."""

    questions: int
    """HellaSwag questions, and documents of the text, that every format answers."""
    tuned_questions: int
    """The same for distilled and pruned models and what they are held against."""
    prompt_tokens: int
    new_tokens: int
    repeats: int
    """Of each format's decoding."""
    runs: int
    """Of each timed case."""
    step_batch: int
    step_tokens: int
    attention_batch: int
    attention_tokens: int
    compile_batch: int
    compile_tokens: int
    cache_prompt: int
    cache_new: int
    held_out: int
    """Sequences of the held-out text."""
    batch: int
    tokens: int
    distil_steps: int
    student_layers: int
    dropped_layers: int
    recovery_steps: int
    qlora_steps: int
    rank: int


DEFAULT = Sizes(
    questions=40,
    tuned_questions=60,
    prompt_tokens=128,
    new_tokens=32,
    repeats=3,
    runs=4,
    step_batch=4,
    step_tokens=256,
    attention_batch=1,
    attention_tokens=1024,
    compile_batch=1,
    compile_tokens=128,
    cache_prompt=32,
    cache_new=64,
    held_out=16,
    batch=8,
    tokens=128,
    distil_steps=40,
    student_layers=2,
    dropped_layers=2,
    recovery_steps=20,
    qlora_steps=8,
    rank=8,
)
REFERENCE = Sizes(
    questions=600,
    tuned_questions=600,
    prompt_tokens=512,
    new_tokens=128,
    repeats=5,
    runs=20,
    step_batch=16,
    step_tokens=1024,
    attention_batch=8,
    attention_tokens=1024,
    compile_batch=8,
    compile_tokens=512,
    cache_prompt=128,
    cache_new=768,
    held_out=80,
    batch=16,
    tokens=128,
    distil_steps=2000,
    student_layers=2,
    dropped_layers=2,
    recovery_steps=500,
    qlora_steps=200,
    rank=16,
)


def require_room(need_bytes: int, context: StudyContext, what: str) -> None:
    """Raise DoesNotFit where ``what`` needs more than is free: a CPU would kill the process."""
    free = free_bytes(device_of(context))
    if need_bytes > free:
        raise DoesNotFit(
            f"{what} needs about {format_bytes(need_bytes)}, {format_bytes(free)} are free."
        )


def device_of(context: StudyContext) -> Device:
    """Where rows of a comparison run: they know no MPS."""
    return "cuda" if context.device == "cuda" else "cpu"


def side(name: str, result: BenchmarkResult, size: int | None) -> Side:
    """A measured case with those of its bytes that count."""
    return Side(name=name, seconds=result.latency_s.median, bytes=size)


def step_bytes(model: Any, batch: int, tokens: int) -> int:
    """About what a float32 step holds: weights, gradients, AdamW; logits thrice; layers' inputs."""
    config = model.config
    layer = 12 * config.hidden_size + 4 * config.intermediate_size
    activations = config.num_hidden_layers * layer + 3 * config.vocab_size
    return 4 * module_bytes(model) + 4 * batch * tokens * activations


def held_out(context: StudyContext, sizes: Sizes, tokens: int) -> Tensor:
    """``int64[N, tokens]`` of the text that nothing is trained on."""
    return sequences(HELD_OUT_TEXT, tokens=tokens, seed=context.seed, most=sizes.held_out)
