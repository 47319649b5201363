"""Work of a GPU recorded once as a CUDA graph, and replayed by one launch; how long it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import torch
from torch.utils._pytree import tree_leaves

from llmfit.device.execution import Marks
from llmfit.records import Device

T = TypeVar("T")
Graph = torch.cuda.CUDAGraph

_WARM_UPS = 3
"""Runs before a capture, in which libraries allocate what they keep. Source: PyTorch's notes on
CUDA graphs."""
_TOLERANCE = 2**-7
"""Largest difference of a replay, relative to its norm: kernels may add up in another order."""


def capture(run: Callable[[], T], *, after: Callable[[], object] = lambda: None) -> tuple[Graph, T]:
    """``run`` as a CUDA graph, and what it returns, which every replay fills again.

    It is run some times before, each followed by ``after``. Raises RuntimeError where it waits for
    the GPU, allocates outside the graph's pool, or starts kernels elsewhere than on the current
    stream, which are not recorded: a replay then gives other numbers. The GPU is then idle.
    """
    current = torch.cuda.current_stream()
    side = _side_stream(torch.cuda.current_device())
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            expected = run()
            after()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side):
            made = run()
    except RuntimeError:
        torch.cuda.set_stream(current)  # which a capture that fails at its end does not do
        torch.cuda.synchronize()
        raise
    outputs = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
    wanted = [each for each in tree_leaves(expected) if isinstance(each, torch.Tensor)]
    for output in outputs:
        output.fill_(float("nan"))
    graph.replay()
    after()
    if not all(map(_alike, outputs, wanted)):
        raise RuntimeError("not all of its kernels are recorded: a replay gives other numbers")
    return graph, made


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The GPU's one stream for captures: cuBLAS keeps a workspace for each that it has seen."""
    return torch.cuda.Stream(device)


def _alike(output: torch.Tensor, wanted: torch.Tensor) -> bool:
    """True for the same numbers but for rounding; what is not finite differs."""
    difference = (output.float() - wanted.float()).norm()
    return bool(difference <= _TOLERANCE * wanted.float().norm())


def median_s(run: Callable[[], object], device: Device, passes: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    run()
    samples: list[float] = []
    for _ in range(passes):
        marks = Marks(device)
        marks.mark()
        run()
        marks.mark()
        samples += marks.seconds()
    return median(samples)
