"""``Benchmark``: what it counts equals closed forms, and noise is not called a change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmfit.benchmark import Benchmark, Case, count_flops, speedup
from llmfit.errors import UsageError
from llmfit.records import from_json, to_json
from llmfit.stats import sampled
from llmfit.study_records import BenchmarkComparison, BenchmarkResult

BATCH, WIDTH, INNER = 8, 64, 128


@pytest.fixture
def bench() -> Benchmark:
    """A benchmark on the CPU."""
    return Benchmark("cpu")


def two_layers() -> nn.Sequential:
    """``WIDTH`` → ``INNER`` → ``WIDTH``."""
    return nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH))


def small_llama() -> LlamaForCausalLM:
    """A causal model of Hugging Face with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip


def with_times(name: str, seconds: list[float], result: BenchmarkResult) -> BenchmarkResult:
    """``result`` as if these had been its times."""
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    middle = sampled(seconds)
    spread = (ordered[-1 - quarter] - ordered[quarter]) / middle.median
    return replace(result, name=name, latency_s=middle, spread=spread)


def test_inference_counts_parameters_bytes_and_operations(bench: Benchmark) -> None:
    """Parameters, bytes and FLOPs of two linear layers are those of their shapes."""
    model = two_layers()
    inputs = torch.randn(BATCH, WIDTH)
    result = bench.benchmark_inference("mlp", model, lambda: inputs, 1, 5, BATCH)
    parameters = WIDTH * INNER * 2 + INNER + WIDTH
    assert result.total_parameters == result.trainable_parameters == parameters
    assert result.model_bytes == result.held_bytes == 4 * parameters
    assert result.flops == 2 * BATCH * WIDTH * INNER * 2
    # The inner activations before and after the ReLU are both alive at the peak.
    assert result.working_bytes == 2 * BATCH * INNER * 4
    assert len(result.latency.samples_s[0]) == len(result.latency_s.samples) == 5
    assert len(result.warmup_s) == 1
    times = result.latency_s.samples
    assert result.throughput_per_s.samples == tuple(BATCH / second for second in times)
    assert min(times) <= result.latency.p50_s <= result.latency.p95_s <= max(times)


def test_vram_and_energy_are_unknown_on_a_cpu_without_counters(bench: Benchmark) -> None:
    """What a CPU has not is null, never 0."""
    result = bench.benchmark_inference("mlp", two_layers(), lambda: torch.ones(1, WIDTH), 0, 2)
    assert result.vram_allocated_bytes is result.vram_reserved_bytes is None
    assert result.vram_peak_bytes is None
    assert result.accuracy is None
    assert (result.energy_j is None) == (result.energy_source is None)


def test_frozen_parameters_are_not_trainable(bench: Benchmark) -> None:
    """Only what requires a gradient counts as trainable."""
    model = two_layers()
    model[0].requires_grad_(requires_grad=False)
    result = bench.benchmark_inference("mlp", model, lambda: torch.ones(1, WIDTH), 0, 1)
    assert result.trainable_parameters == INNER * WIDTH + WIDTH


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_inputs_of_every_form_reach_the_model(bench: Benchmark, form: str) -> None:
    """A tensor, a tuple of arguments and a dict of keyword arguments give the same work."""
    model = small_llama()
    ids = torch.zeros(2, 16, dtype=torch.int64)
    inputs = {"tensor": ids, "tuple": (ids,), "dict": {"input_ids": ids}}[form]
    model.train()
    result = bench.benchmark_inference("llama", model, lambda: inputs, 0, 1, 2)
    assert result.flops is not None
    assert result.flops > 2 * 2 * 16 * 96 * 32  # the head alone
    assert model.training  # as it was


def test_frozen_parts_stay_in_evaluation(bench: Benchmark) -> None:
    """A batch normalisation that is not to learn does not begin to."""
    model = two_layers().train()
    model[1].eval()
    bench.benchmark_inference("mlp", model, lambda: torch.ones(1, WIDTH), 0, 1)
    assert model.training and model[0].training and not model[1].training


def test_accuracy_is_what_the_function_finds(bench: Benchmark) -> None:
    """``accuracy_fn`` gets the model, and its answer is in the kept result."""
    result = bench.benchmark_inference(
        "mlp", two_layers(), lambda: torch.ones(1, WIDTH), 0, 1, accuracy_fn=lambda _: 0.25
    )
    assert result.accuracy == bench.results[0].accuracy == 0.25


def test_training_is_the_same_as_by_hand(bench: Benchmark) -> None:
    """The losses of the steps equal those of a loop of one's own from the same weights."""
    model, twin = two_layers(), two_layers()
    twin.load_state_dict(model.state_dict())
    inputs = torch.randn(BATCH, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = bench.benchmark_training_step(
        "sgd", model, optimizer, lambda output, x: (output - x).pow(2).mean(), lambda: inputs,
        n_steps=4, n_warmup=1, batch_size=BATCH,
    )  # fmt: skip
    by_hand = []
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in result.losses:
        other.zero_grad()
        loss = (twin(inputs) - inputs).pow(2).mean()
        loss.backward()
        other.step()
        by_hand.append(loss.item())
    assert result.losses == pytest.approx(by_hand)
    assert len(result.latency_s.samples) == 4


def test_a_training_step_holds_optimizer_state_and_works_with_gradients(bench: Benchmark) -> None:
    """AdamW holds two tensors a parameter; gradients are part of the step's own memory."""
    model = two_layers()
    optimizer = torch.optim.AdamW(model.parameters())
    result = bench.benchmark_training_step(
        "adamw", model, optimizer, lambda output, _: output.pow(2).mean(),
        lambda: torch.ones(BATCH, WIDTH), 2,
    )  # fmt: skip
    assert result.model_bytes is not None
    counters = 4 * len(list(model.parameters()))
    assert result.held_bytes == 3 * result.model_bytes + counters
    assert result.working_bytes is not None
    assert result.working_bytes >= result.model_bytes  # the gradients
    # Backward costs twice forward, but for the input, which needs no gradient.
    forward = 2 * BATCH * WIDTH * INNER * 2
    assert result.flops == forward + 2 * forward - forward // 2


def test_a_hugging_face_model_brings_its_own_loss(bench: Benchmark) -> None:
    """Without ``loss_fn`` the loss that the model returns is trained on, and it falls."""
    model = small_llama()
    ids = torch.arange(32).reshape(2, 16)
    result = bench.benchmark_training_step(
        "llama", model, torch.optim.AdamW(model.parameters(), lr=1e-2), None,
        lambda: {"input_ids": ids, "labels": ids}, 5,
    )  # fmt: skip
    assert result.losses[-1] < result.losses[0]


def test_an_output_without_a_loss_is_refused(bench: Benchmark) -> None:
    """A tensor has no loss: the error says so and what to give."""
    model = two_layers()
    with pytest.raises(UsageError, match="Tensor, has no loss") as error:
        bench.benchmark_training_step(
            "x", model, torch.optim.SGD(model.parameters()), None, lambda: torch.ones(1, WIDTH)
        )
    assert error.value.hint is not None


def test_flops_of_attention_and_convolution_equal_the_closed_form() -> None:
    """PyTorch's CPU attention kernel counts as 4·B·H·N²·d, a convolution as 2·outputs·inputs·k²."""
    query = torch.randn(2, 3, 64, 16)
    attend = nn.functional.scaled_dot_product_attention
    assert count_flops(lambda x: attend(x, x, x), query) == 4 * 2 * 3 * 64 * 64 * 16
    convolution = nn.Conv2d(3, 8, 5, padding=2)
    image = torch.randn(1, 3, 12, 12)
    assert count_flops(lambda x: convolution(x), image) == 2 * 8 * 12 * 12 * 3 * 25


def test_flops_of_attention_backward_are_two_and_a_half_times_forward() -> None:
    """Five products instead of two: scores again, and a gradient each of four matrices."""
    query = torch.randn(1, 2, 32, 8, requires_grad=True)
    attend = nn.functional.scaled_dot_product_attention

    def both(x: torch.Tensor) -> None:
        attend(x, x, x).sum().backward()

    assert count_flops(both, query) == 4 * 2 * 32 * 32 * 8 * 3.5


def test_a_compiled_model_is_counted_uncompiled(bench: Benchmark) -> None:
    """FLOPs of what torch.compile returned are those of the model inside."""
    model = two_layers()
    compiled = torch.compile(model, backend="eager")
    inputs = torch.ones(BATCH, WIDTH)
    result = bench.benchmark_inference("compiled", compiled, lambda: inputs, 1, 1, BATCH)
    assert result.flops == 2 * BATCH * WIDTH * INNER * 2


def test_three_percent_within_a_spread_of_ten_is_no_change(bench: Benchmark) -> None:
    """A hundred repeats put the intervals apart, yet a change below the spread is not real."""
    blank = bench.benchmark_inference("a", two_layers(), lambda: torch.ones(1, WIDTH), 0, 1)
    noisy = [1 + 0.1 * (index % 21 - 10) / 10 for index in range(2100)]
    slow = with_times("slow", [1.03 * second for second in noisy], blank)
    fast = with_times("fast", noisy, blank)
    ratio = speedup(slow, fast)
    assert ratio.value == pytest.approx(1.03)
    assert ratio.low > 1  # the intervals of the medians alone would call it one
    assert slow.spread == pytest.approx(0.1, abs=0.02)
    assert not ratio.real
    steady = [1 + 0.002 * (index % 21 - 10) / 10 for index in range(2100)]
    assert speedup(
        with_times("slow", [1.03 * second for second in steady], blank),
        with_times("fast", steady, blank),
    ).real


def test_a_slower_case_is_a_real_change_too(bench: Benchmark) -> None:
    """Half the speed beyond the noise is real, with a ratio below 1."""
    blank = bench.benchmark_inference("a", two_layers(), lambda: torch.ones(1, WIDTH), 0, 1)
    ratio = speedup(with_times("a", [1.0] * 9, blank), with_times("b", [2.0] * 9, blank))
    assert (ratio.value, ratio.real) == (0.5, True)


def test_results_are_compared_with_the_first_and_go_through_json(bench: Benchmark) -> None:
    """The first is 1 against itself; the comparison reads back as it was."""
    inputs = torch.ones(BATCH, WIDTH)
    for name in ("one", "two"):
        bench.benchmark_inference(name, two_layers(), lambda: inputs, 0, 3)
    comparison = bench.compare_results()
    assert [change.name for change in comparison.changes] == ["one", "two"]
    assert comparison.changes[0].speedup.value == 1
    assert comparison.changes[1].memory_ratio == 1
    assert from_json(BenchmarkComparison, to_json(comparison)) == comparison


def test_cases_take_turns(bench: Benchmark) -> None:
    """After each case's memory and FLOPs, calls alternate, warm-ups first."""
    calls: list[str] = []
    cases = [
        Case(name=name, call=lambda _, name=name: calls.append(name), count_flops=False)
        for name in "ab"
    ]
    results = bench.run_in_turns(cases, n_warmup=1, n_runs=2)
    assert "".join(calls[-6:]) == "ababab"
    assert [len(result.latency_s.samples) for result in results] == [2, 2]


def test_nothing_to_compare_or_to_time_is_refused(bench: Benchmark) -> None:
    """No result, no case and no run are errors that name the figure."""
    with pytest.raises(UsageError, match="no result"):
        bench.compare_results()
    with pytest.raises(UsageError, match="0 runs"):
        bench.run_in_turns((Case(name="a", call=lambda _: None),), n_runs=0)
    with pytest.raises(UsageError, match="'tpu'"):
        Benchmark("tpu")


@pytest.mark.gpu
def test_a_gpu_tells_its_memory_and_its_energy() -> None:
    """On CUDA the allocator's figures are there, and the peak is held plus working bytes."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    bench = Benchmark("cuda")
    model = two_layers()
    result = bench.benchmark_inference("mlp", model, lambda: torch.ones(BATCH, WIDTH), 3, 50, BATCH)
    assert result.vram_peak_bytes is not None and result.vram_allocated_bytes is not None
    assert result.working_bytes is not None
    assert result.vram_peak_bytes == result.vram_allocated_bytes + result.working_bytes
    assert result.vram_reserved_bytes is not None
    assert result.vram_reserved_bytes >= result.vram_peak_bytes
    assert result.working_bytes >= 2 * BATCH * INNER * 4
