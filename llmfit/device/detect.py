"""The GPU and CPU of this machine as hardware to plan for, without torch.

driver's name ─► table of parts ─► Hardware             CPU: cores and flags ─► Hardware, assumed
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from llmfit.device.cpu import cpu_flags, cpu_name, physical_cores
from llmfit.device.nvml import load_nvml
from llmfit.planning.speed.hardware import match_gpu
from llmfit.records import Hardware


def detect_gpu() -> Hardware | None:
    """The GPU that torch would use, as NVML and the table of parts tell; None without one.

    Imports no torch and makes no CUDA context. A card that the table lacks has the bandwidth of
    its memory clock and bus, and its arithmetic is not known.
    """
    nvml = load_nvml()
    if nvml is None:
        return None
    try:
        handle = _first_visible(nvml)
        if handle is None:
            return None
        name = nvml.nvmlDeviceGetName(handle)
        memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        return None
    name = name.decode() if isinstance(name, bytes) else str(name)
    known = match_gpu(name, memory_bytes)
    if known is not None:
        return replace(known, memory_bytes=memory_bytes)
    return Hardware(
        name=name,
        kind="gpu",
        memory_bytes=memory_bytes,
        bandwidth=_clocked_bandwidth(nvml, handle),
        flops=None,
        source="told by the driver",
    )


def _first_visible(nvml: Any) -> Any | None:
    """NVML's handle of the first GPU that CUDA may use; None where it may use none.

    CUDA_VISIBLE_DEVICES names GPUs by number or by the beginning of their UUID.
    """
    handles = _in_order_of_cuda(nvml)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return handles[0] if handles else None
    first = os.environ["CUDA_VISIBLE_DEVICES"].split(",")[0].strip()
    for index, handle in enumerate(handles):
        identity = nvml.nvmlDeviceGetUUID(handle)
        identity = identity.decode() if isinstance(identity, bytes) else str(identity)
        if first == str(index) or (first.startswith("GPU-") and identity.startswith(first)):
            return handle
    return None


def _in_order_of_cuda(nvml: Any) -> list[Any]:
    """NVML's handles as CUDA numbers the GPUs: the fastest first, where it is not told otherwise.

    NVML goes by the PCI bus. CUDA does not say how it tells the fastest: by cores times clock here,
    and by the bus among equals or where a driver does not tell these.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if len(handles) < 2 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return handles
    try:
        speeds = [
            nvml.nvmlDeviceGetNumGpuCores(each)
            * nvml.nvmlDeviceGetMaxClockInfo(each, nvml.NVML_CLOCK_SM)
            for each in handles
        ]
    except nvml.NVMLError:
        return handles
    return [handles[i] for i in sorted(range(len(handles)), key=lambda i: -speeds[i])]


def _clocked_bandwidth(nvml: Any, handle: Any) -> float | None:
    """Memory clock × 2 transfers × bus width, in bytes per second; None where not told.

    NVML gives half the data rate of GDDR and HBM memory: an RTX 3090's 9,751 MHz on 384 bits are
    its 936 GB/s. Source: NVIDIA, NVML API reference, and that card's data sheet.
    """
    try:
        megahertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
        bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
    except nvml.NVMLError:
        return None
    return float(megahertz * 1e6 * 2 * bits / 8)


def detect_cpu() -> Hardware:
    """This machine's CPU and RAM, with what its cores let expect of them: ``assumed`` is True.

    Bandwidth by the number of cores, arithmetic by cores, clock and widest registers; both are
    guesses, which measurements of own records replace.
    """
    import psutil

    cores = physical_cores()
    return Hardware(
        name=cpu_name(),
        kind="cpu",
        memory_bytes=int(psutil.virtual_memory().total),
        bandwidth=_expected_bandwidth(cores),
        flops=cores * _CLOCK_HZ * _flops_per_cycle(cpu_flags()),
        source=f"expected of {cores} cores",
        assumed=True,
    )


_CLOCK_HZ = 2.8e9
"""Under load with wide registers; from 2.0 (large servers) to 4.5 GHz (desktops)."""
_CORE_BANDWIDTH = 15e9
"""Bytes per second that one core draws. Source: 35 GB/s by two cores of an EPYC; a core's line
fill buffers allow 10 to 20."""
_DESKTOP_BANDWIDTH = 60e9
"""Two channels of DDR4-3200 to DDR5-6000 have 51 to 96 GB/s, of which about 0.8 are read."""
_DESKTOP_CORES = 16
_SERVER_BANDWIDTH = 200e9
"""Eight channels of DDR4-3200 have 205 GB/s, twelve of DDR5-4800 461."""

_FLOPS_PER_CYCLE = (
    ("amx_bf16", 512),
    ("avx512_bf16", 128),
    ("avx512f", 64),
    ("avx2", 32),
)
"""Multiply-adds × 2 of one core in 16 bits where it has such products, else in 32, by the flags of
/proc/cpuinfo. Source: two multiply-add units of 512 or 256 bits (Intel's and AMD's optimisation
manuals). AMX's tiles allow 2,048, of which memory leaves about a quarter."""
_OTHER_FLOPS_PER_CYCLE = 32
"""Four units of 128 bits, as in Apple's and Arm's large cores."""


def _expected_bandwidth(cores: int) -> float:
    roof = _DESKTOP_BANDWIDTH if cores <= _DESKTOP_CORES else _SERVER_BANDWIDTH
    return min(cores * _CORE_BANDWIDTH, roof)


def _flops_per_cycle(flags: frozenset[str]) -> int:
    return next((rate for flag, rate in _FLOPS_PER_CYCLE if flag in flags), _OTHER_FLOPS_PER_CYCLE)
