"""Where torch runs, and moments in that device's own order of work; out of memory, told apart."""

from __future__ import annotations

import sys
import time
from typing import Any

from llmfit.errors import UsageError
from llmfit.records import Device


def cuda_available() -> bool:
    """True where torch sees a CUDA device. Imports torch."""
    import torch

    return torch.cuda.is_available()


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


def synchronize(device: Device) -> None:
    """Wait for all work queued on the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class Marks:
    """Moments between which time is taken: CUDA events on a GPU, the monotonic clock on a CPU.

    ``mark`` costs no synchronisation; ``seconds`` waits for the device once and returns the
    intervals between successive marks.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note this moment in the device's own order of work."""
        if self._device == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> tuple[float, ...]:
        """The intervals between successive marks, in seconds."""
        synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device == "cuda":
            return tuple(start.elapsed_time(end) / 1000.0 for start, end in pairs)
        return tuple(end - start for start, end in pairs)


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's GPU error, and for the system's where memory of the host ran out."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            words in text
            for words in ("can't allocate memory", "annot allocate memory", "not enough memory")
        )
    )
