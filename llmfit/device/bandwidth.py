"""How fast this machine's memory is read: a probe of half a second."""

from __future__ import annotations

from pathlib import Path

from llmfit.device.cpu import set_threads
from llmfit.device.execution import Marks
from llmfit.device.huge_pages import ask_for_huge_pages
from llmfit.device.memory import free_bytes
from llmfit.records import Device

_CACHES = 2
"""So many times a CPU's last-level caches are read, so that a pass finds next to nothing of the one
before. Of more the memory alone takes seconds, where a host has to find it first."""
_LEAST_BYTES = 256 << 20
_MOST_BYTES = 4 << 30
_GPU_BYTES = 2 << 30
"""Beyond any GPU's cache (256 MB at most), and a millisecond long at 2 TB/s."""
_LARGEST_SHARE = 8
"""At most this part of the memory that is free is taken."""
_PASSES = 8
_CPU_TIME_S = 0.3
_CPU_FOLDER = Path("/sys/devices/system/cpu")


class MemoryReader:
    """An array beyond all caches, read pass by pass: the sum of its float32 values.

    A sum takes one addition a value. A CPU reads with a thread per physical core, and has the array
    in huge pages where there are such.
    """

    def __init__(self, device: Device, size: int) -> None:
        import torch

        self._device: Device = device
        self._values = torch.empty(size // 4, dtype=torch.float32, device=device)
        self.nbytes: int = self._values.nbytes
        if device == "cpu":
            ask_for_huge_pages(self._values.data_ptr(), self.nbytes)
        self._values.fill_(1.0)
        self.read_s()  # pages, threads and kernels are there from now on

    def read_s(self) -> float:
        """Seconds of one pass."""
        import torch

        threads = torch.get_num_threads()
        if self._device == "cpu":
            set_threads(None)
        try:
            marks = Marks(self._device)
            marks.mark()
            self._values.sum()
            marks.mark()
            return marks.seconds()[0]
        finally:
            torch.set_num_threads(threads)


def memory_reader(device: Device) -> MemoryReader | None:
    """None where less memory is free than it takes."""
    wanted = _GPU_BYTES if device == "cuda" else _beyond_caches_bytes()
    size = min(wanted, free_bytes(device) // _LARGEST_SHARE)
    return None if size < min(wanted, _LEAST_BYTES) else MemoryReader(device, size)


def measure_bandwidth(device: Device) -> float | None:
    """Bytes per second that all cores, or the GPU, read from memory; the best of some passes.

    Takes about half a second; None where less memory is free than it takes.
    """
    reader = memory_reader(device)
    if reader is None:
        return None
    taken: list[float] = []
    while len(taken) < _PASSES and (device == "cuda" or sum(taken) < _CPU_TIME_S):
        taken.append(reader.read_s())
    return reader.nbytes / min(taken)


def _beyond_caches_bytes() -> int:
    return max(_LEAST_BYTES, min(_CACHES * _last_level_cache_bytes(), _MOST_BYTES))


def _last_level_cache_bytes(folder: Path = _CPU_FOLDER) -> int:
    """All third-level caches together, 0 where Linux does not tell of any."""
    sizes: dict[str, int] = {}
    for cache in folder.glob("cpu[0-9]*/cache/index3"):
        try:
            cores = (cache / "shared_cpu_list").read_text()
            kibibytes = int((cache / "size").read_text().strip().removesuffix("K"))
        except (OSError, ValueError):
            continue
        sizes[cores] = kibibytes * 1024  # every core lists the cache that it shares
    return sum(sizes.values())
