"""Checkpointing: what a step keeps, against sums by hand; gradients and operations, exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llmfit.benchmark import Benchmark
from llmfit.studies import checkpointing
from llmfit.studies.checkpointing.judging import checks, flop_checks
from llmfit.studies.checkpointing.measuring import (
    Found,
    Measured,
    Sizes,
    kept_bytes,
    measure_subject,
)
from llmfit.studies.checkpointing.showing import table
from llmfit.studies.checkpointing.subjects import (
    EVERY_SECOND,
    OFF,
    ON,
    SELECTIVE,
    Subject,
    library_subject,
    own_subject,
)

TINY = Sizes(
    layers=3,
    width=32,
    heads=2,
    inner=48,
    vocabulary=64,
    batch=2,
    tokens=16,
    library_batch=2,
    library_tokens=8,
    runs=1,
)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def own() -> Subject:
    """The own Transformer, tiny."""
    return own_subject(TINY.shape(), batch=TINY.batch, tokens=TINY.tokens, device="cpu")


def library() -> Subject:
    """The embedded model with a tiny batch."""
    return library_subject(batch=TINY.library_batch, tokens=TINY.library_tokens, device="cpu")


def kept_by(subject: Subject, mode: str) -> int:
    """Bytes that a forward pass in ``mode`` keeps."""
    subject.modes[mode](subject.model)
    return kept_bytes(subject.model, lambda: subject.loss(subject.model, subject.ids))


def test_bytes_kept_by_two_linear_layers_are_those_of_their_inputs() -> None:
    """x W₁ W₂ keeps x where it needs a gradient's factor, x W₁, and no weight."""
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    x = torch.randn(5, 8)
    assert kept_bytes(model, lambda: model(x)) == 4 * (5 * 8 + 5 * 16)


def test_a_tensor_that_two_operations_keep_counts_once() -> None:
    """x · x keeps x twice, in one storage."""
    x = torch.randn(10, requires_grad=True)
    assert kept_bytes(nn.Identity(), lambda: x * x) == 40


def test_on_keeps_the_input_of_each_layer_and_what_is_outside_them() -> None:
    """Summed by hand: B·T·C for every layer, the last norm, the head and the loss."""
    positions = TINY.batch * TINY.tokens
    layers = TINY.layers * positions * TINY.width * 4
    last_norm = positions * (2 * TINY.width + 1) * 4  # its input, that ÷ its size, and 1 ÷ size
    head = positions * TINY.width * 4
    loss = positions * TINY.vocabulary * 4 + positions * 8 + 4  # log-softmax, targets, weight
    ids = TINY.batch * (TINY.tokens + 1) * 8
    assert kept_by(own(), ON) == layers + last_norm + head + loss + ids


def test_selective_keeps_matrix_products_besides() -> None:
    """By hand: query, key, value, output and down of C each, gate and up, attention's sums."""
    subject = own()
    positions = TINY.batch * TINY.tokens
    products = positions * (5 * TINY.width + 2 * TINY.inner) * 4
    attention = positions * TINY.width * 4 + positions * TINY.heads * 4
    assert kept_by(subject, SELECTIVE) - kept_by(subject, ON) == TINY.layers * (
        products + attention
    )


@pytest.mark.slow
def test_gradients_bytes_and_operations_of_the_own_transformer() -> None:
    """All that must hold holds, and gradients are those of the plain model bit by bit."""
    subject = own()
    found = measure_subject(subject, Benchmark("cpu"), runs=1)
    assert [m.mode for m in found.modes] == [OFF, ON, SELECTIVE]
    assert [m.difference for m in found.modes] == [0.0, 0.0, 0.0]
    assert all(check.holds for check in (*checks(found), *flop_checks(found, TINY)))


def test_gradients_are_those_of_a_model_that_was_never_checkpointed() -> None:
    """Against autograd alone, without the study's way of taking gradients."""
    subject = own()
    plain = torch.autograd.grad(
        subject.loss(subject.model, subject.ids), list(subject.model.parameters())
    )
    for mode in (ON, SELECTIVE):
        subject.modes[mode](subject.model)
        again = torch.autograd.grad(
            subject.loss(subject.model, subject.ids), list(subject.model.parameters())
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.slow
def test_transformers_switch_keeps_one_input_a_layer() -> None:
    """The embedded model by gradient_checkpointing_enable: the same gradients, fewer bytes."""
    subject = library()
    found = measure_subject(subject, Benchmark("cpu"), runs=1)
    assert [m.mode for m in found.modes] == [OFF, ON, EVERY_SECOND]
    assert all(check.holds for check in checks(found))


def test_switching_on_again_and_again_leaves_no_hooks() -> None:
    """transformers adds one to the embedding with every call."""
    subject = library()
    for _ in range(3):
        subject.modes[ON](subject.model)
    assert not subject.model.get_input_embeddings()._forward_hooks


@pytest.mark.slow
def test_what_does_not_fit_is_a_row_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with no memory left nothing is run; every mode says so."""
    monkeypatch.setattr("llmfit.studies.steps.free_bytes", lambda device: 1000)
    subject = own()
    found = measure_subject(subject, Benchmark("cpu"), runs=1)
    rows = table(found, published=True).rows
    assert {row.status for row in rows} == {"does_not_fit"}
    assert all("1.00 kB are free" in (row.reason or "") for row in rows)
    assert all(check.holds is None for check in (*checks(found), *flop_checks(found, TINY)))


def test_gradients_that_differ_are_told() -> None:
    """The check fails when its promise breaks."""
    found = Found(
        subject="a model",
        modes=(
            Measured(mode=OFF, saved_bytes=10, difference=0.0),
            Measured(mode=ON, saved_bytes=20, difference=0.1),
        ),
        input_bytes=8,
        outside_bytes=11,
    )
    assert [check.holds for check in checks(found)] == [False, False, False]


@pytest.mark.slow
def test_the_whole_study_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """From sizes to tables, with published ratios beside ours."""
    from llmfit.studies.base import StudyContext

    monkeypatch.setattr(checkpointing, "DEFAULT", TINY)
    result = checkpointing.run(StudyContext(bench=Benchmark("cpu")))
    assert all(check.holds for check in result.checks)
    cells = {row.name: row.cells for row in result.tables[0].rows}
    assert cells["on"]["their_speed"].value == pytest.approx(285 / 378)
    assert cells["on"]["their_memory"].value == pytest.approx(7.8 / 18.4)
    assert len(result.benchmarks) == 6
