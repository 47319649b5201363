"""What is compiled and timed: jobs ─► ``Measured``, a model eager and in each of its ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Case, speedup
from llmfit.device.execution import Marks, TorchDevice, is_out_of_memory
from llmfit.errors import first_line
from llmfit.records import Status
from llmfit.studies.base import StudyContext
from llmfit.studies.compiling.counting import CompileCounts, counted
from llmfit.studies.compiling.jobs import Job, logits
from llmfit.studies.compiling.sizes import CompileSizes
from llmfit.study_records import BenchmarkResult, Ratio

if TYPE_CHECKING:
    from torch import Tensor

EAGER = "eager"
FIRST_CALLS = 3
"""A graph of the GPU is recorded in the second call and replayed from the third on."""


# ---------------------------------------------------------------- compiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compiled model, or why there is none."""

    way: str
    model: Callable[..., Any] | None = None
    first_calls_s: tuple[float, ...] = ()
    """Each of the first calls, compiling among them."""
    counts: CompileCounts | None = None
    error: float | None = None
    """Of the output, relative to eager FP32's."""
    status: Status = "ok"
    reason: str | None = None


def compile_way(job: Job, way: str, exact: Tensor, device: TorchDevice) -> Compiled:
    """Compile the model with empty caches, and time its first calls one by one."""
    import torch
    from torch._inductor.utils import fresh_cache

    mode = way.removeprefix("BF16 ")
    compiled = torch.compile(job.model, mode=mode, dynamic=False)
    times = []
    try:
        with fresh_cache(), counted() as found, torch.inference_mode():
            for _ in range(FIRST_CALLS):
                seconds, output = timed_once(partial(logits, compiled, job.inputs, way), device)
                times.append(seconds)
            # A graph of the GPU writes its next output over this one.
            error = relative_error(output.clone(), exact)
    except (RuntimeError, ImportError, OSError) as exc:
        return Compiled(way=way, status=_status(exc), reason=_reason(exc))
    return Compiled(
        way=way,
        model=compiled,
        first_calls_s=tuple(times),
        counts=found.counts,
        error=error,
    )


def timed_once(call: Callable[[], Tensor], device: TorchDevice) -> tuple[float, Tensor]:
    """Seconds of one call, and what it gave."""
    marks = Marks(device)
    marks.mark()
    output = call()
    marks.mark()
    return marks.seconds()[0], output


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Euclidean norm of the difference ÷ that of ``exact``."""
    import torch

    apart = torch.linalg.norm(found.double() - exact.double())
    return float(apart / torch.linalg.norm(exact.double()))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerStart:
    """The first use of the compiler in this process."""

    seconds: float | None = None
    """Of compiling a function of one operation."""
    reason: str | None = None
    """Why nothing can be compiled here."""


def start_of_compiler(device: TorchDevice) -> CompilerStart:
    """Compile a trifle, so that what is paid once a process is not the first mode's."""
    import torch

    torch.compiler.reset()
    compiled = torch.compile(lambda x: (x + 1).sin())
    try:
        seconds, _ = timed_once(lambda: compiled(torch.ones(8, device=device)), device)
    except (RuntimeError, ImportError, OSError) as exc:
        return CompilerStart(reason=_reason(exc))
    return CompilerStart(seconds=seconds)


def _status(exc: Exception) -> Status:
    return "does_not_fit" if is_out_of_memory(exc) else "unavailable"


def _reason(exc: Exception) -> str:
    return f"{type(exc).__name__}: {first_line(exc)}"


# ---------------------------------------------------------------- timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to run a model, measured; eager is one."""

    name: str
    result: BenchmarkResult | None = None
    speedup: Ratio | None = None
    """Against eager FP32."""
    compiled: Compiled | None = None
    """None for eager."""

    @property
    def compile_s(self) -> float | None:
        """What the first calls took beyond as many later ones."""
        if self.result is None or self.compiled is None:
            return None
        first = self.compiled.first_calls_s
        return max(0.0, sum(first) - len(first) * self.result.latency_s.median)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model in all its ways, eager FP32 first."""

    job: Job
    ways: tuple[Way, ...]


def measure(context: StudyContext, job: Job, sizes: CompileSizes, why_not: str | None) -> Measured:
    """Compile ``job`` in each way, then time eager and all of them in turns.

    ``why_not``: the reason why nothing can be compiled here.
    """
    import torch

    device = context.device
    torch.compiler.reset()
    try:
        with torch.inference_mode():
            exact = logits(job.model, job.inputs, EAGER)
        compiled = []
        for index, way in enumerate(job.ways):
            context.progress(f"{job.name}: compiling", index, len(job.ways))
            compiled.append(
                Compiled(way=way, status="unavailable", reason=why_not)
                if why_not
                else compile_way(job, way, exact, device)
            )
        cases = [
            eager_case(job),
            *(case_of(job, each) for each in compiled if each.model is not None),
        ]
        results = context.bench.run_in_turns(
            cases,
            n_warmup=sizes.warmup,
            n_runs=sizes.runs,
            progress=partial(context.progress, f"{job.name}: timing"),
        )
    finally:
        torch.compiler.reset()
    found = dict(zip((case.name for case in cases), results, strict=True))
    ways = [Way(name=EAGER, result=results[0])]
    for each in compiled:
        result = found.get(_case_name(job, each.way))
        ratio = None if result is None else speedup(results[0], result)
        ways.append(Way(name=each.way, result=result, speedup=ratio, compiled=each))
    return Measured(job=job, ways=tuple(ways))


def eager_case(job: Job) -> Case:
    """The model as it is."""
    return _case(job, EAGER, job.model)


def case_of(job: Job, compiled: Compiled) -> Case:
    """The compiled model."""
    assert compiled.model is not None  # only those that compiled are timed
    return _case(job, compiled.way, compiled.model)


def _case(job: Job, way: str, model: Callable[..., Any]) -> Case:
    import torch

    def call(inputs: dict[str, Any]) -> None:
        with torch.inference_mode():
            logits(model, inputs, way)

    def plain(inputs: dict[str, Any]) -> None:
        with torch.no_grad():  # the counter of FLOPs does not see inference mode
            logits(job.model, inputs, way)

    return Case(
        name=_case_name(job, way),
        call=call,
        prepare=lambda: job.inputs,
        batch_size=job.items,
        model=job.model,
        kind="inference",
        uncompiled=plain,
    )


def _case_name(job: Job, way: str) -> str:
    return f"{job.name}, {way}"


def break_even(compile_s: float, eager_s: float, compiled_s: float) -> int | None:
    """Runs after which compiling and running took no longer than eager; None for no gain.

    The smallest n for which ``compile_s`` + n · ``compiled_s`` ≤ n · ``eager_s``.
    """
    gain = eager_s - compiled_s
    return ceil(compile_s / gain) if gain > 0 else None


def runs_to_pay(measured: Measured, way: Way) -> int | None:
    """Runs until compiling has paid; None where the compiled call is not really faster."""
    eager = measured.ways[0].result
    if way.compile_s is None or way.result is None or way.speedup is None or eager is None:
        return None
    if not way.speedup.real or way.speedup.value <= 1:
        return None
    return break_even(way.compile_s, eager.latency_s.median, way.result.latency_s.median)
