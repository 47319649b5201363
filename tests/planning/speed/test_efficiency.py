"""The stated efficiencies against rates that others published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.models import resolve
from llmfit.planning.speed.efficiency import Cost, seconds, stated
from llmfit.planning.speed.hardware import find_gpu
from llmfit.planning.speed.published import RATES
from llmfit.planning.speed.roofline import predict_speed, predicted_rate
from llmfit.planning.speed.work import Work, decode_work
from llmfit.records import Hardware, SpeedPrediction, Workload

# Source: bitsandbytes, benchmarking/README.md, v0.45.0, batches above 1, of which the table of
# published rates has none; INT8 is its "INT8+Decomp", the LLM.int8() that transformers sets up.
# BF16 at batch 32 on the RTX 4090 is left out: where memory sets the pace it shows that
# transformers 4.46 copied the whole cache at each step, which a preallocated one does not.
BATCHED = [
    ("RTX 4090", "meta-llama/Llama-3.1-8B", "sdpa", 8, 334.64),
    ("RTX 4090", "meta-llama/Llama-3.1-8B", "nf4", 8, 188.08),
    ("RTX 4090", "meta-llama/Llama-3.1-8B", "int8", 8, 164.55),
    ("RTX 4090", "meta-llama/Llama-3.1-8B", "nf4", 32, 694.60),
    ("RTX 4090", "meta-llama/Llama-3.1-8B", "int8", 32, 624.94),
    ("H100", "meta-llama/Llama-3.1-8B", "sdpa", 32, 1227.96),
    ("H100", "meta-llama/Llama-3.1-8B", "nf4", 32, 658.65),
    ("H100", "Qwen/Qwen2.5-32B-Instruct", "sdpa", 32, 584.54),
    ("H100", "Qwen/Qwen2.5-32B-Instruct", "nf4", 8, 69.35),
    ("H100", "meta-llama/Llama-3.1-70B", "nf4", 8, 34.07),
    ("H100", "meta-llama/Llama-3.1-70B", "int8", 32, 146.19),
]
# The same source's 3 B model on a T4 (FP16 there): 36 layers beside a small cloud host.
T4 = [
    ("T4", "Qwen/Qwen2.5-3B-Instruct", "sdpa", 1, 25.66),
    ("T4", "Qwen/Qwen2.5-3B-Instruct", "nf4", 1, 16.45),
    ("T4", "Qwen/Qwen2.5-3B-Instruct", "int8", 1, 5.98),
]
# At batch 1 all that is published here, but the row of torch.compile in the RTX 3090's table,
# whose 68 tokens/s read more than the card's bandwidth.
SINGLE = [
    (rate.hardware, rate.model, rate.backend, 1, rate.tokens_per_s)
    for rate in RATES
    if not rate.one_graph
    and (rate.hardware, rate.backend) != ("NVIDIA GeForce RTX 3090", "compiled")
]
ONE_GRAPH = [
    (rate.hardware, rate.model, rate.backend, rate.tokens_per_s) for rate in RATES if rate.one_graph
]
# Source: the reference table of an RTX 3090, approximate figures of its author.
REFERENCE_TABLE = [("bf16", 38.0), ("sdpa", 52.0), ("nf4", 42.0), ("gptq", 55.0), ("awq", 52.0)]

# Tokens/s on two cores of an EPYC, and the GB/s that they read in those minutes; of 1.24 B those of
# steps in turns with a read. Source: benchmarks/results/decode_cpu.json, without the embedded
# compiled row, which decodes out of the CPU's cache; gguf:q8_0 by llama-bench.
TWO_CORES: list[tuple[str | None, str, float, float]] = [
    ("meta-llama/Llama-3.2-1B", "bf16", 9.0, 33.1),
    ("meta-llama/Llama-3.2-1B", "sdpa", 11.5, 33.4),
    ("meta-llama/Llama-3.2-1B", "compiled", 13.3, 34.1),
    ("meta-llama/Llama-3.2-1B", "int8", 18.4, 33.0),
    ("meta-llama/Llama-3.2-1B", "nf4", 25.3, 33.1),
    ("meta-llama/Llama-3.2-1B", "gptq", 23.9, 31.9),
    ("meta-llama/Llama-3.2-1B", "awq", 22.5, 30.9),
    ("meta-llama/Llama-3.2-1B", "gguf", 32.7, 33.8),
    ("meta-llama/Llama-3.2-1B", "gguf:q8_0", 21.1, 34.0),
    (None, "bf16", 289.6, 34.2),
    (None, "sdpa", 480.9, 61.2),
    (None, "int8", 643.4, 35.5),
    (None, "nf4", 655.6, 34.1),
    (None, "gptq", 596.2, 33.4),
    (None, "awq", 698.1, 33.9),
    (None, "gguf", 2074.8, 32.2),
]


def _predict(
    card: str, model: str, backend: str, workload: Workload, *, one_graph: bool = False
) -> SpeedPrediction:
    """By stated defaults, of an engine that launches each kernel unless ``one_graph``."""
    hardware = find_gpu(card)
    work = decode_work(resolve(model, weights=False), backend, workload)
    assert work is not None
    return predicted_rate(work, hardware, stated(backend, hardware, None, one_graph=one_graph))


@pytest.mark.parametrize(("card", "model", "backend", "batch", "rate"), SINGLE + BATCHED + T4)
def test_published_rates_lie_in_the_stated_range(
    card: str, model: str, backend: str, batch: int, rate: float
) -> None:
    """Rates of seven cards, a dozen models, six formats are between slowest and fastest."""
    workload = Workload(prompt_tokens=128, new_tokens=128, batch=batch)
    predicted = _predict(card, model, backend, workload)
    assert predicted.low <= rate <= predicted.high
    assert predicted.limit is not None and rate <= predicted.limit


@pytest.mark.parametrize(("card", "model", "backend", "rate"), ONE_GRAPH)
def test_rates_of_steps_that_are_one_graph_lie_in_the_stated_range(
    card: str, model: str, backend: str, rate: float
) -> None:
    """llmfit's own on an H200 within a tenth; gpt-fast, vLLM and llama.cpp within the range."""
    workload = Workload(prompt_tokens=512, new_tokens=256)
    predicted = _predict(card, model, backend, workload, one_graph=True)
    assert predicted.low <= rate <= predicted.high
    if card == "NVIDIA H200":
        assert predicted.estimate == pytest.approx(rate, rel=0.1)


def test_codes_reach_more_of_a_scarcer_bandwidth() -> None:
    """Unpacking, which an H200 waits for, keeps up with an eighteenth of its bandwidth."""
    fast, slow = (stated("nf4", find_gpu(card), None, one_graph=True) for card in ("H200", "4060"))
    assert fast.estimate.bandwidth_share < 0.5 and slow.estimate.bandwidth_share == 0.80
    assert fast.low.bandwidth_share < slow.low.bandwidth_share < slow.estimate.bandwidth_share
    plain = [stated("sdpa", find_gpu(card), None, one_graph=True) for card in ("H200", "4060")]
    assert plain[0] == plain[1]


def test_a_row_that_is_not_captured_is_expected_to_launch_its_kernels() -> None:
    """With a quantised cache, or its layers on several GPUs; a fast card waits for Python then."""
    card = replace(find_gpu("H100"), name="a card that nothing is published of")
    spec, work = resolve("meta-llama/Llama-3.1-8B", weights=False), Workload()
    captured, _ = predict_speed(spec, "nf4", work, card, records=())
    packed, _ = predict_speed(spec, "nf4", work, card, records=(), kv_cache_dtype="q8_0")
    spread, _ = predict_speed(spec, "nf4", work, card, records=(), gpus=2)
    assert captured is not None and packed is not None and spread is not None
    assert captured.estimate > 5 * spread.estimate > 5 * packed.estimate
    assert captured.basis == "stated default, after llmfit's rows on an H200"


@pytest.mark.parametrize(("model", "backend", "rate", "gb_per_s"), TWO_CORES)
def test_rates_of_two_cores_lie_in_the_stated_range(
    model: str | None, backend: str, rate: float, gb_per_s: float
) -> None:
    """Of 1.24 B parameters and of 5 M: what was measured is within the range."""
    two_cores = Hardware(
        name="two cores", kind="cpu", memory_bytes=None, bandwidth=gb_per_s * 1e9, flops=180e9,
        source="test",
    )  # fmt: skip
    workload = Workload(prompt_tokens=128, new_tokens=32)
    spec = resolve(model, weights=False)
    decode, _ = predict_speed(spec, backend, workload, two_cores, records=())
    assert decode is not None
    assert decode.low <= rate <= decode.high
    assert decode.estimate == pytest.approx(rate, rel=0.4)


@pytest.mark.parametrize(("backend", "rate"), REFERENCE_TABLE)
def test_the_reference_table_is_near_the_estimates(backend: str, rate: float) -> None:
    """The RTX 3090's published rates for Llama-3.1-8B are within a quarter of the estimates."""
    workload = Workload(prompt_tokens=448, new_tokens=64)
    predicted = _predict("RTX 3090", "meta-llama/Llama-3.1-8B", backend, workload)
    assert predicted.estimate == pytest.approx(rate, rel=0.25)


def test_a_range_says_more_than_nothing() -> None:
    """From slowest to fastest a factor below three, where launches are not waited for."""
    predicted = _predict("RTX 3090", "meta-llama/Llama-3.1-8B", "sdpa", Workload())
    assert predicted.low < predicted.estimate < predicted.high < 3 * predicted.low


GPU = Hardware(
    name="a GPU", kind="gpu", memory_bytes=None, bandwidth=936e9, flops=71e12, source="test"
)
CPU = Hardware(
    name="a CPU", kind="cpu", memory_bytes=None, bandwidth=30e9, flops=1e11, source="test"
)
WORK = Work(tokens=1, read_bytes=10e9, detour_bytes=2e9, flops=1e12, layer_runs=20)
COST = Cost(bandwidth_share=0.5, compute_share=0.1, layer_s=0.005, adds_up=False)


@pytest.mark.parametrize(
    ("adds_up", "expected"),
    [
        # 2 GB at 50 GB/s, then the longer of 10 GB at 50 GB/s and 1 TFLOP at 10 TFLOP/s; 20 × 5 ms.
        (False, max(0.04 + 0.2, 0.1)),
        (True, 0.04 + 0.2 + 0.1),
    ],
)
def test_launches_hide_behind_work_where_they_run_ahead(adds_up: bool, expected: float) -> None:
    """The closed form of the two kinds of step; only a GPU's launched kernels are of the first."""
    part = replace(GPU, bandwidth=100e9, flops=100e12)
    assert seconds(WORK, replace(COST, adds_up=adds_up), part) == pytest.approx(expected)
    for backend in ("bf16", "compiled", "nf4", "gguf"):
        assert stated(backend, CPU, None).estimate.adds_up
        if backend != "gguf":
            assert stated(backend, GPU, None, one_graph=True).estimate.adds_up
            assert not stated(backend, GPU, None).estimate.adds_up


def test_a_prefill_is_not_compiled() -> None:
    """Of one token, where launches are waited for, it takes as long as the plain row's."""
    spec, short = resolve(None), Workload(prompt_tokens=1, new_tokens=2)
    compiled = predict_speed(spec, "compiled", short, GPU, records=())
    plain = predict_speed(spec, "sdpa", short, GPU, records=())
    assert compiled[1] == plain[1]
    assert compiled[0] is not None and plain[0] is not None
    assert compiled[0].estimate > 6 * plain[0].estimate


def test_a_quantised_cache_is_expected_to_cost_launches() -> None:
    """A PyTorch row that unpacks its cache at each step waits longer; llama.cpp reads it packed."""
    plain, packed = stated("sdpa", CPU, None), stated("sdpa", CPU, "q8_0")
    assert packed.estimate.layer_s == 2 * plain.estimate.layer_s
    assert packed.high == plain.high
    assert stated("gguf", CPU, "q8_0") == stated("gguf", CPU, None)


def test_a_format_that_nothing_is_stated_for_may_be_slower_than_16_bits() -> None:
    """A checkpoint's own kernels: sdpa's range from half its slowest on, and the basis says so."""
    known, unknown = stated("sdpa", GPU, None), stated("stored", GPU, None)
    assert unknown.low.layer_s == 2 * known.low.layer_s
    assert unknown.high == known.high
    assert unknown.basis.endswith("nothing is stated for this format")


def test_a_guessed_bandwidth_widens_the_range() -> None:
    """A CPU whose bandwidth was not measured has a wider range around the same estimate, and the
    basis says why; a GPU that was assumed is a named card and keeps its range."""
    guessed = replace(CPU, assumed=True)
    known, wide = stated("gguf", CPU, None), stated("gguf", guessed, None)
    assert wide.low.bandwidth_share < known.low.bandwidth_share
    assert wide.estimate == known.estimate
    assert wide.basis == f"{known.basis}; bandwidth assumed"
    assert stated("nf4", replace(GPU, assumed=True), None) == stated("nf4", GPU, None)
