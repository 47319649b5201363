"""ONNX: a model with its KV cache as one graph, run by onnxruntime on the CPU, against PyTorch.

    input_ids int64[B, T], past keys and values [B, kv_heads, P, head_dim] of each layer
        ─► graph ─► logits [B, T, V], keys and values [B, kv_heads, P + T, head_dim]

B, T and P are free: the prompt is the graph at P = 0, a decode step is the graph at T = 1.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmfit.benchmark import Benchmark, Case, speedup
from llmfit.device.allocations import module_bytes
from llmfit.device.memory import MemoryMeter, return_freed_memory
from llmfit.studies.base import StudyContext, cell, ratio_cell, share_of, time_cell
from llmfit.studies.tuning import HELD_OUT_TEXT, load_model, sequences
from llmfit.study_records import (
    BenchmarkResult,
    Ratio,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_bytes, format_ratio, format_seconds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TITLE = "ONNX export"
QUESTION = (
    "Does the model exported with its KV cache answer the same under onnxruntime, and how fast?"
)

EAGER, RUNTIME = "PyTorch eager", "onnxruntime"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INSTALL = 'pip install "llmfit[studies]"'
LOGIT_TOLERANCE = 1e-4
"""Of the largest logit: some hundred times the rounding of float32 in another order."""
_CHECK_NAMES = (
    "the same tokens, greedily",
    "the same logits, prompt and every step",
    "the graph's cache gives what one whole pass gives",
    "one graph for other batches, lengths and caches",
    "the graph is valid ONNX",
)


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
class Exported:
    """A graph in a file."""

    path: str
    seconds: float
    file_bytes: int
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Greedy tokens, and the logits ``float32[1, V]`` that each was taken from."""

    tokens: tuple[int, ...]
    logits: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One way of running the model."""

    name: str
    load_s: float | None
    """From the file to a session; PyTorch's model is there already."""
    memory_bytes: int | None
    """Growth of the resident set by weights and generating."""
    prompt: BenchmarkResult
    step: BenchmarkResult


class Runner(Protocol):
    """A model with a cache of its own kind."""

    def empty(self) -> Any:
        """A cache without tokens."""
        ...

    def copy(self, past: Any) -> Any:
        """A cache that ``forward`` may change."""
        ...

    def forward(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits ``float32[B, T, V]`` of ``ids: int64[B, T]``, and the cache with them."""
        ...


def run(context: StudyContext) -> StudyResult:
    """Run the study, on the CPU wherever it is."""
    sizes = REFERENCE if context.preset == "reference" else DEFAULT
    reason = missing()
    if reason is not None:
        return _without(context, sizes, reason)
    model = load_model("cpu", in_float32=True)
    with _folder(context.out) as folder:
        context.progress("export", 0, 1)
        try:
            exported = export(model, folder / "model.onnx")
        except _exporter_error() as error:
            first = str(error).strip().splitlines()[0]
            return _without(context, sizes, f"torch.onnx.export: {first}", failed=True)
        return _measured(context, sizes, model, exported)


def missing() -> str | None:
    """Which packages are not there and how to install them; None where all are."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    return f"{', '.join(absent)} not installed: {INSTALL}" if absent else None


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


# ---------------------------------------------------------------- export


def export(model: Any, path: Path) -> Exported:
    """Write a transformers causal language model in float32 with its cache to ``path``.

    Raises torch.onnx.OnnxExporterError.
    """
    import torch
    from torch.export import Dim

    config = model.config
    names = [
        f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")
    ]
    # Sizes of an example: all different, and none is 0 or 1, which torch.export takes for fixed.
    ids = torch.zeros(2, 5, dtype=torch.int64)
    past = [torch.zeros(2, *_heads(config), 7, _width(config)) for _ in names]
    batch, tokens, held = Dim("batch"), Dim("tokens"), Dim("past")
    began = time.perf_counter()
    with _quiet():
        program = torch.onnx.export(
            _with_flat_cache(model),
            (ids, *past),
            None,
            dynamo=True,
            verbose=False,
            input_names=["input_ids", *(f"past.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=({0: batch, 1: tokens}, tuple({0: batch, 2: held} for _ in names)),
        )
        assert program is not None  # with dynamo it is a program
        program.save(str(path))
    return Exported(
        path=str(path),
        seconds=time.perf_counter() - began,
        file_bytes=sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
        nodes=len(program.model.graph),
    )


def _heads(config: Any) -> tuple[int]:
    return (config.num_key_value_heads,)


def _width(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _with_flat_cache(model: Any) -> torch.nn.Module:
    """The model as a function of tensors alone: keys and values in, keys and values out."""
    from torch import nn
    from transformers import DynamicCache

    class WithFlatCache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
            cache = DynamicCache()
            for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
                cache.update(key, value, layer)
            out = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
            present = [kept for layer in cache.layers for kept in (layer.keys, layer.values)]
            return (out.logits, *present)

    return WithFlatCache().eval()


def _exporter_error() -> type[Exception]:
    import torch

    return torch.onnx.OnnxExporterError


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the exporter does not say which packages it would also know, nor what is outdated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------- running


class EagerRunner:
    """transformers' model with a DynamicCache."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def empty(self) -> Any:
        """A cache without tokens."""
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def copy(self, past: Any) -> Any:
        """A deep one: the model's step grows the cache that it is given."""
        return deepcopy(past)

    def forward(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits ``float32[B, T, V]``, and the cache, which has grown."""
        import torch

        with torch.inference_mode():
            out = self._model(input_ids=ids, past_key_values=past, use_cache=True)
        return out.logits, past


class OnnxRunner:
    """A session of onnxruntime on the CPU, with as many threads as torch has.

    A cache is onnxruntime's own values in the order of the graph's inputs; no copy is made of them.
    """

    def __init__(self, path: str, config: Any) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        # Its threads do not wait for more work by spinning, which would slow whoever is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._empty = (1, *_heads(config), 0, _width(config))

    def empty(self) -> Any:
        """Keys and values without tokens, for a batch of 1."""
        import torch

        return self.values([torch.zeros(self._empty) for _ in self._inputs[1:]])

    def values(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Tensors as onnxruntime's values."""
        from onnxruntime import OrtValue

        return [OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy()) for tensor in tensors]

    def copy(self, past: Any) -> Any:
        """The same: a graph does not change what it is given."""
        return past

    def forward(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits ``float32[B, T, V]``, and new keys and values."""
        import torch

        given = dict(zip(self._inputs, (*self.values([ids]), *past), strict=True))
        logits, *present = self._session.run_with_ort_values(self._outputs, given)
        return torch.from_numpy(logits.numpy()), present


def greedy(runner: Runner, prompt: Tensor, new_tokens: int) -> Generated:
    """The likeliest token ``new_tokens`` times after ``prompt: int64[1, T]``."""
    tokens: list[int] = []
    found: list[Tensor] = []
    ids, past = prompt, runner.empty()
    for _ in range(new_tokens):
        logits, past = runner.forward(ids, past)
        found.append(logits[:, -1].clone())
        ids = found[-1].argmax(-1, keepdim=True)
        tokens.append(int(ids))
    return Generated(tokens=tuple(tokens), logits=tuple(found))


def _with_memory(make: Any, prompt: Tensor, new_tokens: int) -> tuple[Runner, float, int | None]:
    """A new runner, the seconds of making it, and what the process grew by until it generated."""
    return_freed_memory()  # else what the export freed would hold the weights, and nothing grew
    meter = MemoryMeter("cpu")
    began = time.perf_counter()
    runner: Runner = make()
    load_s = time.perf_counter() - began
    greedy(runner, prompt, new_tokens)
    return runner, load_s, meter.read().peak_ram_bytes


# ---------------------------------------------------------------- measuring


def _measured(context: StudyContext, sizes: Sizes, model: Any, exported: Exported) -> StudyResult:
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
    prompts, steps = _timed(bench, {EAGER: eager, RUNTIME: there}, prompt, sizes, context)
    ran = (
        Ran(name=EAGER, load_s=None, memory_bytes=eager_bytes, prompt=prompts[0], step=steps[0]),
        Ran(
            name=RUNTIME, load_s=load_s, memory_bytes=there_bytes, prompt=prompts[1], step=steps[1]
        ),
    )
    weights = module_bytes(model)
    return StudyResult(
        study="onnx",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device="cpu",
        settings=_settings(sizes),
        tables=(_run_table(ran), _export_table(exported, weights, load_s)),
        plots=(_plot(ran),),
        checks=(
            *compare(ours, theirs),
            whole_pass_check(there, prompt, theirs),
            other_sizes_check(model, exported.path),
            valid_check(exported.path),
        ),
        findings=_findings(ran, exported, weights),
        notes=_notes(context),
        benchmarks=(*prompts, *steps),
        artifacts=() if context.out is None else (str(Path(exported.path).parent),),
    )


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


# ---------------------------------------------------------------- what must hold


def compare(ours: Generated, theirs: Generated) -> tuple[StudyCheck, StudyCheck]:
    """The same tokens, and the same logits as far as the tokens before them are the same."""
    alike = 0
    for a, b in zip(ours.tokens, theirs.tokens, strict=True):
        if a != b:
            break
        alike += 1
    total = len(ours.tokens)
    compared = min(alike + 1, total)  # the logits that first differ in their choice have one past
    error, largest = _error(ours.logits[:compared], theirs.logits[:compared])
    return (
        StudyCheck(name=_CHECK_NAMES[0], holds=alike == total, detail=f"{alike} of {total} tokens"),
        StudyCheck(
            name=_CHECK_NAMES[1],
            holds=error <= LOGIT_TOLERANCE * largest,
            detail=_error_text(error, largest, f"{compared} positions"),
        ),
    )


def _error(first: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of all logits, and the largest logit of ``first``."""
    pairs = list(zip(first, other, strict=True))
    return (
        max(float((b - a).abs().max()) for a, b in pairs),
        max(float(a.abs().max()) for a, _ in pairs),
    )


def _error_text(error: float, largest: float, over: str) -> str:
    return (
        f"at most {error:.1e} apart over {over}, logits are up to {largest:.1f}; "
        f"{LOGIT_TOLERANCE:.0e} of that is allowed"
    )


def whole_pass_check(runner: Runner, prompt: Tensor, generated: Generated) -> StudyCheck:
    """Logits by the cache, step by step, against a pass over all tokens at once."""
    import torch

    ids = torch.cat((prompt, torch.tensor([generated.tokens[:-1]], dtype=torch.int64)), dim=1)
    logits, _ = runner.forward(ids, runner.empty())
    whole = logits[0, prompt.shape[1] - 1 :]
    error, largest = _error([whole], [torch.cat(generated.logits)])
    return StudyCheck(
        name=_CHECK_NAMES[2],
        holds=error <= LOGIT_TOLERANCE * largest,
        detail=_error_text(error, largest, f"{len(generated.logits)} positions"),
    )


def other_sizes_check(model: Any, path: str) -> StudyCheck:
    """Sizes that were no example of the export: logits of the graph against the model's."""
    import torch

    graph, plain = OnnxRunner(path, model.config), _with_flat_cache(model)
    cases = ((1, 9, 0), (3, 1, 4), (1, 1, 1), (2, 6, 11))
    vocabulary, layers = model.config.vocab_size, model.config.num_hidden_layers
    random = torch.Generator().manual_seed(0)
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for batch, tokens, held in cases:
        ids = torch.randint(vocabulary, (batch, tokens), generator=random)
        shape = (batch, *_heads(model.config), held, _width(model.config))
        past = [torch.randn(shape, generator=random) for _ in range(2 * layers)]
        with torch.inference_mode():
            ours.append(plain(ids, *past)[0])
        theirs.append(graph.forward(ids, graph.values(past))[0])
    error, largest = _error(ours, theirs)
    sizes = ", ".join(" × ".join(map(str, case)) for case in cases)
    return StudyCheck(
        name=_CHECK_NAMES[3],
        holds=error <= LOGIT_TOLERANCE * largest,
        detail=_error_text(error, largest, f"batch × tokens × cached of {sizes}"),
    )


def valid_check(path: str) -> StudyCheck:
    """What onnx's own checker says, shapes inferred."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return StudyCheck(
            name=_CHECK_NAMES[4], holds=False, detail=str(error).strip().splitlines()[0]
        )
    version = max(entry.version for entry in onnx.load(path, load_external_data=False).opset_import)
    return StudyCheck(
        name=_CHECK_NAMES[4], holds=True, detail=f"onnx.checker finds nothing, opset {version}"
    )


# ---------------------------------------------------------------- what is shown


def _run_table(ran: tuple[Ran, Ran]) -> StudyTable:
    first = ran[0]
    return StudyTable(
        title="Prompt and decode step on the CPU",
        head="runtime",
        columns=_RUN_COLUMNS,
        rows=tuple(
            StudyRow(
                name=way.name,
                cells={
                    "prompt": time_cell(way.prompt),
                    "prompt_speed": ratio_cell(speedup(first.prompt, way.prompt)),
                    "step": time_cell(way.step),
                    "step_speed": ratio_cell(speedup(first.step, way.step)),
                    "tokens": cell(way.step.throughput_per_s.median),
                    "memory": cell(way.memory_bytes),
                },
            )
            for way in ran
        ),
    )


_RUN_COLUMNS = (
    StudyColumn(key="prompt", head="prompt", unit="s"),
    StudyColumn(key="prompt_speed", head="speed", under="÷ eager", unit="ratio"),
    StudyColumn(key="step", head="step", unit="s"),
    StudyColumn(key="step_speed", head="speed", under="÷ eager", unit="ratio"),
    StudyColumn(key="tokens", head="tokens/s", unit="per_s"),
    StudyColumn(key="memory", head="memory", unit="bytes", needed=False),
)
_EXPORT_COLUMNS = (
    StudyColumn(key="seconds", head="export", unit="s"),
    StudyColumn(key="load", head="load", unit="s"),
    StudyColumn(key="file", head="file", unit="bytes"),
    StudyColumn(key="weights", head="weights", under="float32", unit="bytes"),
    StudyColumn(key="ratio", head="file", under="÷ weights", unit="ratio"),
    StudyColumn(key="nodes", head="nodes", unit="count"),
)


def _export_table(exported: Exported, weights: int, load_s: float) -> StudyTable:
    return StudyTable(
        title="Export",
        head="graph",
        columns=_EXPORT_COLUMNS,
        rows=(
            StudyRow(
                name=Path(exported.path).name,
                cells={
                    "seconds": cell(exported.seconds),
                    "load": cell(load_s),
                    "file": cell(exported.file_bytes),
                    "weights": cell(weights),
                    "ratio": share_of(exported.file_bytes, weights),
                    "nodes": cell(exported.nodes),
                },
            ),
        ),
    )


def _plot(ran: tuple[Ran, Ran]) -> StudyPlot:
    parts = ("prompt", "decode step")
    return StudyPlot(
        title="Time on the CPU",
        kind="bars",
        x_label="part of generation",
        y_label="s",
        series=tuple(
            Series(
                name=way.name,
                x=parts,
                y=(way.prompt.latency_s.median, way.step.latency_s.median),
            )
            for way in ran
        ),
    )


def _findings(ran: tuple[Ran, Ran], exported: Exported, weights: int) -> tuple[str, ...]:
    eager, there = ran
    return (
        _speed_finding("The prompt", speedup(eager.prompt, there.prompt)),
        _speed_finding("A decode step", speedup(eager.step, there.step)),
        f"The export takes {format_seconds(exported.seconds)}; its file of "
        f"{format_bytes(exported.file_bytes)} is {format_ratio(exported.file_bytes / weights)} "
        "the float32 weights.",
    )


def _speed_finding(what: str, speed: Ratio) -> str:
    if not speed.real:
        return f"{what}: no difference between onnxruntime and eager PyTorch beyond the noise."
    return f"{what} runs at {format_ratio(speed.value)} eager PyTorch's speed under onnxruntime."


def _settings(sizes: Sizes) -> dict[str, float | int | str | bool | None]:
    return {**asdict(sizes), "batch": 1, "dtype": "float32"}


def _notes(context: StudyContext) -> tuple[str, ...]:
    elsewhere = (
        ()
        if context.device == "cpu"
        else (
            f"Run on the CPU, not on {context.device}: the study is of onnxruntime's CPU kernels.",
        )
    )
    return (
        *elsewhere,
        "The embedded model in float32, batch 1. Memory: what the process grew by, from loading "
        "(of eager PyTorch: a copy of the model) to the end of a short generation.",
    )


def _without(
    context: StudyContext, sizes: Sizes, reason: str, *, failed: bool = False
) -> StudyResult:
    """The study where it cannot run: its rows with the reason."""
    status: Any = "failed" if failed else "unavailable"
    return StudyResult(
        study="onnx",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device="cpu",
        settings=_settings(sizes),
        tables=(
            StudyTable(
                title="Prompt and decode step on the CPU",
                head="runtime",
                columns=_RUN_COLUMNS,
                rows=(StudyRow(name=RUNTIME, status=status, reason=reason),),
            ),
            StudyTable(
                title="Export",
                head="graph",
                columns=_EXPORT_COLUMNS,
                rows=(StudyRow(name="model.onnx", status=status, reason=reason),),
            ),
        ),
        checks=tuple(StudyCheck(name=name, holds=None, detail=reason) for name in _CHECK_NAMES),
        notes=_notes(context),
    )
