"""This machine's CPU by name and number of cores, and the threads that torch may use on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def physical_cores() -> int:
    """Physical cores that this process may use, at least 1."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))


def cpu_name() -> str:
    """What the CPU calls itself, e.g. ``AMD EPYC 9354P 32-Core Processor``."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module's answer below is all there is
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as Linux tells; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        return frozenset()
    return frozenset()


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads (None: one per physical core); returns the number."""
    import torch

    count = threads or physical_cores()
    torch.set_num_threads(count)
    return count
