"""Bytes of tensors that a piece of work needs at its peak, on every device, exactly.

    what is held ─► work ─► the largest sum of what was allocated and freed since ─► bytes

CUDA's allocator counts by itself. On a CPU torch's profiler lists every allocation and release of
its allocator; what a library takes from the system itself (oneDNN's scratch memory) is not in it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmfit.device.execution import TorchDevice

if TYPE_CHECKING:
    import torch

_EVENT = "[memory]"
"""The profiler's name of an allocation or a release."""


def working_bytes(work: Callable[[], object], device: TorchDevice) -> int | None:
    """Run ``work`` once: the peak of tensor bytes above those that were held before it.

    What ``work`` frees of what was held before counts as negative, so the result is at least 0.
    None on MPS, whose allocator keeps no peak.
    """
    import torch

    gc.collect()
    if device == "cpu":
        return _by_events(work)
    if device == "mps":
        work()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _by_events(work: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _stderr_hushed():
        profiler.start()
    try:
        work()
    finally:
        with _stderr_hushed():
            profiler.stop()
    recorder = profiler.profiler
    assert recorder is not None  # the profiler has run
    results: Any = recorder.kineto_results
    held = peak = 0
    memory = [event for event in results.events() if event.name() == _EVENT]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _stderr_hushed() -> Iterator[None]:
    """Within, what C++ writes to stderr goes nowhere: the profiler says there that it began."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of ``tensors``, each counted once however many share it."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr(), tensor.device] = storage.nbytes()
    return sum(storages.values())


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return tensor_bytes((*module.parameters(), *module.buffers()))


def training_bytes(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of a module, of the gradients that it holds, and of its optimizer's state."""
    import torch

    gradients = (p.grad for p in module.parameters() if p.grad is not None)
    state = (
        value
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    return module_bytes(module) + tensor_bytes(gradients) + tensor_bytes(state)


def peaks_allocated_bytes(gpus: int) -> tuple[int, ...]:
    """The most that torch has had allocated on each of the first ``gpus`` GPUs."""
    import torch

    return tuple(int(torch.cuda.max_memory_allocated(gpu)) for gpu in range(gpus))
