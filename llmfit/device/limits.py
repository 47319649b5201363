"""Hard limits on this process: its private memory on a CPU, torch's allocator on a GPU."""

from __future__ import annotations

import sys

from llmfit.device.memory import free_bytes, wake_gpu
from llmfit.device.nvml import driver_used_bytes
from llmfit.errors import DoesNotFit
from llmfit.planning.memory.prediction import CUDA_RUNTIME_BYTES
from llmfit.units import format_bytes

_CAPPED: set[int] = set()
"""GPUs whose memory is capped here."""


def limit_private_memory(limit_bytes: int | None) -> bool:
    """Let the system refuse this process more private writable memory; None lifts the limit.

    Counted is what is mapped, touched or not, a private mapping of a file too; what shares pages
    with others or cannot be written is not. A refused request is an error where it is made.
    False where the system has no such limit. Source: setrlimit(2), RLIMIT_DATA, Linux 4.7 on.
    """
    if sys.platform != "linux":
        return False
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = most if limit_bytes is None else limit_bytes
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    return True


def cap_gpu_memory(budget_bytes: int, gpus: int = 1) -> None:
    """Let this process have at most ``budget_bytes`` of the GPU, the driver's share included.

    Of several, so much of each of the first ``gpus``. torch's allocator gets what the driver
    leaves of them. Raises DoesNotFit where that is nothing.
    """
    import torch

    for gpu in range(gpus) if gpus > 1 else (torch.cuda.current_device(),):
        with torch.cuda.device(gpu):
            room = gpu_room_bytes(budget_bytes)
            total = torch.cuda.get_device_properties(gpu).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), gpu)
            _CAPPED.add(gpu)


def lift_gpu_caps() -> None:
    """Undo ``cap_gpu_memory``, which outlives the model that it was for; a user's own cap stays."""
    while _CAPPED:
        import torch

        torch.cuda.set_per_process_memory_fraction(1.0, _CAPPED.pop())


def gpu_room_bytes(budget_bytes: int | None) -> int:
    """What the driver leaves of a budget, or of the GPU; of no more than what is free.

    Within a budget that is with what torch has reserved already. Raises DoesNotFit where the driver
    leaves nothing of the budget.
    """
    free = free_bytes("cuda")
    if budget_bytes is None:
        return free
    share = driver_share_bytes()
    room = budget_bytes - share
    if room <= 0:
        raise DoesNotFit(
            f"the driver alone takes {format_bytes(share)} of GPU memory, the budget of "
            f"{format_bytes(budget_bytes)} leaves nothing for a model.",
            hint="a larger --gpu-gb, or --device cpu",
        )
    import torch

    return min(room, free + torch.cuda.memory_reserved())


def driver_share_bytes() -> int:
    """GPU memory that the driver holds for this process beside what torch's allocator reserved.

    The CUDA context, and the code of the kernels that are loaded: some are run here, so that they
    count. Where the driver does not tell what a process has, a stated figure.
    """
    import torch

    wake_gpu()
    used = driver_used_bytes()
    if used is None:
        return CUDA_RUNTIME_BYTES
    return max(0, used - torch.cuda.memory_reserved())
