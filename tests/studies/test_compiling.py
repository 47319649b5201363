"""torch.compile: counters that count, break-even by its definition, outputs that are eager's."""

from __future__ import annotations

import pytest
import torch

from llmfit.benchmark import Benchmark
from llmfit.records import Latency, Sampled, to_json
from llmfit.studies.base import StudyContext
from llmfit.studies.compiling import run_sizes
from llmfit.studies.compiling.counting import broken, counted, known_case, whole
from llmfit.studies.compiling.jobs import Job, image_job, text_job
from llmfit.studies.compiling.judging import findings, output_checks
from llmfit.studies.compiling.measuring import (
    Compiled,
    Measured,
    Way,
    break_even,
    measure,
    relative_error,
    runs_to_pay,
)
from llmfit.studies.compiling.sizes import BF16_DEFAULT, CompileSizes
from llmfit.study_records import BenchmarkResult, Ratio

TINY = CompileSizes(
    text_tokens=8,
    text_layers=1,
    text_ways=("default",),
    image_batch=1,
    image_pixels=32,
    image_blocks=(1, 1, 1, 1),
    image_ways=(),
    warmup=0,
    runs=2,
)


def counts_of(function: object, sizes: list[int], *, dynamic: bool) -> tuple[int, int, int]:
    """Graphs, breaks and recompiles of calls with tensors of these sizes."""
    inputs = [torch.ones(size) for size in sizes]
    case = known_case("case", function, inputs, dynamic=dynamic, expected=(0, 0, 0))  # type: ignore[arg-type]
    return case.found.graphs, case.found.breaks, case.found.recompiles


def twice_broken(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    torch._dynamo.graph_break()
    y = y.cos()
    torch._dynamo.graph_break()
    return y.tan()


def on_a_value(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    return y + 1 if y.sum() > 0 else y - 1


# ---------------------------------------------------------------- counters


@pytest.mark.parametrize(
    ("function", "graphs", "breaks"),
    [(whole, 1, 0), (broken, 2, 1), (twice_broken, 3, 2), (on_a_value, 2, 1)],
)
def test_each_break_makes_one_more_graph(function: object, graphs: int, breaks: int) -> None:
    """Breaks on purpose, and a branch on a value of a tensor."""
    assert counts_of(function, [4, 4, 4], dynamic=False) == (graphs, breaks, 0)


@pytest.mark.parametrize(
    ("sizes", "dynamic", "graphs", "recompiles"),
    [
        ([4, 4, 4], False, 1, 0),
        ([4, 5, 6], False, 3, 2),
        ([4, 5, 4, 5, 6], False, 3, 2),
        ([4, 5, 6], True, 1, 0),
    ],
)
def test_each_new_shape_is_compiled_anew_unless_it_may_change(
    sizes: list[int], dynamic: bool, graphs: int, recompiles: int
) -> None:
    """A shape that was seen before is not compiled again."""
    assert counts_of(whole, sizes, dynamic=dynamic) == (graphs, 0, recompiles)


def test_a_break_and_new_shapes_are_counted_together() -> None:
    """Both parts of a broken function are compiled for each of two shapes."""
    graphs, _, recompiles = counts_of(broken, [4, 5], dynamic=False)
    assert (graphs, recompiles) == (4, 2)


def test_another_backend_is_no_recompile() -> None:
    """Counting begins anew with each mode, whatever was compiled before it."""
    torch.compiler.reset()
    found = []
    for backend in ("eager", "aot_eager"):
        with counted() as each:
            torch.compile(whole, backend=backend)(torch.ones(4))
        found.append(each.counts)
    torch.compiler.reset()
    assert [counts and (counts.graphs, counts.recompiles) for counts in found] == [(1, 0), (1, 0)]


def test_what_is_explained_agrees_with_what_is_counted() -> None:
    """torch._dynamo.explain is another way to the number of breaks."""
    case = known_case("case", twice_broken, [torch.ones(4)], dynamic=False, expected=(3, 2, 0))
    assert case.explained == case.found.breaks == 2


# ---------------------------------------------------------------- break-even


@pytest.mark.parametrize(
    ("compile_s", "eager_s", "compiled_s"), [(10, 0.3, 0.2), (1, 0.5, 0.25), (7.3, 0.021, 0.013)]
)
def test_the_break_even_is_the_first_run_that_has_paid(
    compile_s: float, eager_s: float, compiled_s: float
) -> None:
    """Against its definition: before it eager is ahead, from it on compiling is."""
    runs = break_even(compile_s, eager_s, compiled_s)
    assert runs is not None
    assert compile_s + runs * compiled_s <= runs * eager_s + 1e-9
    assert compile_s + (runs - 2) * compiled_s > (runs - 2) * eager_s  # one less, for rounding


def test_no_number_of_runs_pays_for_a_call_that_is_not_faster() -> None:
    """Equal or slower, there is no break-even."""
    assert break_even(10, 0.2, 0.2) is None
    assert break_even(10, 0.2, 0.3) is None


def timed_at(name: str, seconds: float) -> BenchmarkResult:
    """A result whose median is ``seconds``."""
    samples = Sampled(median=seconds, low=seconds, high=seconds, samples=(seconds,))
    return BenchmarkResult(
        name=name,
        kind="inference",
        device="cpu",
        batch_size=1,
        latency=Latency(
            mean_s=seconds, p50_s=seconds, p95_s=seconds, p99_s=seconds, samples_s=((seconds,),)
        ),
        latency_s=samples,
        spread=0.0,
        throughput_per_s=samples,
    )


def measured_as(*, real: bool) -> Measured:
    """Eager 0.3 s; compiled 0.2 s with first calls of 10.2, 0.2 and 0.2 s."""
    compiled = Compiled(way="default", first_calls_s=(10.2, 0.2, 0.2), error=0.0)
    job = Job(name="model", model=torch.nn.Linear(1, 1), inputs={}, ways=("default",))
    return Measured(
        job=job,
        ways=(
            Way(name="eager", result=timed_at("eager", 0.3)),
            Way(
                name="default",
                result=timed_at("default", 0.2),
                speedup=Ratio(value=1.5, low=1.4, high=1.6, real=real),
                compiled=compiled,
            ),
        ),
    )


def test_compile_time_is_what_the_first_calls_took_beyond_later_ones() -> None:
    """10.6 s less three calls of 0.2 s: 10 s, paid after 100 runs that are 0.1 s shorter."""
    measured = measured_as(real=True)
    assert measured.ways[1].compile_s == pytest.approx(10.0)
    assert runs_to_pay(measured, measured.ways[1]) in (100, 101)  # 0.3 − 0.2 is not 0.1 exactly
    assert "1.50× as fast" in findings(measured)[0]


def test_a_gain_within_the_noise_never_pays() -> None:
    """Though the medians differ, no number of runs is given."""
    measured = measured_as(real=False)
    assert runs_to_pay(measured, measured.ways[1]) is None
    (finding,) = findings(measured)
    assert "nothing beyond the noise" in finding and "no gain to pay it back" in finding


# ---------------------------------------------------------------- models


def test_the_image_network_of_the_reference_is_resnet_50() -> None:
    """A ResNet of 3, 4, 6 and 3 blocks has 50 layers with weights, its shortcuts apart."""
    sizes = CompileSizes(
        text_tokens=1, text_layers=1, text_ways=(), image_batch=1, image_pixels=32,
        image_blocks=(3, 4, 6, 3), image_ways=(), warmup=0, runs=1,
    )  # fmt: skip
    with torch.device("meta"):  # no weights are drawn
        job = image_job(sizes, "meta", 0)  # type: ignore[arg-type]
    layers = [
        name
        for name, module in job.model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in name
    ]
    assert (job.name, len(layers)) == ("ResNet-50", 50)
    assert sum(p.numel() for p in job.model.parameters()) == 25_557_032


def test_the_error_of_an_output_is_relative_to_its_norm() -> None:
    """(3, 4) against (3, 4.5): 0.5 of 5."""
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_where_nothing_can_be_compiled_every_mode_says_why() -> None:
    """Eager is measured all the same, and the check is left open."""
    job = text_job(TINY, "cpu", 0)
    found = measure(StudyContext(bench=Benchmark("cpu")), job, TINY, "no C++ compiler")
    eager, compiled = found.ways
    assert eager.result is not None and compiled.result is None
    assert compiled.compiled is not None
    assert (compiled.compiled.status, compiled.compiled.reason) == (
        "unavailable",
        "no C++ compiler",
    )
    assert [check.holds for check in output_checks(found)] == [None]


@pytest.mark.slow
def test_the_study_compiles_a_model_and_its_output_is_eagers() -> None:
    """One layer in two ways: one graph, no break, no recompile; checks hold, JSON is written."""
    sizes = CompileSizes(
        text_tokens=8, text_layers=1, text_ways=("default", BF16_DEFAULT), image_batch=1,
        image_pixels=32, image_blocks=(1, 1, 1, 1), image_ways=(), warmup=1, runs=3,
    )  # fmt: skip
    result = run_sizes(StudyContext(bench=Benchmark("cpu")), sizes)
    failed = [check for check in result.checks if not check.holds]
    assert not failed
    times, _, costs, *_ = result.tables
    assert [row.name for row in times.rows] == ["eager", "default", BF16_DEFAULT]
    assert {row.status for row in times.rows} == {"ok"}
    for row in costs.rows:
        counts = [row.cells[key].value for key in ("graphs", "breaks", "recompiles")]
        assert counts == [1, 0, 0]
        assert float(row.cells["compile"].value or 0) > float(row.cells["run"].value or 0)
    flops = {each.name: each.flops for each in result.benchmarks}
    assert flops["language model, default"] == flops["language model, eager"]
    assert to_json(result)
