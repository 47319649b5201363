"""torch.compile's modes: what a compiled call gains, what compiling costs, when that is paid back.

model ─► compile in each mode, caches empty ─► seconds, graphs, breaks, recompiles
      └► eager and all modes in turns ─► time of a call ─► runs until compiling has paid
a break on purpose, shapes that change ─► the counters are seen to count
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Case, speedup
from llmfit.device.execution import Marks, TorchDevice, is_out_of_memory
from llmfit.models import data_path
from llmfit.records import Status
from llmfit.studies.base import StudyContext, cell, ratio_cell, share_of, time_cell
from llmfit.studies.reference import COMPILE, COMPILE_OF
from llmfit.study_records import (
    BenchmarkResult,
    Cell,
    Ratio,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_ratio, format_seconds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TITLE = "torch.compile: what it gains and when it pays"
QUESTION = "How much faster is a compiled model, and after how many runs has compiling paid?"

EAGER = "eager"
MODES = ("default", "reduce-overhead", "max-autotune")
FIRST_CALLS = 3
"""A graph of the GPU is recorded in the second call and replayed from the third on."""
FP32_ERROR, BF16_ERROR = 1e-3, 0.16
"""Largest relative error (Euclidean norm) of outputs. A choice: far above what another order of
additions does (1e-6), and far below what a wrong kernel does; BF16's is 20 steps of its numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSizes:
    """What is compiled, in which ways, and how often it runs."""

    text_tokens: int
    text_layers: int
    text_ways: tuple[str, ...]
    image_batch: int
    image_pixels: int
    image_blocks: tuple[int, ...]
    """Blocks of each stage: 3, 4, 6, 3 is ResNet-50."""
    image_ways: tuple[str, ...]
    """Modes; one that begins with ``BF16`` is under autocast."""
    warmup: int
    runs: int


BF16_DEFAULT = "BF16 default"
DEFAULT = CompileSizes(
    text_tokens=32,
    text_layers=6,
    text_ways=MODES,
    image_batch=4,
    image_pixels=64,
    image_blocks=(1, 1, 1, 1),
    image_ways=("default", BF16_DEFAULT),
    warmup=3,
    runs=20,
)
REFERENCE = CompileSizes(
    text_tokens=512,
    text_layers=6,
    text_ways=(*MODES, BF16_DEFAULT),
    image_batch=32,
    image_pixels=224,
    image_blocks=(3, 4, 6, 3),
    image_ways=(*MODES, BF16_DEFAULT),
    warmup=5,
    runs=30,
)


def run(context: StudyContext) -> StudyResult:
    """Both models eager and in each mode, then the counters on cases whose counts are known."""
    return run_sizes(context, REFERENCE if context.preset == "reference" else DEFAULT)


def run_sizes(context: StudyContext, sizes: CompileSizes) -> StudyResult:
    """The study with these sizes."""
    device = context.device
    context.progress("start of the compiler", 0, 0)
    start = start_of_compiler(device)
    jobs = (text_job(sizes, device, context.seed), image_job(sizes, device, context.seed))
    groups = [measure(context, job, sizes, start.reason) for job in jobs]
    context.progress("counters", 0, 0)
    counted = count_known_cases(device)
    return StudyResult(
        study="compile",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=device,
        settings={
            "seed": context.seed,
            **{
                key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
                for key, value in asdict(sizes).items()
            },
        },
        tables=(*map(time_table, groups), *map(cost_table, groups), counters_table(counted)),
        plots=tuple(map(total_plot, groups)),
        checks=(*(each for group in groups for each in output_checks(group)), *_counts(counted)),
        findings=tuple(line for group in groups for line in findings(group)),
        reference=COMPILE_OF,
        notes=notes(device, start, groups),
        benchmarks=tuple(way.result for group in groups for way in group.ways if way.result),
    )


# ---------------------------------------------------------------- what is compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model in evaluation mode, its inputs, and the ways to run it."""

    name: str
    model: torch.nn.Module
    inputs: dict[str, Any]
    ways: tuple[str, ...]
    published: bool = False
    """The published figures are of such a model."""


def text_job(sizes: CompileSizes, device: TorchDevice, seed: int) -> Job:
    """The embedded language model on a short prompt, ``input_ids: int64[1, T]``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(data_path("embedded"))
    config.num_hidden_layers = sizes.text_layers
    model = AutoModelForCausalLM.from_pretrained(
        data_path("embedded"), config=config, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (1, sizes.text_tokens), generator=generator)
    return Job(
        name="language model",
        model=model.to(device).eval(),
        inputs={"input_ids": ids.to(device), "use_cache": False},
        ways=sizes.text_ways,
    )


def image_job(sizes: CompileSizes, device: TorchDevice, seed: int) -> Job:
    """A ResNet with random weights, ``pixel_values: float32[B, 3, P, P]``."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    config = ResNetConfig(num_labels=1000, depths=list(sizes.image_blocks))
    shape = sizes.image_batch, 3, sizes.image_pixels, sizes.image_pixels
    return Job(
        name=f"ResNet-{2 + 3 * sum(sizes.image_blocks)}",
        model=ResNetForImageClassification(config).to(device).eval(),
        inputs={"pixel_values": torch.randn(shape).to(device)},
        ways=sizes.image_ways,
        published=True,
    )


def logits(model: Callable[..., Any], inputs: dict[str, Any], way: str) -> Tensor:
    """The model's output, under autocast for a way in BF16."""
    import torch

    device = next(value.device.type for value in inputs.values() if hasattr(value, "device"))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=is_bf16(way)):
        found: Tensor = model(**inputs).logits
    return found


def is_bf16(way: str) -> bool:
    """True for a way that computes in BF16."""
    return way.startswith("BF16")


# ---------------------------------------------------------------- compiling, counted


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileCounts:
    """What torch's own counters say of what ran."""

    graphs: int
    breaks: int
    recompiles: int
    """Compilations of code that had been compiled before."""
    seconds: float
    """Inside torch's compiler, by its own clock."""


class Counted:
    """Filled when ``counted`` ends."""

    def __init__(self) -> None:
        self.counts: CompileCounts | None = None


@contextmanager
def counted() -> Iterator[Counted]:
    """Count graphs, graph breaks and recompiles of what runs within.

    Compilations that failed, as those beyond torch's limit of recompiles, are not counted.
    """
    from torch._dynamo.utils import (
        clear_compilation_metrics,
        counters,
        get_compilation_metrics,
    )

    counters.clear()
    clear_compilation_metrics()
    found = Counted()
    yield found
    # ``0/2`` is the third compilation of the first frame; one without operations has no graph.
    made = [each for each in get_compilation_metrics() if each.fail_type is None]
    again = _again(str(each.compile_id) for each in made)
    graphs = int(counters["stats"]["unique_graphs"])
    graphs_again = _again(str(each.compile_id) for each in made if each.graph_op_count)
    found.counts = CompileCounts(
        graphs=graphs,
        # torch's counter passes over a branch on a tensor's value, which makes one more graph.
        breaks=max(sum(counters["graph_break"].values()), graphs - graphs_again - 1),
        recompiles=again,
        seconds=sum(each.entire_frame_compile_time_s or 0.0 for each in made),
    )


def _again(compile_ids: Iterable[str]) -> int:
    """Of compilations ``frame/number``, those of a frame that was compiled before."""
    frames = Counter(each.partition("/")[0] for each in compile_ids)
    return sum(count - 1 for count in frames.values())


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
        return Compiled(way=way, status=_status(exc), reason=_first_line(exc))
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
        return CompilerStart(reason=_first_line(exc))
    return CompilerStart(seconds=seconds)


def _status(exc: Exception) -> Status:
    return "does_not_fit" if is_out_of_memory(exc) else "unavailable"


def _first_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".strip().split("\n")[0]


# ---------------------------------------------------------------- measuring


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
        batch_size=_items(job),
        model=job.model,
        kind="inference",
        uncompiled=plain,
    )


def _case_name(job: Job, way: str) -> str:
    return f"{job.name}, {way}"


def _items(job: Job) -> int:
    """Images or tokens of a call."""
    if "input_ids" in job.inputs:
        return int(job.inputs["input_ids"].numel())
    return len(job.inputs["pixel_values"])


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


# ---------------------------------------------------------------- known cases


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCase:
    """A function whose graphs, breaks and recompiles are known before it is compiled."""

    name: str
    expected: tuple[int, int, int]
    """Graphs, breaks, recompiles."""
    found: CompileCounts
    explained: int
    """Graph breaks by ``torch._dynamo.explain`` for the first call."""


def whole(x: Tensor) -> Tensor:
    """Nothing in it ends a graph."""
    return x.sin().cos()


def broken(x: Tensor) -> Tensor:
    """A graph break between two operations."""
    import torch

    y = x.sin()
    torch._dynamo.graph_break()
    return y.cos()


def count_known_cases(device: TorchDevice) -> tuple[KnownCase, ...]:
    """Count what must be 1 graph; a break, so 2; 3 shapes, so 2 recompiles; and 3 with 1 graph."""
    import torch

    same = [torch.ones(4, device=device) for _ in range(3)]
    shapes = [torch.ones(size, device=device) for size in (4, 5, 6)]
    return (
        known_case("one shape", whole, same, dynamic=False, expected=(1, 0, 0)),
        known_case("a break on purpose", broken, same, dynamic=False, expected=(2, 1, 0)),
        known_case("three shapes", whole, shapes, dynamic=False, expected=(3, 0, 2)),
        known_case("three, dynamic", whole, shapes, dynamic=True, expected=(1, 0, 0)),
    )


def known_case(
    name: str,
    function: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor],
    *,
    dynamic: bool,
    expected: tuple[int, int, int],
) -> KnownCase:
    """Call the compiled function on ``inputs``. Graphs are run by torch, not by inductor."""
    import torch

    explained = torch._dynamo.explain(function)(inputs[0])
    torch.compiler.reset()
    try:
        with counted() as found:
            compiled = torch.compile(function, backend="eager", dynamic=dynamic)
            for each in inputs:
                compiled(each)
    finally:
        torch.compiler.reset()
    assert found.counts is not None  # the context has ended
    return KnownCase(
        name=name,
        expected=expected,
        found=found.counts,
        explained=explained.graph_break_count,
    )


# ---------------------------------------------------------------- tables


def time_table(measured: Measured) -> StudyTable:
    """Time of a call; for the ResNet the published speed-ups beside."""
    theirs = (
        (StudyColumn(key="theirs", head="speed-up", under="RTX 4090", unit="ratio"),)
        if measured.job.published
        else ()
    )
    notes = ("speed-up of RTX 4090: of ResNet-50, batch 32",) if theirs else ()
    return StudyTable(
        title=f"Inference of the {measured.job.name}, {_size(measured.job)}",
        head="mode",
        columns=(
            StudyColumn(key="time", head="time", unit="s"),
            StudyColumn(key="speedup", head="speed-up", under="ours", unit="ratio"),
            *theirs,
            StudyColumn(key="memory", head="memory", under="ratio", unit="ratio"),
            StudyColumn(key="error", head="error of", under="output", unit="number", needed=False),
        ),
        rows=tuple(_row(way, _time_cells(measured, way)) for way in measured.ways),
        notes=notes,
    )


def _time_cells(measured: Measured, way: Way) -> dict[str, Cell]:
    eager, result = measured.ways[0].result, way.result
    if result is None or eager is None:
        return {}
    return {
        "time": time_cell(result),
        "speedup": cell(1.0) if way.speedup is None else ratio_cell(way.speedup),
        "theirs": _published(way.name),
        "memory": share_of(result.peak_bytes, eager.peak_bytes),
        "error": cell(None if way.compiled is None else way.compiled.error),
    }


def _published(way: str) -> Cell:
    """The published speed-up; it is of one mode, which is taken for the default one."""
    names = {EAGER: "eager FP32", "default": "compiled FP32", BF16_DEFAULT: "compiled BF16"}
    if way not in names:
        return cell(None)
    return share_of(COMPILE["eager FP32"].seconds, COMPILE[names[way]].seconds)


def cost_table(measured: Measured) -> StudyTable:
    """What compiling takes, and when it has paid."""
    return StudyTable(
        title=f"Compiling the {measured.job.name}",
        head="mode",
        columns=(
            StudyColumn(key="compile", head="compile", under="time", unit="s"),
            StudyColumn(key="inside", head="torch's", under="own clock", unit="s", needed=False),
            StudyColumn(key="run", head="run", under="time", unit="s"),
            StudyColumn(key="pays", head="pays after", under="runs", unit="count"),
            StudyColumn(key="graphs", head="graphs", unit="count"),
            StudyColumn(key="breaks", head="graph", under="breaks", unit="count"),
            StudyColumn(key="recompiles", head="recompiles", unit="count"),
        ),
        rows=tuple(_row(way, _cost_cells(measured, way)) for way in measured.ways[1:]),
        notes=(
            f"compile time: what the first {FIRST_CALLS} calls took beyond as many later ones, "
            "with empty caches; torch's own clock runs inside its compiler",
            *(
                f"{way.name} pays after no known number of runs: no gain beyond the noise"
                for way in measured.ways[1:]
                if way.result is not None and runs_to_pay(measured, way) is None
            ),
        ),
    )


def _cost_cells(measured: Measured, way: Way) -> dict[str, Cell]:
    counts = None if way.compiled is None else way.compiled.counts
    if way.result is None or counts is None:
        return {}
    return {
        "compile": cell(way.compile_s),
        "inside": cell(counts.seconds),
        "run": time_cell(way.result),
        "pays": cell(runs_to_pay(measured, way)),
        "graphs": cell(counts.graphs),
        "breaks": cell(counts.breaks),
        "recompiles": cell(counts.recompiles),
    }


def counters_table(cases: Sequence[KnownCase]) -> StudyTable:
    """The counters on cases whose counts are known."""
    return StudyTable(
        title="The counters, where the counts are known beforehand",
        head="case",
        columns=(
            StudyColumn(key="graphs", head="graphs", unit="count"),
            StudyColumn(key="breaks", head="graph", under="breaks", unit="count"),
            StudyColumn(key="recompiles", head="recompiles", unit="count"),
            StudyColumn(key="expected", head="expected", unit="text"),
        ),
        rows=tuple(
            StudyRow(
                name=case.name,
                cells={
                    "graphs": cell(case.found.graphs),
                    "breaks": cell(case.found.breaks),
                    "recompiles": cell(case.found.recompiles),
                    "expected": cell(", ".join(map(str, case.expected))),
                },
            )
            for case in cases
        ),
    )


def _row(way: Way, cells: dict[str, Cell]) -> StudyRow:
    compiled = way.compiled
    return StudyRow(
        name=way.name,
        status="ok" if compiled is None else compiled.status,
        reason=None if compiled is None else compiled.reason,
        cells=cells,
    )


def _size(job: Job) -> str:
    return f"{_items(job):,} {'tokens' if 'input_ids' in job.inputs else 'images'}"


# ---------------------------------------------------------------- plot, checks, findings


def total_plot(measured: Measured) -> StudyPlot:
    """Seconds after so many runs, compiling included: lines meet where it has paid."""
    runs = tuple(float(10**power) for power in range(6))
    return StudyPlot(
        title=f"{measured.job.name}: compiling and running",
        kind="lines",
        x_label="runs",
        y_label="seconds in all",
        log_x=True,
        log_y=True,
        series=tuple(
            Series(
                name=way.name,
                x=runs,
                y=tuple((way.compile_s or 0.0) + n * way.result.latency_s.median for n in runs),
            )
            for way in measured.ways
            if way.result is not None
        ),
    )


def output_checks(measured: Measured) -> tuple[StudyCheck, ...]:
    """Compiled outputs are eager's."""
    return tuple(
        _output_check(measured.job, way.compiled)
        for way in measured.ways
        if way.compiled is not None
    )


def _output_check(job: Job, compiled: Compiled) -> StudyCheck:
    name = f"{job.name}, {compiled.way}: output is eager's"
    if compiled.error is None:
        return StudyCheck(name=name, holds=None, detail=compiled.reason or "not run")
    allowed = BF16_ERROR if is_bf16(compiled.way) else FP32_ERROR
    return StudyCheck(
        name=name,
        holds=compiled.error <= allowed,
        detail=f"relative error {compiled.error:.1e}, {allowed:.1e} allowed",
    )


def _counts(cases: Sequence[KnownCase]) -> tuple[StudyCheck, ...]:
    return tuple(
        StudyCheck(
            name=f"counters are right: {case.name}",
            holds=(case.found.graphs, case.found.breaks, case.found.recompiles) == case.expected
            and case.explained == case.expected[1],
            detail=f"{case.found.graphs} graphs, {case.found.breaks} breaks, "
            f"{case.found.recompiles} recompiles; torch._dynamo.explain says {case.explained} "
            "breaks",
        )
        for case in cases
    )


def findings(measured: Measured) -> tuple[str, ...]:
    """Speed-up, compile time and break-even of each mode."""
    return tuple(
        f"{measured.job.name}, {way.name}: {_speed(way.speedup)}; compiling took "
        f"{format_seconds(way.compile_s)}, {_pays(runs_to_pay(measured, way))}."
        for way in measured.ways
        if way.speedup is not None and way.compile_s is not None
    )


def _speed(ratio: Ratio) -> str:
    if not ratio.real:
        return "no difference to eager beyond the noise"
    if ratio.value > 1:
        return f"{format_ratio(ratio.value)} as fast as eager"
    return f"takes {format_ratio(1 / ratio.value)} as long as eager"


def _pays(runs: int | None) -> str:
    return "with no gain to pay it back" if runs is None else f"paid after {runs:,} runs"


def notes(device: TorchDevice, start: CompilerStart, groups: Sequence[Measured]) -> tuple[str, ...]:
    """What the device means for the modes, and what was counted apart."""
    found = []
    if start.reason is not None:
        found.append(f"Nothing can be compiled here: {start.reason}")
    elif start.seconds is not None:
        found.append(
            f"The first use of the compiler took {format_seconds(start.seconds)}, for one "
            "operation; that is in no mode's compile time."
        )
    if device != "cuda":
        found.append(
            f"reduce-overhead replays graphs of a CUDA GPU; on {device} it compiles as default "
            "does, and max-autotune does not use them either."
        )
    for group in groups:
        if group.job.published and group.job.name != "ResNet-50":
            found.append(
                f"The published figures are of ResNet-50; this is a {group.job.name}, which "
                "compiles sooner. --preset reference runs ResNet-50."
            )
    return tuple(found)
