"""Memory of this process and of the machine, in bytes: what is held, its peak, what is free.

On a CPU the resident set stands for memory, on a GPU the allocator's own figures do, with what the
driver gave to the process beside them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfit.device.control_groups import memory_left_bytes
from llmfit.device.nvml import driver_used_bytes
from llmfit.records import Device


def resident_bytes() -> int:
    """Resident set of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def private_bytes() -> int:
    """Private writable memory that this process has mapped, touched or not; 0 where not told."""
    import psutil

    return int(getattr(psutil.Process().memory_info(), "data", 0))


def resident_bytes_of(pid: int) -> int | None:
    """Resident set of another process; None where it has ended or is not ours to ask."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def peak_resident_bytes() -> int | None:
    """Largest resident set of this process so far; None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return _peak_from_rusage()
    return _peak_from_rusage()


def restart_peak() -> bool:
    """Let ``peak_resident_bytes`` start again at the present value; False where it cannot."""
    try:  # Linux
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_from_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


_PRESENT = 1 << 63
"""Source: Linux, Documentation/admin-guide/mm/pagemap.rst."""
_MADV_POPULATE_READ = 22
"""Source: Linux 5.14, include/uapi/asm-generic/mman-common.h."""


def library_pages() -> list[tuple[int, int]]:
    """Where pages of read-only files are in this process's memory: ``(address, bytes)`` each.

    Empty where the system does not tell. A fork leaves them out, and finds them again one by one.
    """
    import numpy as np

    size = os.sysconf("SC_PAGE_SIZE")
    found: list[tuple[int, int]] = []
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            for line in maps:
                addresses, rights, *_, name = line.split(maxsplit=5)
                if "w" in rights or not name.startswith("/"):
                    continue
                start, end = (int(address, 16) for address in addresses.split("-"))
                pagemap.seek(8 * (start // size))
                entries = np.frombuffer(pagemap.read(8 * ((end - start) // size)), np.uint64)
                present = np.pad((entries & np.uint64(_PRESENT)) != 0, 1).astype(np.int8)
                edges = np.flatnonzero(np.diff(present)).tolist()
                found += [
                    (start + first * size, (last - first) * size)
                    for first, last in zip(edges[::2], edges[1::2], strict=True)
                ]
    except OSError:
        return []
    return found


def map_pages(pages: Iterable[tuple[int, int]]) -> None:
    """Bring such pages into this process too, which inherited their addresses, where it can."""
    import ctypes

    for address, size in pages:
        _of_glibc("madvise", ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_POPULATE_READ)


def return_freed_memory() -> None:
    """Give the C heap's free pages back to the system, where its library can (glibc)."""
    _of_glibc("malloc_trim", 0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # Source: glibc, malloc/malloc.h
_TENSOR_BYTES = 1 << 20
_GROWN_MMAP_BYTES = 32 << 20
"""Where glibc's own threshold ends up once a large block was freed. Source: mallopt(3)."""


@contextmanager
def freed_tensors_returned() -> Iterator[None]:
    """Within, a freed block of a MiB or more goes back to the system at once (glibc).

    Loading frees as many bytes as it keeps: checkpoints' tensors that a kernel repacks. In the heap
    they leave holes, a third to two thirds of a 4-bit model's weights, that nothing later fills.
    Outside, such blocks stay mapped, as the working set of a prompt would be mapped anew in every
    layer.
    """
    _of_glibc("mallopt", _M_MMAP_THRESHOLD, _TENSOR_BYTES)
    try:
        yield
    finally:
        _of_glibc("mallopt", _M_MMAP_THRESHOLD, _GROWN_MMAP_BYTES)
        _of_glibc("mallopt", _M_TRIM_THRESHOLD, 2 * _GROWN_MMAP_BYTES)
        return_freed_memory()


def _of_glibc(name: str, *arguments: Any) -> None:
    """Call a function of the C library, where it has such a one."""
    if sys.platform == "linux":
        import ctypes

        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*arguments)


def free_bytes(device: Device) -> int:
    """Memory that is free now: the GPU's, or the RAM that system and control groups give."""
    import psutil

    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    available, left = int(psutil.virtual_memory().available), memory_left_bytes()
    return available if left is None else min(available, left)


def wake_gpu() -> None:
    """Make torch's context on the GPU and load kernels of products and attention.

    What the driver gives for them is then no part of what is measured after it.
    """
    import torch

    torch.nn.functional.linear(*torch.ones(2, 64, 64, dtype=torch.bfloat16, device="cuda"))
    torch.nn.functional.scaled_dot_product_attention(
        *torch.ones(3, 1, 1, 64, 64, dtype=torch.bfloat16, device="cuda")
    )
    torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Memory of this process since a ``MemoryMeter`` was started, in bytes."""

    idle_ram_bytes: int
    peak_ram_bytes: int | None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    driver_peak_bytes: int | None = None
    beyond_context_bytes: int | None = None
    """The driver's peak less what it had given before, context included; of a meter that asks it
    of what torch does not allocate."""


class MemoryMeter:
    """Peak memory from its making on, less what the process held then."""

    def __init__(self, device: Device, *, beyond_torch: bool = False) -> None:
        """``beyond_torch``: what takes the GPU's memory is another library than torch.

        Then the context is made first, and what the driver gives after it is the row's.
        """
        gc.collect()
        self._device = device
        self._loaded: int | None = None
        self._driver_idle: int | None = None
        self._driver_peak: int | None = None
        if device == "cuda" and beyond_torch:
            wake_gpu()
            self._driver_idle = driver_used_bytes()
        self._idle = resident_bytes()
        self._exact = restart_peak()
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def loaded(self) -> None:
        """Note what is allocated now that the model is in memory."""
        if self._device == "cuda":
            import torch

            self._loaded = torch.cuda.memory_allocated()
        self.sample()

    def sample(self) -> None:
        """Ask the driver how much memory is in use; its largest answer is reported.

        Between the runs of a benchmark too, while the KV cache is there: what is not torch's goes
        back to the driver with its decoder.
        """
        if self._device == "cuda":
            used = driver_used_bytes()
            if used is not None:
                self._driver_peak = max(used, self._driver_peak or 0)

    def read(self) -> PeakMemory:
        """The peaks up to now."""
        self.sample()
        peak = peak_resident_bytes()
        # Without a restart the peak may lie before the meter, when it says nothing of the model.
        known = peak is not None and (self._exact or peak > self._idle)
        ram = max(0, peak - self._idle) if known and peak is not None else None
        if self._device == "cpu":
            return PeakMemory(self._idle, ram)
        import torch

        return PeakMemory(
            idle_ram_bytes=self._idle,
            peak_ram_bytes=ram,
            allocated_bytes=self._loaded,
            reserved_bytes=torch.cuda.max_memory_reserved(),
            peak_allocated_bytes=torch.cuda.max_memory_allocated(),
            driver_peak_bytes=self._driver_peak,
            beyond_context_bytes=self._beyond_context(),
        )

    def _beyond_context(self) -> int | None:
        if self._driver_idle is None or self._driver_peak is None:
            return None
        return max(0, self._driver_peak - self._driver_idle)
