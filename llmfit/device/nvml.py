"""NVIDIA's management library: its handle of torch's GPU, and what the driver tells."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any


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
