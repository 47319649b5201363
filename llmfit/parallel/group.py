"""What a process of a group knows of itself, and figures that all of them put together."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from llmfit.records import Device

_PATIENCE = timedelta(hours=2)
"""Loading large models takes ranks unlike long. Source: transformers 5.23, distributed/utils.py."""


def join(device: Device) -> tuple[int, int]:
    """Join the group that torchrun tells of; this process's rank, and the size of the group.

    On GPUs by NCCL, each process with the GPU of its own rank; on a CPU by gloo.
    """
    import torch

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = None
    if device == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", timeout=_PATIENCE, device_id=own
    )
    return rank, size


def size() -> int:
    """Processes of the group that this one has joined; 1 where it has joined none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return 1
    if not torch.distributed.is_initialized():
        return 1
    return int(torch.distributed.get_world_size())


def of_all(figure: int) -> tuple[int, ...]:
    """``figure`` of each process of the group, by rank; all have to ask. Alone, one's own."""
    if size() == 1:
        return (figure,)
    import torch

    figures: list[int] = [0] * size()
    torch.distributed.all_gather_object(figures, figure)
    return tuple(figures)
