"""Where a transformers model of one plan goes: one device, or several GPUs.

balanced   accelerate's balanced device map over the first GPUs, with room for cache and
           activations; the layers run one GPU after the other
tensor     transformers' own plan for tensor parallelism, one process a GPU
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmfit.device.execution import require_gpus
from llmfit.device.limits import gpu_room_bytes
from llmfit.errors import DoesNotFit, UsageError
from llmfit.parallel import group
from llmfit.planning.memory.split import working_bytes
from llmfit.records import Plan
from llmfit.units import format_bytes

if TYPE_CHECKING:
    from torch import nn

_LEFT_OUTSIDE = ("dispatched on the CPU or the disk", "weights offloaded to the disk")
"""What a ValueError says of a device map that ends outside the GPUs. Source: transformers 5.23,
quantizers/quantizer_bnb_4bit.py and integrations/accelerate.py."""
_UNKNOWN_SHARE = 0.1
"""Of a GPU, left for cache and activations where they are not known for the architecture."""


def placement(plan: Plan) -> dict[str, Any]:
    """The options of ``from_pretrained`` that put ``plan``'s model where it is to run.

    Raises UsageError where there are fewer GPUs, or where this process is none of the group.
    """
    if plan.gpus == 1:
        return {"device_map": {"": plan.device}}
    if plan.split == "balanced":
        return {"device_map": "balanced", "max_memory": rooms(plan, _free_bytes(plan))}
    if group.size() != plan.gpus:
        raise UsageError(
            f"{plan.gpus} processes share a model by tensor parallelism, this one is of a group of "
            f"{group.size()}.",
            hint=f"llmfit compare --gpus {plan.gpus} --split tensor, which starts them",
        )
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=plan.gpus, tp_plan="auto")}


def rooms(plan: Plan, free_bytes: list[int]) -> dict[int, int]:
    """Bytes of weights that each GPU may take, of the ``free_bytes`` that it has.

    The last may take all: where it is too much, running tells.
    """
    working = working_bytes(
        plan.model, plan.backend, plan.workload, plan.gpus, kv_cache_dtype=plan.kv_cache_dtype
    )
    last = plan.gpus - 1
    return {
        gpu: free
        if gpu == last
        else max(0, free - (int(free * _UNKNOWN_SHARE) if working is None else working))
        for gpu, free in enumerate(free_bytes)
    }


def require_on_gpus(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """A note of where the layers of a split model are; nothing for a model on one device.

    Raises DoesNotFit where accelerate has left parts of it to RAM or disk.
    """
    if plan.gpus == 1:
        return ()
    if plan.split == "tensor":
        return (
            f"tensor parallelism over {plan.gpus} processes, by transformers' plan; decode steps "
            "are run one kernel after the other",
        )
    from llmfit.decode.placement import layers_by_place

    found = layers_by_place(model)
    if any(place in ("cpu", "disk") for place in found):
        raise _too_large(plan)
    parts = ", ".join(f"{count} on GPU {place}" for place, count in found.items())
    return (
        f"accelerate's balanced device map over {plan.gpus} GPUs, layers: {parts}; decode steps "
        "are run one kernel after the other",
    )


@contextmanager
def on_gpus_alone(plan: Plan) -> Iterator[None]:
    """Raise DoesNotFit where a library says, while it loads a split model, that GPUs do not do."""
    try:
        yield
    except ValueError as exc:
        if plan.gpus > 1 and any(words in str(exc) for words in _LEFT_OUTSIDE):
            raise _too_large(plan) from exc
        raise


def _too_large(plan: Plan) -> DoesNotFit:
    budget = "" if plan.budget_bytes is None else f" of {format_bytes(plan.budget_bytes)}"
    return DoesNotFit(
        f"the weights of {plan.model.name} are more than {plan.gpus} GPUs{budget} hold beside "
        "cache and activations.",
        hint=f"llmfit plan {plan.model.name} --gpus 64, which tells how many do",
    )


def _free_bytes(plan: Plan) -> list[int]:
    """What each GPU has for torch, within the budget. Raises UsageError, DoesNotFit."""
    import torch

    require_gpus(plan.gpus)
    free = []
    for gpu in range(plan.gpus):
        with torch.cuda.device(gpu):
            free.append(gpu_room_bytes(plan.budget_bytes))
    return free
