"""The machine: the only user of torch.cuda, and with ``conditions.py`` of NVML, /proc and psutil.

Memory is in bytes, time in seconds. On a CPU the resident set stands for memory, on a GPU the
allocator's own figures do, with what the driver gave to the process beside them.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from llmfit.errors import DoesNotFit, UsageError
from llmfit.planning.memory.prediction import CUDA_RUNTIME_BYTES
from llmfit.records import Device, Environment
from llmfit.units import format_bytes

_PACKAGES = (
    "llmfit", "torch", "transformers", "accelerate", "bitsandbytes", "GPTQModel", "optimum",
    "llama-cpp-python", "gguf", "compressed-tensors", "hqq", "optimum-quanto", "lm_eval",
    "datasets", "tokenizers", "numpy", "scipy",
)  # fmt: skip


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


def physical_cores() -> int:
    """Physical cores that this process may use, at least 1."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads (None: one per physical core); returns the number."""
    import torch

    count = threads or physical_cores()
    torch.set_num_threads(count)
    return count


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


def resident_bytes() -> int:
    """Resident set of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def resident_bytes_of(pid: int) -> int | None:
    """Resident set of another process; None where it has ended or is not ours to ask."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


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


def return_freed_memory() -> None:
    """Give the C heap's free pages back to the system, where its library can (glibc)."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _peak_from_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Memory of this process since a ``MemoryMeter`` was started, in bytes."""

    idle_ram_bytes: int
    peak_ram_bytes: int | None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    driver_peak_bytes: int | None = None


class MemoryMeter:
    """Peak memory from its making on, less what the process held then."""

    def __init__(self, device: Device) -> None:
        gc.collect()
        self._device = device
        self._loaded: int | None = None
        self._driver_peak: int | None = None
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
        """Ask the driver how much memory is in use; its largest answer is reported."""
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
        )


def nvml_device() -> tuple[ModuleType, Any] | None:
    """NVML's module and its handle of torch's present GPU; None where NVML is not to be had."""
    import torch

    nvml = load_nvml()
    if nvml is None:
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}".encode())
    except nvml.NVMLError:
        return None


def load_nvml() -> ModuleType | None:
    """The module of NVML, begun; None without its package or without NVIDIA's driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    module: ModuleType = pynvml
    return module


def driver_used_bytes() -> int | None:
    """GPU memory that the driver gave to this process; None where it does not tell."""
    found = nvml_device()
    if found is None:
        return None
    nvml, handle = found
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    for process in processes:
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    return None


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None without one, or where NVML is not to be had."""
    nvml = load_nvml()
    if nvml is None:
        return None
    try:
        told = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        return None
    return told.decode() if isinstance(told, bytes) else str(told)


def driver_share_bytes() -> int:
    """GPU memory that the driver holds for this process beside what torch's allocator reserved.

    The CUDA context, and the code of the kernels that are loaded: some are run here, so that they
    count. Where the driver does not tell what a process has, a stated figure.
    """
    import torch

    torch.nn.functional.linear(*torch.ones(2, 64, 64, dtype=torch.bfloat16, device="cuda"))
    torch.nn.functional.scaled_dot_product_attention(
        *torch.ones(3, 1, 1, 64, 64, dtype=torch.bfloat16, device="cuda")
    )
    torch.cuda.synchronize()
    used = driver_used_bytes()
    if used is None:
        return CUDA_RUNTIME_BYTES
    return max(0, used - torch.cuda.memory_reserved())


def cap_gpu_memory(budget_bytes: int) -> None:
    """Let this process have at most ``budget_bytes`` of the GPU, the driver's share included.

    torch's allocator gets what the driver leaves of them. Raises DoesNotFit where that is nothing.
    """
    import torch

    room = gpu_room_bytes(budget_bytes)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))


def gpu_room_bytes(budget_bytes: int | None) -> int:
    """What the driver leaves of a budget, or of the GPU; of no more than what is free.

    Raises DoesNotFit where the driver leaves nothing of the budget.
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
    return min(room, free)


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


def environment(*, bandwidth: bool = False) -> Environment:
    """This machine and the versions of what the rows ran on; measured ``bandwidth`` on request."""
    import psutil
    import torch

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = memory = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu, memory = properties.name, int(properties.total_memory)
    return Environment(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=cpu_name(),
        cpu_cores=physical_cores(),
        ram_bytes=int(psutil.virtual_memory().total),
        gpu=gpu,
        gpu_memory_bytes=memory,
        cuda=torch.version.cuda if gpu else None,
        driver=driver_version() if gpu else None,
        packages=packages,
        cpu_bandwidth=measure_bandwidth("cpu") if bandwidth else None,
        gpu_bandwidth=measure_bandwidth("cuda") if bandwidth and gpu else None,
    )


def cpu_name() -> str:
    """What the CPU calls itself, e.g. ``AMD EPYC 9354P 32-Core Processor``."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module's answer below is all there is
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------- bandwidth


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


def free_bytes(device: Device) -> int:
    """Memory that is free now: the GPU's, or the RAM that the system can give."""
    import psutil
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
