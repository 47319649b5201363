"""Accumulation: gradients and loss of a batch in parts, against transformers' own and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmfit.benchmark import Benchmark
from llmfit.studies import accumulation
from llmfit.studies.accumulation import measuring
from llmfit.studies.accumulation.batches import (
    IGNORED,
    Batch,
    accumulate,
    batch_of,
    name_of,
    parts_of,
    text_batch,
)
from llmfit.studies.accumulation.measuring import Sizes, measure
from llmfit.studies.accumulation.norms import norm_differences
from llmfit.studies.accumulation.showing import table
from llmfit.studies.base import StudyContext
from llmfit.studies.steps import gradients_of, relative_difference
from llmfit.studies.tuning import keep_layers, load_model

TINY = Sizes(batch=7, tokens=96, shortest=4, micro_batches=(7, 3, 1), runs=1)


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded model's first layer, in float32."""
    return keep_layers(load_model("cpu", in_float32=True), [0]).float().train()


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Seven sequences of unequal lengths."""
    return text_batch(TINY.batch, tokens=TINY.tokens, shortest=TINY.shortest, seed=0, device="cpu")


def test_an_uneven_batch_is_cut_without_loss(batch: Batch) -> None:
    """Seven in threes are 3, 3 and 1; no token is lost."""
    parts = parts_of(batch, 3)
    assert [len(part.ids) for part in parts] == [3, 3, 1]
    assert sum(part.predicted for part in parts) == batch.predicted
    assert name_of(7, 3) == "2 × 3 + 1"
    assert name_of(8, 4) == "2 × 4"


def test_sequences_are_of_unequal_lengths(batch: Batch) -> None:
    """Padding counts for nothing, and nothing but padding is left out."""
    lengths = (batch.labels != IGNORED).sum(dim=1).tolist()
    assert len(set(lengths)) > 1
    assert min(lengths) >= TINY.shortest
    assert batch.predicted == sum(lengths) - len(lengths)


@pytest.mark.parametrize("micro", [1, 2, 3, 7])
def test_gradients_and_loss_are_the_whole_batchs(model: Any, batch: Batch, micro: int) -> None:
    """Against the loss that transformers computes itself over the batch at once."""
    losses: list[float] = []

    def whole() -> None:
        loss = model(input_ids=batch.ids, labels=batch.labels, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())

    wanted = gradients_of(model, whole)
    found = gradients_of(
        model, lambda: losses.append(accumulate(model, parts_of(batch, micro)).item())
    )
    assert relative_difference(wanted, found) < 1e-5
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_parts_that_weigh_the_same_are_the_mean_of_transformers_losses(
    model: Any, batch: Batch
) -> None:
    """The naive way gives the mean of the parts' own losses, which is not the batch's."""
    parts = parts_of(batch, 3)
    means = [
        model(input_ids=part.ids, labels=part.labels, use_cache=False).loss.item() for part in parts
    ]
    naive = accumulate(model, parts, by_tokens=False).item()
    model.zero_grad(set_to_none=True)
    assert naive == pytest.approx(sum(means) / len(means), rel=1e-6)
    whole = model(input_ids=batch.ids, labels=batch.labels, use_cache=False).loss.item()
    assert abs(naive - whole) > 1e-3


def test_tokens_decide_what_a_part_weighs() -> None:
    """By hand, of a model whose loss is ln V everywhere: any weights that add up to 1 give it."""

    class Uniform(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            logits = self.scale * torch.zeros(*input_ids.shape, 10)
            return type("Output", (), {"logits": logits})

    ids = torch.zeros(3, 6, dtype=torch.int64)
    labels = ids.clone()
    labels[0, 2:] = IGNORED
    batch = batch_of(ids, labels)
    assert batch.predicted == 1 + 5 + 5
    assert accumulate(Uniform(), parts_of(batch, 2)).item() == pytest.approx(
        torch.log(torch.tensor(10.0)).item()
    )


@pytest.mark.slow
def test_all_that_must_hold_holds(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """The whole study on one layer: gradients, loss, memory, and the pitfalls."""
    monkeypatch.setattr(accumulation, "DEFAULT", TINY)
    monkeypatch.setattr(measuring, "load_model", lambda device, in_float32: model)
    result = accumulation.run(StudyContext(bench=Benchmark("cpu")))
    held = {check.name: check.holds for check in result.checks}
    assert set(held.values()) == {True}, held
    assert [row.name for row in result.tables[0].rows] == ["1 × 7", "2 × 3 + 1", "7 × 1"]
    peaks = [row.cells["peak"].value for row in result.tables[0].rows]
    assert peaks == sorted(peaks, key=float, reverse=True)  # type: ignore[arg-type]


def test_batch_norm_is_not_kept_and_layer_norm_is() -> None:
    """Statistics over rows change with the rows, those over columns do not."""
    found = norm_differences(0)
    assert found.batch > 0.01
    assert found.layer < 1e-6


@pytest.mark.slow
def test_a_batch_that_does_not_fit_leaves_its_parts(
    monkeypatch: pytest.MonkeyPatch, model: Any, batch: Batch
) -> None:
    """Memory for one sequence: that case runs, the others have their reason."""
    from llmfit.device.allocations import working_bytes

    one = working_bytes(
        lambda: gradients_of(model, lambda: accumulate(model, parts_of(batch, 1)[:1])), "cpu"
    )
    assert one is not None
    monkeypatch.setattr("llmfit.studies.steps.free_bytes", lambda device: int(1.5 * one))
    monkeypatch.setattr(measuring, "load_model", lambda device, in_float32: model)
    found = measure(StudyContext(bench=Benchmark("cpu")), TINY)
    assert [m.reason is None for m in found.measured] == [False, False, True]
    assert found.measured[2].difference is None
    assert [row.status for row in table(found).rows] == [
        "does_not_fit",
        "does_not_fit",
        "ok",
    ]
