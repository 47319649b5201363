"""What is read from the machine: real counters, and written files or a stand-in for NVML."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmfit.device.conditions import gpu_conditions, held_back_s, overheated_count, read_conditions
from llmfit.device.nvml import driver_version
from llmfit.measure import measure
from llmfit.records import Workload
from llmfit.testing import FakeModel


def test_counters_of_this_machine() -> None:
    """Own CPU time grows by what was worked, the machine's by at least nearly that."""
    before = read_conditions("cpu")
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = read_conditions("cpu")
    own = after.own_cpu_s - before.own_cpu_s
    assert 0.25 <= own <= after.moment_s - before.moment_s + 0.1
    assert after.machine_cpu_s - before.machine_cpu_s >= own - 0.1
    assert before.cpus == psutil.cpu_count()
    assert before.gpu is None


BUSY_CHILD = """
import time
while time.process_time() < 0.4:
    pass
print(flush=True)
input()
"""


def test_a_child_is_not_another_process() -> None:
    """CPU time of a child counts as our own, while it runs and after it has ended."""
    before = read_conditions("cpu").own_cpu_s
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = read_conditions("cpu").own_cpu_s
        child.communicate(b"\n")
    ended = read_conditions("cpu").own_cpu_s
    assert running - before >= 0.35
    assert ended >= running - 0.05


def test_a_measurement_carries_its_warnings() -> None:
    """Two repeats are too few, and the measurement says so; conditions were read around them."""
    timing = measure(FakeModel(), Workload(prompt_tokens=4, new_tokens=3, repeats=2), device="cpu")
    assert "few_samples" in {warning.code for warning in timing.warnings}


def write(path: Path, text: str) -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_heat_counters_are_summed_over_cores(tmp_path: Path) -> None:
    """Cores' counts add up; the package's, which each of its cores shows, counts once."""
    for cpu, count in enumerate((3, 0, 4)):
        place = tmp_path / f"cpu{cpu}" / "thermal_throttle"
        write(place / "core_throttle_count", f"{count}\n")
        write(place / "package_throttle_count", "5\n")
    assert overheated_count(tmp_path) == 12
    assert overheated_count(tmp_path / "absent") is None


V2 = "usage_usec 900\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n"
V1 = "nr_periods 10\nnr_throttled 4\nthrottled_time 1500000000\n"


@pytest.mark.parametrize(
    ("listing", "files", "seconds"),
    [
        ("0::/a/b\n", {"a/b/cpu.stat": V2}, 2.5),
        ("0::/\n", {"cpu.stat": V2}, 2.5),
        ("0::/a/b\n", {"a/b/cpu.stat": "usage_usec 900\n", "a/cpu.stat": V2}, 2.5),
        ("3:memory:/x\n1:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.stat": V1}, 1.5),
        ("1:cpu:/outside/of/here\n", {"cpu/cpu.stat": V1}, 1.5),
        ("1:cpu:/x\n0::/x\n", {"cpu/x/cpu.stat": V1, "unified/x/cpu.stat": "usage_usec 1\n"}, 1.5),
        ("0::/\n", {"cpu.stat": "usage_usec 900\n"}, None),
        ("2:memory:/\n", {"cpu.stat": V2}, None),
    ],
    ids=[
        "v2",
        "v2 in a container",
        "v2 parent",
        "v1",
        "v1 in a container",
        "both",
        "none",
        "other",
    ],
)
def test_time_held_back_by_a_quota(
    tmp_path: Path, listing: str, files: dict[str, str], seconds: float | None
) -> None:
    """Both versions of control groups, in their own units, up to the mount's root."""
    write(tmp_path / "list", listing)
    for name, text in files.items():
        write(tmp_path / "mount" / name, text)
    assert held_back_s(tmp_path / "list", tmp_path / "mount") == seconds


def test_no_control_groups() -> None:
    """A system without them tells nothing."""
    assert held_back_s(Path("/absent/list"), Path("/absent")) is None


# ---------------------------------------------------------------- NVML


class NVMLError(Exception):
    """As in nvidia-ml-py: raised for what a GPU does not support."""


def nvml(**answers: Any) -> SimpleNamespace:
    """A module that answers as nvidia-ml-py does, with its constants; the rest is unsupported."""

    def function(name: str) -> Any:
        def call(*_: Any) -> Any:
            if name not in answers:
                raise NVMLError("Not Supported")
            return answers[name]

        return call

    names = (
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetViolationStatus",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetPowerManagementDefaultLimit",
        "nvmlDeviceGetComputeRunningProcesses",
    )
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_PERF_POLICY_THERMAL=1,
        nvmlClocksEventReasonSwThermalSlowdown=0x20,
        nvmlClocksEventReasonHwThermalSlowdown=0x40,
        nvmlClocksEventReasonHwPowerBrakeSlowdown=0x80,
        **{name: function(name) for name in names},
    )


def test_units_of_nvml() -> None:
    """Milliwatts and nanoseconds become watts and seconds; this process is no other."""
    found = gpu_conditions(
        nvml(
            nvmlDeviceGetCurrentClocksEventReasons=0x4 | 0x20 | 0x40,
            nvmlDeviceGetViolationStatus=SimpleNamespace(referenceTime=1, violationTime=2 * 10**9),
            nvmlDeviceGetEnforcedPowerLimit=300_000,
            nvmlDeviceGetPowerManagementDefaultLimit=350_000,
            nvmlDeviceGetComputeRunningProcesses=[
                SimpleNamespace(pid=os.getpid()),
                SimpleNamespace(pid=-1),
            ],
        ),
        handle=object(),
    )
    assert (found.power_limit_w, found.default_power_limit_w) == (300.0, 350.0)
    assert found.heat_s == 2.0
    assert found.slowdowns == ("heat",), "a GPU at its power limit (0x4) works as it is meant to"
    assert found.other_processes == 1


def test_what_a_gpu_does_not_tell_is_none() -> None:
    """A GPU that supports no query, and a list of processes without this one, tell nothing."""
    silent = gpu_conditions(nvml(), handle=object())
    assert (silent.other_processes, silent.heat_s, silent.power_limit_w) == (None, None, None)
    assert silent.slowdowns == ()
    strangers = nvml(nvmlDeviceGetComputeRunningProcesses=[SimpleNamespace(pid=-1)])
    assert gpu_conditions(strangers, handle=object()).other_processes is None


def test_old_bindings_without_a_function() -> None:
    """Bindings from before a query existed are no error."""
    old = SimpleNamespace(NVMLError=NVMLError, NVML_PERF_POLICY_THERMAL=1)
    assert gpu_conditions(old, handle=object()).power_limit_w is None


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_no_gpu_has_no_driver_version() -> None:
    """Without NVIDIA's driver its version is not known, and that is no error."""
    assert driver_version() is None
