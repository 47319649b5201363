"""Peaks of tensor bytes on a CPU are those that the shapes say."""

from __future__ import annotations

import pytest
import torch

from llmfit.device.allocations import module_bytes, tensor_bytes, working_bytes

MIB = 2**20


def test_what_is_freed_in_between_does_not_add_up() -> None:
    """Three tensors of a MiB one after the other: two are alive at once."""

    def work() -> torch.Tensor:
        one = torch.empty(MIB, dtype=torch.uint8)
        two = one.neg()
        del one
        return two.neg()

    assert working_bytes(work, "cpu") == 2 * MIB


def test_materialised_attention_holds_two_matrices_of_scores() -> None:
    """Scores and their softmax, N×N in float32, are both alive at the peak."""
    x = torch.randn(1, 2, 256, 32)

    def work() -> torch.Tensor:
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x

    assert working_bytes(work, "cpu") == 2 * (2 * 256 * 256 * 4)


def test_nothing_allocated_is_nothing() -> None:
    """Work in place needs no bytes."""
    x = torch.ones(MIB)
    assert working_bytes(x.neg_, "cpu") == 0


def test_the_profiler_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Its own announcements on stderr are kept off; the work's words are not."""
    import os

    working_bytes(lambda: os.write(2, b"work\n"), "cpu")
    assert capfd.readouterr().err == "work\n"


def test_shared_storage_counts_once() -> None:
    """A view, and a tied weight, take no memory of their own."""
    x = torch.ones(10)
    assert tensor_bytes([x, x[2:], x.view(2, 5)]) == 40
    tied = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False) for _ in range(2)])
    tied[1].weight = tied[0].weight
    assert module_bytes(tied) == 64
