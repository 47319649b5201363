"""Joules that a GPU or a CPU took over a stretch of work, from the counters that it has.

GPU: NVML's energy counter (Volta on), else its power, sampled at a stated rate
CPU: RAPL's counters, where the system lets us read them
otherwise None
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from llmfit.device.execution import TorchDevice, synchronize
from llmfit.device.nvml import nvml_device

SAMPLES_PER_S = 10
"""Rate at which power is read where there is no energy counter. NVML renews it about as often."""


class EnergyMeter(ABC):
    """Joules over one or more stretches of work, ``start`` to ``stop``."""

    source: str
    """What counted, for people."""

    def __init__(self, device: TorchDevice) -> None:
        self._device = device
        self._joules = 0.0
        self._seconds = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Begin a stretch, once the device is idle."""
        synchronize(self._device)
        self._begin()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """End the stretch, once the device is idle, and add it up."""
        synchronize(self._device)
        self._seconds += time.perf_counter() - self._began
        self._joules += self._end()

    @property
    def joules(self) -> float | None:
        """Joules of all stretches; None where the counter did not move at all."""
        return self._joules if self._joules > 0 else None

    @property
    def power_w(self) -> float | None:
        """Mean power over all stretches, in watts."""
        return None if self.joules is None else self.joules / self._seconds

    @abstractmethod
    def _begin(self) -> None:
        """Note where the counter stands."""

    @abstractmethod
    def _end(self) -> float:
        """Joules since ``_begin``."""


def energy_meter(device: TorchDevice) -> EnergyMeter | None:
    """A meter of the device's energy; None where this machine tells none."""
    if device == "cuda":
        return _gpu_meter()
    return _cpu_meter() if device == "cpu" else None


# ---------------------------------------------------------------- GPU


def _gpu_meter() -> EnergyMeter | None:
    found = nvml_device()
    if found is None:
        return None
    nvml, handle = found
    for kind in (_NvmlCounter, _NvmlPower):
        try:
            return kind(nvml, handle)
        except nvml.NVMLError:
            continue
    return None


class _NvmlCounter(EnergyMeter):
    """NVML's counter of millijoules since the driver was loaded."""

    source = "NVML's energy counter"

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        super().__init__("cuda")
        self._read = lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        self._start_mj = self._read()

    def _begin(self) -> None:
        self._start_mj = self._read()

    def _end(self) -> float:
        return (self._read() - self._start_mj) / 1000


class _NvmlPower(EnergyMeter):
    """NVML's power in milliwatts, read by a thread and integrated by trapezoids."""

    source = f"NVML's power, sampled {SAMPLES_PER_S} times a second"

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        super().__init__("cuda")
        self._read = lambda: int(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
        self._read()  # an old card refuses here
        self._samples: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def _sample(self) -> None:
        self._samples.append((time.perf_counter(), self._read()))

    def _watch(self) -> None:
        while not self._done.wait(1 / SAMPLES_PER_S):
            self._sample()

    def _begin(self) -> None:
        self._samples.clear()
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._sample()

    def _end(self) -> float:
        self._sample()
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        return integrated(sorted(self._samples))


def integrated(samples: list[tuple[float, float]]) -> float:
    """Joules from moments in seconds and power in watts, by trapezoids."""
    return sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairwise(samples))


# ---------------------------------------------------------------- CPU


_RAPL = Path("/sys/class/powercap")
"""Where the kernel has the counters' zones; AMD's bear Intel's name too. Source: Linux,
Documentation/power/powercap/powercap.rst."""


def _cpu_meter() -> EnergyMeter | None:
    packages = [
        zone for zone in _RAPL.glob("intel-rapl:*") if _zone_name(zone).startswith("package")
    ]
    memories = [zone for zone in _RAPL.glob("intel-rapl:*:*") if _zone_name(zone) == "dram"]
    zones = [*packages, *(zone for zone in memories if zone not in packages)]
    try:
        return _Rapl(zones) if packages else None
    except (OSError, ValueError):
        return None  # only root may read them, or they are no numbers


def _zone_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


class _Rapl(EnergyMeter):
    """RAPL's counters of all CPU packages, with their DRAM where that is counted.

    A counter of microjoules starts anew at its largest value, which a package at 150 W reaches in
    half an hour: a stretch may pass that once.
    """

    source = "RAPL, all CPU packages of the machine"

    def __init__(self, zones: Sequence[Path]) -> None:
        super().__init__("cpu")
        self._zones = zones
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._start_uj = self._read()

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def _begin(self) -> None:
        self._start_uj = self._read()

    def _end(self) -> float:
        moved = zip(self._start_uj, self._read(), self._ranges, strict=True)
        return sum((after - before) % (most + 1) for before, after, most in moved) / 1e6
