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
    monkeypatch.setattr(energy, "_RAPL", (tmp_path / "absent",))
    monkeypatch.setattr(energy, "nvml_device", lambda: None)
    assert energy_meter("cpu") is energy_meter("cuda") is energy_meter("mps") is None


@pytest.mark.slow
def test_rapl_is_read_by_zeus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Microjoules of a package and of its memory, in the kernel's own layout of files."""
    rapl = pytest.importorskip("zeus.device.cpu.rapl", reason="zeus is not installed")
    from zeus.device import cpu

    zone = tmp_path / "intel-rapl:0"
    counters = []
    for folder, name in ((zone, "package-0"), (zone / "intel-rapl:0:0", "dram")):
        folder.mkdir()
        (folder / "name").write_text(name)
        (folder / "max_energy_range_uj").write_text("262143328850")
        counters.append(folder / "energy_uj")
        counters[-1].write_text("1000000")
    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path))
    monkeypatch.setattr(energy, "_RAPL", (tmp_path,))
    monkeypatch.setattr(cpu, "_cpus", None)
    rapl.rapl_is_available.cache_clear()
    meter = energy_meter("cpu")
    assert meter is not None
    meter.start()
    counters[0].write_text("4000000")
    counters[1].write_text("1500000")
    meter.stop()
    rapl.rapl_is_available.cache_clear()
    assert meter.joules == pytest.approx(3.5)
    assert "RAPL" in meter.source
