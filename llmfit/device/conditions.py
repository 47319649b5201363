"""The machine's state around a measurement: load, swap, throttling, the GPU's other users.

Reading takes some milliseconds, so it is done before the first and after the last timed run, never
within. What a machine does not tell is None.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmfit.device.control_groups import LISTING, MOUNT, groups_of
from llmfit.device.nvml import nvml_device
from llmfit.records import Device
from llmfit.reliability import Conditions, GpuConditions

_CPU_FOLDER = Path("/sys/devices/system/cpu")

_SLOWDOWNS = (
    ("nvmlClocksEventReasonSwThermalSlowdown", "heat"),
    ("nvmlClocksEventReasonHwThermalSlowdown", "heat"),
    ("nvmlClocksEventReasonHwPowerBrakeSlowdown", "the power supply"),
)
"""NVML's reasons for lower clocks that are no normal working: a GPU at its power limit is."""


def read_conditions(device: Device) -> Conditions:
    """The state of the machine now, and of the GPU where ``device`` is one."""
    import psutil

    own = _own_cpu_s()
    gpu = _gpu_conditions() if device == "cuda" else None
    swapped, overheated, held_back = _swapped_bytes(), overheated_count(), held_back_s()
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # On Linux, time of guests is part of user and nice time already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return Conditions(
        moment_s=time.monotonic(),
        cpus=psutil.cpu_count() or 1,
        machine_cpu_s=sum(times) - idle - guests,
        own_cpu_s=own,
        swapped_bytes=swapped,
        overheated=overheated,
        held_back_s=held_back,
        gpu=gpu,
    )


def _own_cpu_s() -> float:
    """CPU time of this process, of its children that run, and of those that have ended."""
    import psutil

    total = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # it has just ended: its time is among this process's ended children
    return total


def _swapped_bytes() -> int | None:
    """Bytes moved to or from swap since the start of the machine; None where it does not tell."""
    import psutil

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # psutil warns where counters cannot be read
        try:
            swap = psutil.swap_memory()
        except OSError:
            return None
    return int(swap.sin + swap.sout)


def overheated_count(folder: Path = _CPU_FOLDER) -> int | None:
    """Times that a core or a package was slowed down by heat; None where Linux does not count.

    Source: the kernel's ABI/testing/sysfs-devices-system-cpu, thermal_throttle.
    """
    cores, packages = [], []
    for place in folder.glob("cpu[0-9]*/thermal_throttle"):
        cores.append(_number(place / "core_throttle_count"))
        packages.append(_number(place / "package_throttle_count"))
    counts = [count for count in cores if count is not None]
    # Every core of a package shows the package's count.
    shared = max((count for count in packages if count is not None), default=None)
    if not counts and shared is None:
        return None
    return sum(counts) + (shared or 0)


def held_back_s(listing: Path = LISTING, mount: Path = MOUNT) -> float | None:
    """Seconds that CPU quotas held this process's control group, or one above it, back.

    None where there is no such group. Source: the kernel's cgroup-v2.rst (``throttled_usec``)
    and scheduler/sched-bwc.rst (version 1, ``throttled_time`` in nanoseconds).
    """
    for groups in groups_of("cpu", listing, mount):
        found = [held for group in groups if (held := _held_in_group_s(group)) is not None]
        if found:
            return sum(found)
    return None


def _held_in_group_s(group: Path) -> float | None:
    try:
        pairs = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    except OSError:
        return None
    if "throttled_usec" in pairs:
        return int(pairs["throttled_usec"]) / 1e6
    return int(pairs["throttled_time"]) / 1e9 if "throttled_time" in pairs else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# ---------------------------------------------------------------- GPU


def _gpu_conditions() -> GpuConditions | None:
    found = nvml_device()
    return None if found is None else gpu_conditions(*found)


def gpu_conditions(nvml: Any, handle: Any) -> GpuConditions:
    """What NVML tells about a GPU; each figure is None where this GPU or driver has it not."""

    def ask(name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] | None = getattr(nvml, name, None)
        if function is None:  # older bindings lack it
            return None
        try:
            return function(handle, *arguments)
        except nvml.NVMLError:
            return None

    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    heat = ask("nvmlDeviceGetViolationStatus", nvml.NVML_PERF_POLICY_THERMAL)
    limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit")
    default_mw = ask("nvmlDeviceGetPowerManagementDefaultLimit")
    return GpuConditions(
        other_processes=_others(ask("nvmlDeviceGetComputeRunningProcesses")),
        slowdowns=_slowdowns(nvml, reasons) if reasons else (),
        heat_s=None if heat is None else heat.violationTime / 1e9,  # nanoseconds
        power_limit_w=None if limit_mw is None else limit_mw / 1e3,
        default_power_limit_w=None if default_mw is None else default_mw / 1e3,
    )


def _others(processes: Any) -> int | None:
    """Processes on the GPU beside this one.

    None where this one is not among them: in a container the driver may show none, or show them
    by the host's numbers.
    """
    pids = {process.pid for process in processes or ()}
    return len(pids) - 1 if os.getpid() in pids else None


def _slowdowns(nvml: Any, reasons: int) -> tuple[str, ...]:
    active = (words for name, words in _SLOWDOWNS if reasons & getattr(nvml, name))
    return tuple(dict.fromkeys(active))
