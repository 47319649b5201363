"""Precision: the formats' ranges, the training step, FP16's limits, and the study as a whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmfit.benchmark import Benchmark
from llmfit.device.allocations import working_bytes
from llmfit.records import Latency, Sampled, to_json
from llmfit.studies.base import StudyContext
from llmfit.studies.precision import run_sizes
from llmfit.studies.precision.amp import (
    BF16,
    FP16,
    FP16_UNSCALED,
    FP32,
    MAX_NORM,
    Batch,
    Trainer,
)
from llmfit.studies.precision.judging import loss_checks, training_findings
from llmfit.studies.precision.limits import (
    SHRINK,
    format_range,
    large_activation,
    regression,
    small_gradients,
)
from llmfit.studies.precision.measuring import Group, Outcome, model_loss, train
from llmfit.studies.precision.sizes import PrecisionSizes
from llmfit.studies.precision.tasks import Task, resnet50, text_batches
from llmfit.studies.steps import saved_bytes
from llmfit.studies.tuning import load_model
from llmfit.study_records import BenchmarkResult

TINY = PrecisionSizes(
    image_batch=4,
    image_pixels=32,
    text_batch=1,
    text_tokens=16,
    batches=2,
    warmup=0,
    runs=1,
    limit_steps=4,
)


def square_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return (model(batch["x"]).float() - batch["y"]).square().mean()


def trainer_on_regression(precision: object, *, rate: float = 0.1) -> Trainer:
    model, batch = regression(0, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Trainer(precision, model, optimizer, (batch,), square_loss, "cpu")  # type: ignore[arg-type]


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(("name", "numpys"), [("float32", np.float32), ("float16", np.float16)])
def test_ranges_are_those_that_numpy_gives(name: str, numpys: type) -> None:
    """NumPy knows both formats, the smallest number that is not normal among them."""
    found, theirs = format_range(name), np.finfo(numpys)
    assert found.largest == float(theirs.max)
    assert found.smallest_normal == float(theirs.smallest_normal)
    assert found.smallest == float(theirs.smallest_subnormal)
    assert found.epsilon == float(theirs.eps)
    assert found.bits == theirs.bits


def test_bfloat16_has_the_exponents_of_float32_and_seven_bits_after_the_point() -> None:
    """Its definition: 1 sign, 8 exponent and 7 fraction bits."""
    found = format_range("bfloat16")
    assert found.largest == (2 - 2**-7) * 2.0**127
    assert found.smallest_normal == 2.0**-126
    assert found.smallest == 2.0**-133
    assert found.epsilon == 2.0**-7


# ---------------------------------------------------------------- the training step


def test_a_step_is_plain_gradient_descent_with_the_gradient_clipped() -> None:
    """Against autograd and the definition of clipping, for a gradient above the norm."""
    trainer = trainer_on_regression(FP32)
    batch = {key: value * 10 for key, value in trainer.next_batch().items()}
    before = [p.detach().clone() for p in trainer.model.parameters()]
    gradients = torch.autograd.grad(
        square_loss(trainer.model, batch), list(trainer.model.parameters())
    )
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > MAX_NORM
    trainer.step(batch)
    for old, gradient, new in zip(before, gradients, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient / norm, rtol=1e-4, atol=1e-6)


def test_gradients_do_not_add_up_over_steps() -> None:
    """Two backward passes of the same weights and batch leave the gradient of one."""
    trainer = trainer_on_regression(FP32)
    batch = trainer.next_batch()
    trainer.backward(batch)
    first = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    trainer.backward(batch)
    for one, other in zip(first, trainer.model.parameters(), strict=True):
        assert other.grad is not None
        assert torch.equal(one, other.grad)


@pytest.mark.parametrize("precision", [FP16, BF16], ids=lambda p: p.name)
def test_sixteen_bits_follow_the_losses_of_fp32(precision: object) -> None:
    """Weights stay in FP32, products are in the format, losses are close."""
    exact, other = trainer_on_regression(FP32), trainer_on_regression(precision)
    for trainer in (exact, other):
        for _ in range(10):
            trainer.step(trainer.next_batch())
    assert other.losses() == pytest.approx(exact.losses(), rel=0.02)
    assert exact.losses()[-1] < 0.7 * exact.losses()[0]
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}
    with other.precision.autocast("cpu"):
        output = other.model(other.next_batch()["x"])
    assert str(output.dtype) == f"torch.{other.precision.dtype}"


def test_a_batch_whose_step_was_left_out_is_tried_again() -> None:
    """The scaler halves until its gradients fit; then the losses are those of as many updates."""
    model, batch = regression(0, "cpu")
    other = {key: value * 0.5 for key, value in batch.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(FP16, model, optimizer, (batch, other), square_loss, "cpu")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    while trainer.updates < 2:
        trainer.step(trainer.next_batch())
    assert trainer.skipped > 0
    assert trainer.tried == trainer.updates + trainer.skipped
    assert trainer.scaler.get_scale() == 2.0 ** (24 - trainer.skipped)

    model, _ = regression(0, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = Trainer(FP32, model, optimizer, (batch, other), square_loss, "cpu")
    for _ in range(2):
        plain.step(plain.next_batch())
    assert trainer.losses() == pytest.approx(plain.losses(), rel=0.02)


# ---------------------------------------------------------------- limits


def test_fp32_trains_with_the_shrunk_loss_bit_for_bit_as_without() -> None:
    """A power of two changes exponents alone."""
    found = small_gradients(FP32, steps=8, seed=0, device="cpu", rate=0.2)
    model, batch = regression(0, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    plain = []
    for _ in range(8):
        loss = square_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plain.append(loss.item())
    assert found.losses == tuple(plain)
    assert found.zero_share == 0


def test_fp16_learns_from_small_gradients_only_with_a_scaler() -> None:
    """Without one all are 0 and the loss stays; BF16 needs none."""
    plain, scaled, bf16 = (
        small_gradients(precision, steps=30, seed=0, device="cpu")
        for precision in (FP16_UNSCALED, FP16, BF16)
    )
    assert plain.zero_share == 1
    assert len(set(plain.losses)) == 1
    assert not plain.learned
    assert scaled.learned and bf16.learned
    assert scaled.zero_share == bf16.zero_share == 0
    assert format_range("float16").smallest / 2 > SHRINK * 2 / 64  # what is below rounds to 0


def test_an_activation_beyond_fp16_ruins_its_weights_unless_the_scaler_skips() -> None:
    """8 products of 100 and 100: 80,000 exactly in FP32, infinite in FP16, 79,872 in BF16."""
    exact, plain, scaled, bf16 = (
        large_activation(precision, device="cpu") for precision in (FP32, FP16_UNSCALED, FP16, BF16)
    )
    assert exact.activation == 80_000
    assert bf16.activation == 79_872  # BF16's numbers are 512 apart there
    assert plain.activation == scaled.activation == math.inf
    assert plain.stepped and not plain.finite
    assert not scaled.stepped and scaled.unchanged and scaled.finite
    assert (scaled.scale_before, scaled.scale_after) == (65_536, 32_768)
    assert bf16.stepped and bf16.finite and not bf16.unchanged


# ---------------------------------------------------------------- models and data


def test_the_image_network_has_the_parameters_of_resnet_50() -> None:
    """torchvision documents 25,557,032 for ResNet-50 with 1,000 classes."""
    with torch.device("meta"):  # no weights are drawn
        model = resnet50(0)
    assert sum(p.numel() for p in model.parameters()) == 25_557_032


def test_text_batches_are_the_calibration_text_and_begin_anew_at_its_end() -> None:
    """Decoded they are the text's begin; asked for more than there is, they go round."""
    from transformers import AutoTokenizer

    from llmfit.models import data_path

    text = data_path("calibration.txt").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(data_path("embedded"))
    first, second = text_batches(TINY, "cpu")
    ids = torch.cat((first["input_ids"], second["input_ids"])).flatten()
    assert text.startswith(tokenizer.decode(ids, skip_special_tokens=True))
    long = PrecisionSizes(
        image_batch=1, image_pixels=32, text_batch=4, text_tokens=4096, batches=2, warmup=0, runs=1,
        limit_steps=1,
    )  # fmt: skip
    tokens = torch.cat([batch["input_ids"].flatten() for batch in text_batches(long, "cpu")])
    count = len(tokenizer(text).input_ids)
    assert len(tokens) == 2 * 4 * 4096 > count
    assert torch.equal(tokens[count:], tokens[: len(tokens) - count])


def test_what_a_backward_pass_keeps_is_known_without_running_it() -> None:
    """A network by hand: the inputs of both products and of the square, and tanh's output."""
    batch = {"labels": torch.randn(64, 1), "x": torch.randn(64, 16)}

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(16, 32), torch.nn.Linear(32, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> object:
            error = self.last(self.first(x).tanh()) - labels
            return type("Output", (), {"loss": error.square().mean()})

    net = Net()
    assert saved_bytes(net, lambda: model_loss(net, batch)) == 4 * 64 * (16 + 32 + 1)


@pytest.mark.slow
def test_the_need_that_is_predicted_is_what_a_step_takes() -> None:
    """The language model: gradients and what backward keeps, within a third of the measured."""
    model = load_model("cpu", in_float32=True)
    (batch, _) = text_batches(
        PrecisionSizes(
            image_batch=1, image_pixels=32, text_batch=4, text_tokens=128, batches=2, warmup=0,
            runs=1, limit_steps=1,
        ),
        "cpu",
    )  # fmt: skip
    kept = saved_bytes(model, lambda: model_loss(model, batch))
    gradients = sum(4 * p.numel() for p in model.parameters())
    measured = working_bytes(lambda: model_loss(model, batch).backward(), "cpu")
    assert kept + gradients == pytest.approx(measured, rel=0.33)


# ---------------------------------------------------------------- the study


def tiny_context() -> StudyContext:
    return StudyContext(bench=Benchmark("cpu"))


def test_a_task_that_does_not_fit_says_both_figures() -> None:
    """Nothing is trained then, and every precision has its row."""
    batch = {"x": torch.ones(1, 16), "y": torch.ones(1, 1)}
    task = Task(
        name="language model",
        items="tokens",
        items_per_step=1,
        build=lambda: Enormous(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1),
        state_copies=10**9,
        batches=(batch,),
    )
    group = train(tiny_context(), task, TINY)
    assert [outcome.status for outcome in group.outcomes] == ["does_not_fit"] * 3
    reason = group.outcomes[0].reason
    assert reason is not None and "needs about" in reason and "free" in reason
    assert all(check.holds is None for check in loss_checks(group))


class Enormous(torch.nn.Module):
    """Small itself: its optimizer's state is what does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> object:
        return type("Output", (), {"loss": (self.layer(x) - y).square().mean()})


@pytest.mark.parametrize(
    ("losses", "holds"), [((4.0, 3.05), True), ((4.0, 3.2), False), ((4.0, math.nan), False)]
)
def test_losses_apart_by_more_than_the_tolerance_do_not_agree(
    losses: tuple[float, float], holds: bool
) -> None:
    """2 % of the first loss, 4, is 0.08; a loss that is no number never agrees."""
    group = Group(
        task=small_task(),
        outcomes=(Outcome(name="FP32", losses=(4.0, 3.0)), Outcome(name="BF16", losses=losses)),
    )
    assert [check.holds for check in loss_checks(group)] == [holds]


def small_task() -> Task:
    return Task(
        name="x",
        items="tokens",
        items_per_step=1,
        build=lambda: torch.nn.Linear(1, 1),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1),
        state_copies=0,
        batches=(),
    )


def timed_at(seconds: float, *, spread: float, peak_bytes: int) -> BenchmarkResult:
    """A result whose median is ``seconds``."""
    samples = Sampled(median=seconds, low=seconds, high=seconds, samples=(seconds,))
    return BenchmarkResult(
        name="x",
        kind="training step",
        device="cpu",
        batch_size=1,
        latency=Latency(
            mean_s=seconds, p50_s=seconds, p95_s=seconds, p99_s=seconds, samples_s=((seconds,),)
        ),
        latency_s=samples,
        spread=spread,
        throughput_per_s=samples,
        peak_bytes=peak_bytes,
    )


@pytest.mark.parametrize(
    ("seconds", "spread", "finding"),
    [
        (0.8, 0.4, "differs from FP32 in time by nothing beyond the noise"),
        (0.5, 0.0, "is 2.00× as fast as FP32"),
        (2.0, 0.0, "takes 2.00× as long as FP32"),
    ],
)
def test_a_change_within_the_noise_is_called_none(
    seconds: float, spread: float, finding: str
) -> None:
    """Only a real ratio to FP32's 1 s is a speed-up or a slow-down; memory is told beside it."""
    first = timed_at(1.0, spread=spread, peak_bytes=400)
    other = timed_at(seconds, spread=spread, peak_bytes=200)
    group = Group(
        task=small_task(),
        outcomes=(Outcome(name="FP32", result=first), Outcome(name="BF16", result=other)),
    )
    assert training_findings(group) == (
        f"Training the x in BF16 {finding} and needs 50 % of FP32's peak memory.",
    )


@pytest.mark.slow
def test_the_study_trains_and_runs_both_models_in_every_precision() -> None:
    """Rows of all precisions ran, checks hold, and it can be written as JSON."""
    result = run_sizes(tiny_context(), TINY)
    assert [len(table.rows) for table in result.tables] == [3, 3, 3, 5, 5, 4, 4]
    assert {row.status for table in result.tables for row in table.rows} == {"ok"}
    failed = [check for check in result.checks if not check.holds]
    assert not failed
    images = result.tables[1]
    their_speedups = [row.cells["their_speedup"].value for row in images.rows]
    assert their_speedups == pytest.approx([1, 95 / 41, 95 / 38])
    assert images.rows[2].cells["their_memory"].value == 0.5
    for column in images.columns:
        assert any(column.key in row.cells for row in images.rows), column.key
    assert to_json(result)
