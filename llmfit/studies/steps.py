"""What studies of training steps share: gradients, bytes kept, whether a step fits, its time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmfit.benchmark import Benchmark, Case
from llmfit.device.allocations import tensor_bytes, working_bytes
from llmfit.device.execution import TorchDevice, is_out_of_memory
from llmfit.device.memory import free_bytes
from llmfit.errors import first_line
from llmfit.study_records import BenchmarkResult
from llmfit.units import format_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def gradients_of(model: torch.nn.Module, backward: Callable[[], object]) -> list[Tensor]:
    """Gradients that ``backward`` leaves in ``model``, on the CPU; the model then holds none."""
    model.zero_grad(set_to_none=True)
    backward()
    found = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def relative_difference(first: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """‖other − first‖ ÷ ‖first‖ over all tensors; 0 only where all are equal bit by bit.

    Raises ValueError where they are not as many.
    """
    pairs = [(a.double(), b.double()) for a, b in zip(first, other, strict=True)]
    apart = math.fsum((b - a).square().sum().item() for a, b in pairs)
    whole = math.fsum(a.square().sum().item() for a, _ in pairs)
    return math.sqrt(apart / whole) if apart else 0.0


def saved_bytes(
    model: torch.nn.Module, forward: Callable[[], object], *, beside: Sequence[Tensor] = ()
) -> int:
    """Bytes that ``forward`` keeps for a backward pass: each storage once, no parameters.

    ``beside`` may grow meanwhile: tensors that are kept where autograd's hooks see none.
    """
    from torch.autograd.graph import saved_tensors_hooks

    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    all_kept = (*kept, *beside)
    found = tensor_bytes(t for t in all_kept if t.untyped_storage().data_ptr() not in weights)
    del graph  # until here: a storage that is freed may come again as another tensor's
    return found


def does_not_fit(
    step: Callable[[], object],
    *,
    one: Callable[[], object],
    sequences: int,
    device: TorchDevice,
) -> str | None:
    """Run ``step``, whose memory grows with its ``sequences``; the reason where it does not fit.

    On a CPU, where the end of memory kills, ``one`` does it for a single sequence first: so many
    times what that needs must be free.
    """
    import torch

    if device == "cpu":
        need, free = sequences * (working_bytes(one, device) or 0), free_bytes("cpu")
        if need > free:
            return f"a step needs about {format_bytes(need)}, {format_bytes(free)} are free"
    try:
        step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory: {first_line(error)}"
    else:
        return None
    # Behind the except clause, whose error holds the tensors of the step.
    if device == "cuda":
        torch.cuda.empty_cache()
    return reason


def still_optimizer(
    model: torch.nn.Module, backward: Callable[[], object]
) -> torch.optim.Optimizer:
    """AdamW that changes no weight of ``model``, its state made by a first step of ``backward``.

    At a learning rate of 0 a step costs the same and every case begins with the same weights.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    take_step(optimizer, backward)  # makes the state, which is there in every later step
    optimizer.zero_grad(set_to_none=True)  # freed later, they would hide a step's need
    return optimizer


def take_step(optimizer: torch.optim.Optimizer, backward: Callable[[], object]) -> None:
    """A training step with the gradients that ``backward`` leaves, and no others."""
    optimizer.zero_grad(set_to_none=True)
    backward()
    optimizer.step()


def time_in_turns(
    bench: Benchmark,
    cases: Sequence[Case | None],
    *,
    runs: int,
    progress: Callable[[int, int], None],
) -> list[BenchmarkResult | None]:
    """The result of each case, which take turns; None for None, what does not fit."""
    fitting = [case for case in cases if case is not None]
    if not fitting:
        return [None] * len(cases)
    results = iter(bench.run_in_turns(fitting, n_warmup=1, n_runs=runs, progress=progress))
    return [None if case is None else next(results) for case in cases]
