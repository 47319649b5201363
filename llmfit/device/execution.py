"""Where torch runs, and moments in that device's own order of work; out of memory, told apart."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

from llmfit.errors import UsageError
from llmfit.records import Device

TorchDevice = Literal["cpu", "cuda", "mps"]
"""Where torch can run a module: what a deploy row runs on, and Apple's GPUs."""


def cuda_available() -> bool:
    """True where torch sees a CUDA device. Imports torch."""
    import torch

    return torch.cuda.is_available()


def compute_capability() -> tuple[int, int]:
    """Of the CUDA device, e.g. (8, 9) for Ada. Opens it."""
    import torch

    return torch.cuda.get_device_capability()


def require_gpus(count: int) -> None:
    """Raise UsageError where torch sees fewer than ``count`` CUDA devices. Imports torch."""
    import torch

    here = torch.cuda.device_count()
    if here < count:
        raise UsageError(
            f"{count} GPUs are asked for, torch sees {here}.",
            hint=f"--gpus {here}" if here else "--device cpu",
        )


def pick_device(asked: str | None) -> Device:
    """``cpu`` or ``cuda`` from what was asked; None or ``auto`` takes the GPU where there is one.

    Raises UsageError when CUDA is asked for and absent.
    """
    if asked == "cpu":
        return "cpu"
    if asked not in (None, "auto", "cuda"):
        raise UsageError(f"unknown device {asked!r}; known are auto, cpu, cuda.")
    if cuda_available():
        return "cuda"
    if asked == "cuda":
        raise UsageError("no CUDA device is visible to torch.", hint="--device cpu")
    return "cpu"


def pick_torch_device(asked: str | None) -> TorchDevice:
    """As ``pick_device``, Apple's GPUs among them: None or ``auto`` takes CUDA, else MPS."""
    import torch

    here = torch.backends.mps.is_available()
    if asked == "mps" and not here:
        raise UsageError("no MPS device is visible to torch.", hint="another device: cpu")
    if asked == "mps" or (asked in (None, "auto") and here and not cuda_available()):
        return "mps"
    if asked not in (None, "auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {asked!r}; known are auto, cpu, cuda, mps.")
    return pick_device(asked)


def synchronize(device: TorchDevice) -> None:
    """Wait for all work queued on the device."""
    if device != "cpu":
        import torch

        (torch.cuda if device == "cuda" else torch.mps).synchronize()


class Marks:
    """Moments between which time is taken: events on a GPU, the monotonic clock on a CPU.

    ``mark`` costs no synchronisation; ``seconds`` waits for the device once and returns the
    intervals between successive marks.
    """

    def __init__(self, device: TorchDevice) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note this moment in the device's own order of work."""
        if self._device == "cpu":
            self._marks.append(time.perf_counter())
            return
        import torch

        kind = torch.cuda.Event if self._device == "cuda" else torch.mps.Event
        event = kind(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> tuple[float, ...]:
        """The intervals between successive marks, in seconds."""
        synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device == "cpu":
            return tuple(end - start for start, end in pairs)
        return tuple(start.elapsed_time(end) / 1000.0 for start, end in pairs)


_OUT_OF_MEMORY = (
    "out of memory",  # CUDA's driver, where it loads a kernel; Dynamo, which tells of torch's error
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "annot allocate memory",
    "not enough memory",
)
"""What RuntimeErrors of memory say."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's and the driver's GPU errors, and for the system's of the host's memory."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )
