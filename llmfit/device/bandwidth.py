"""How fast this machine's memory is read: a probe of half a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfit.device.cpu import set_threads
from llmfit.device.execution import Marks
from llmfit.device.memory import free_bytes
from llmfit.records import Device

_CACHES = 4
"""So many times a CPU's last-level caches are read, so that little of it comes from them."""
_LEAST_BYTES = 256 << 20
_MOST_BYTES = 4 << 30
_GPU_BYTES = 2 << 30
"""Beyond any GPU's cache (256 MB at most), and a millisecond long at 2 TB/s."""
_LARGEST_SHARE = 8
"""At most this part of the memory that is free is taken."""
_PASSES = 8
_CPU_TIME_S = 0.3
_CPU_FOLDER = Path("/sys/devices/system/cpu")


def measure_bandwidth(device: Device) -> float | None:
    """Bytes per second that all cores, or the GPU, read from memory; the best of some passes.

    Sums a large float32 array, which takes one addition a value, with a thread per physical core
    on a CPU. Takes about half a second; None where less memory is free than it takes.
    """
    import torch

    wanted = _GPU_BYTES if device == "cuda" else _beyond_caches_bytes()
    size = min(wanted, free_bytes(device) // _LARGEST_SHARE)
    if size < min(wanted, _LEAST_BYTES):
        return None
    threads = torch.get_num_threads()
    if device == "cpu":
        set_threads(None)
    try:
        best_s = min(_read_s(torch.ones(size // 4, dtype=torch.float32, device=device), device))
    finally:
        torch.set_num_threads(threads)
    return size // 4 * 4 / best_s


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


def _read_s(values: Any, device: Device) -> list[float]:
    """Seconds of each pass over ``values``; the first one, which warms up, is left out."""
    values.sum()
    taken: list[float] = []
    while len(taken) < _PASSES and (device == "cuda" or sum(taken) < _CPU_TIME_S):
        marks = Marks(device)
        marks.mark()
        values.sum()
        marks.mark()
        taken += marks.seconds()
    return taken
