"""Energy: counters read at both ends of a stretch, power integrated, and null without either."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from llmfit.device import energy
from llmfit.device.energy import energy_meter, integrated


class Driver:
    """Stands for NVIDIA's driver: a counter that the test moves, or only power."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, *, counter: bool) -> None:
        self.counter = counter
        self.millijoules = 5_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:  # noqa: N802
        """The counter, which cards before Volta lack."""
        if not self.counter:
            raise self.NVMLError
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:  # noqa: N802
        """A steady 80 W, in milliwatts."""
        return 80_000


@pytest.fixture
def no_gpu_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the GPU needs one."""
    monkeypatch.setattr(energy, "synchronize", lambda device: None)


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: Any) -> energy.EnergyMeter:
    """The meter of a GPU with that driver."""
    monkeypatch.setattr(energy, "nvml_device", lambda: (driver, object()))
    meter = energy_meter("cuda")
    assert meter is not None
    return meter


@pytest.mark.usefixtures("no_gpu_to_wait_for")
def test_the_counter_is_read_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stretches add up; what the counter moved between them is not counted."""
    driver = Driver(counter=True)
    meter = with_driver(monkeypatch, driver)
    for moved in (1_500, 500):
        meter.start()
        driver.millijoules += moved
        meter.stop()
        driver.millijoules += 99_000
    assert meter.joules == 2.0
    assert meter.source == "NVML's energy counter"


@pytest.mark.usefixtures("no_gpu_to_wait_for")
def test_a_counter_that_does_not_move_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch shorter than the counter's renewal is null, not 0 J."""
    meter = with_driver(monkeypatch, Driver(counter=True))
    meter.start()
    meter.stop()
    assert meter.joules is None
    assert meter.power_w is None


@pytest.mark.usefixtures("no_gpu_to_wait_for")
def test_an_old_card_has_its_power_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steady 80 W is 80 W whatever the stretch took, and the rate is said."""
    meter = with_driver(monkeypatch, Driver(counter=False))
    meter.start()
    time.sleep(0.25)
    meter.stop()
    assert meter.power_w == pytest.approx(80, rel=0.05)
    assert "10 times a second" in meter.source


def test_power_is_integrated_by_trapezoids() -> None:
    """A ramp from 0 to 100 W over 4 s is 200 J."""
    assert integrated([(0.0, 0.0), (1.0, 25.0), (4.0, 100.0)]) == pytest.approx(200)


def test_a_machine_without_counters_has_no_meter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No RAPL, no NVML, or MPS: null."""
    monkeypatch.setattr(energy, "_RAPL", tmp_path / "absent")
    monkeypatch.setattr(energy, "nvml_device", lambda: None)
    assert energy_meter("cpu") is energy_meter("cuda") is energy_meter("mps") is None


def zone(place: Path, name: str, microjoules: int) -> Path:
    """A zone of the kernel's, of which the counter's file is returned."""
    place.mkdir()
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text("262143328850\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place / "energy_uj"


def test_rapl_counts_packages_and_their_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the kernel's own layout of files; a core is part of its package, and counted once."""
    package = zone(tmp_path / "intel-rapl:0", "package-0", 1_000_000)
    memory = zone(tmp_path / "intel-rapl:0:1", "dram", 1_000_000)
    core = zone(tmp_path / "intel-rapl:0:0", "core", 1_000_000)
    platform = zone(tmp_path / "intel-rapl:1", "psys", 1_000_000)
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    meter = energy_meter("cpu")
    assert meter is not None
    meter.start()
    for counter, reads in ((package, 4_000_000), (memory, 1_500_000), (core, 9), (platform, 9)):
        counter.write_text(f"{reads}\n")
    meter.stop()
    assert meter.joules == pytest.approx(3.5)
    assert "RAPL" in meter.source


def test_a_rapl_counter_that_starts_anew_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """2 J before its largest value and 1 J after it are 3 J; one that is no number is no meter."""
    package = zone(tmp_path / "intel-rapl:0", "package-0", 262143328850 - 2_000_000)
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    meter = energy_meter("cpu")
    assert meter is not None
    meter.start()
    package.write_text("999999\n")
    meter.stop()
    assert meter.joules == pytest.approx(3.0)
    package.write_text("none\n")
    assert energy_meter("cpu") is None
