"""Sizes ─► the graph, its answers, and its time and memory beside eager PyTorch's, as ``Found``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmfit.benchmark import Benchmark, Case
from llmfit.device.allocations import module_bytes
from llmfit.device.memory import MemoryMeter, return_freed_memory
from llmfit.errors import StudyError
from llmfit.studies.base import StudyContext
from llmfit.studies.onnx_export.comparing import (
    Apart,
    Likeness,
    Validity,
    compare,
    other_sizes,
    validity,
    whole_pass,
)
from llmfit.studies.onnx_export.export import Exported, export
from llmfit.studies.onnx_export.runners import EagerRunner, OnnxRunner, Runner, greedy
from llmfit.studies.tuning import HELD_OUT_TEXT, load_model, sequences
from llmfit.study_records import BenchmarkResult

if TYPE_CHECKING:
    from torch import Tensor

_EAGER, RUNTIME = "PyTorch eager", "onnxruntime"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_INSTALL = 'pip install "llmfit[studies]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The study's sizes."""

    prompt_tokens: int
    new_tokens: int
    prompt_runs: int
    step_runs: int


DEFAULT = Sizes(prompt_tokens=128, new_tokens=48, prompt_runs=15, step_runs=40)
REFERENCE = Sizes(prompt_tokens=512, new_tokens=256, prompt_runs=20, step_runs=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One way of running the model."""

    name: str
    memory_bytes: int | None
    """Growth of the resident set by weights and generating."""
    prompt: BenchmarkResult
    step: BenchmarkResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that the study measured."""

    exported: Exported
    weights_bytes: int
    """Of the model in float32."""
    load_s: float
    """From the file to a session."""
    eager: Ran
    runtime: Ran
    generated: Likeness
    """By onnxruntime, against eager PyTorch."""
    whole_pass: Apart
    other_sizes: Apart
    validity: Validity

    @property
    def ran(self) -> tuple[Ran, Ran]:
        """Both ways of running the model, eager PyTorch first."""
        return self.eager, self.runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """Why nothing was measured."""

    status: Literal["unavailable", "failed"]
    reason: str


def measure(context: StudyContext, sizes: Sizes) -> Found | NotRun:
    """The embedded model exported and run, on the CPU wherever the study is."""
    reason = _missing()
    if reason is not None:
        return NotRun(status="unavailable", reason=reason)
    model = load_model("cpu", in_float32=True)
    with _folder(context.out) as folder:
        context.progress("export", 0, 1)
        try:
            exported = export(model, folder / "model.onnx")
        except StudyError as error:
            return NotRun(status="failed", reason=error.message)
        return _measured(context, sizes, model, exported)


def _missing() -> str | None:
    """Which packages are not there and how to install them; None where all are."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    return f"{', '.join(absent)} not installed: {_INSTALL}" if absent else None


@contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """``out``/onnx, which stays, or a folder for the time of the study."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="llmfit-onnx-") as name:
            yield Path(name)
        return
    kept = Path(out) / "onnx"
    kept.mkdir(parents=True, exist_ok=True)
    yield kept


def _measured(context: StudyContext, sizes: Sizes, model: Any, exported: Exported) -> Found:
    import onnxruntime  # noqa: F401 - before memory is measured: its code is not the model's

    bench = context.bench if context.device == "cpu" else Benchmark("cpu")
    prompt = sequences(HELD_OUT_TEXT, tokens=sizes.prompt_tokens, seed=context.seed, most=1)
    few = min(4, sizes.new_tokens)
    context.progress("memory", 0, 1)
    greedy(EagerRunner(model), prompt, 1)  # torch's own buffers are not the model's either
    eager, _, eager_bytes = _with_memory(lambda: EagerRunner(deepcopy(model)), prompt, few)
    there, load_s, there_bytes = _with_memory(
        lambda: OnnxRunner(exported.path, model.config), prompt, few
    )
    context.progress("generation", 0, 1)
    ours = greedy(eager, prompt, sizes.new_tokens)
    theirs = greedy(there, prompt, sizes.new_tokens)
    prompts, steps = _timed(bench, {_EAGER: eager, RUNTIME: there}, prompt, sizes, context)
    return Found(
        exported=exported,
        weights_bytes=module_bytes(model),
        load_s=load_s,
        eager=Ran(name=_EAGER, memory_bytes=eager_bytes, prompt=prompts[0], step=steps[0]),
        runtime=Ran(name=RUNTIME, memory_bytes=there_bytes, prompt=prompts[1], step=steps[1]),
        generated=compare(ours, theirs),
        whole_pass=whole_pass(there, prompt, theirs),
        other_sizes=other_sizes(model, exported.path),
        validity=validity(exported.path),
    )


def _with_memory(make: Any, prompt: Tensor, new_tokens: int) -> tuple[Runner, float, int | None]:
    """A new runner, the seconds of making it, and what the process grew by until it generated."""
    return_freed_memory()  # else what the export freed would hold the weights, and nothing grew
    meter = MemoryMeter("cpu")
    began = time.perf_counter()
    runner: Runner = make()
    load_s = time.perf_counter() - began
    greedy(runner, prompt, new_tokens)
    return runner, load_s, meter.read().peak_ram_bytes


def _timed(
    bench: Benchmark,
    runners: dict[str, Runner],
    prompt: Tensor,
    sizes: Sizes,
    context: StudyContext,
) -> tuple[tuple[BenchmarkResult, ...], tuple[BenchmarkResult, ...]]:
    """Of each runner the prompt, and a decode step after it; the runners take turns."""

    def prompt_case(name: str, runner: Runner) -> Case:
        return Case(
            name=f"{name}, prompt",
            call=lambda past: runner.forward(prompt, past),
            prepare=runner.empty,
            batch_size=prompt.shape[1],
            kind="inference",
            count_flops=False,
        )

    def step_case(name: str, runner: Runner) -> Case:
        logits, held = runner.forward(prompt, runner.empty())
        ids = logits[:, -1].argmax(-1, keepdim=True)
        return Case(
            name=f"{name}, decode step",
            call=lambda past: runner.forward(ids, past),
            prepare=lambda: runner.copy(held),
            kind="inference",
            count_flops=False,
        )

    def turns(stage: str, cases: list[Case], runs: int) -> tuple[BenchmarkResult, ...]:
        return bench.run_in_turns(
            cases,
            n_runs=runs,
            progress=lambda done, total: context.progress(stage, done, total),
        )

    return (
        turns("prompt", [prompt_case(*pair) for pair in runners.items()], sizes.prompt_runs),
        turns("decode", [step_case(*pair) for pair in runners.items()], sizes.step_runs),
    )
