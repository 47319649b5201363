"""What this machine is, without torch."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmfit.device import detect
from llmfit.device.detect import detect_cpu, detect_gpu
from llmfit.planning.speed.hardware import find_gpu


class FakeNvml:
    """A driver with these GPUs, as NVIDIA's bindings present it."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        """The bindings' error."""

    def __init__(self, *gpus: dict[str, Any]) -> None:
        self._gpus = gpus

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - the bindings' names
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self._gpus[index]

    def nvmlDeviceGetName(self, gpu: dict[str, Any]) -> str:  # noqa: N802
        return gpu["name"]

    def nvmlDeviceGetUUID(self, gpu: dict[str, Any]) -> str:  # noqa: N802
        return gpu["uuid"]

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=gpu["memory"])

    def nvmlDeviceGetMaxClockInfo(self, gpu: dict[str, Any], kind: int) -> int:  # noqa: N802
        names = {self.NVML_CLOCK_MEM: "megahertz", self.NVML_CLOCK_SM: "core megahertz"}
        return self._told(gpu, names[kind])

    def nvmlDeviceGetNumGpuCores(self, gpu: dict[str, Any]) -> int:  # noqa: N802
        return self._told(gpu, "cores")

    def nvmlDeviceGetMemoryBusWidth(self, gpu: dict[str, Any]) -> int:  # noqa: N802
        return self._told(gpu, "bits")

    def _told(self, gpu: dict[str, Any], what: str) -> int:
        if what not in gpu:
            raise self.NVMLError("not supported")
        return gpu[what]


RTX_3090 = {"name": "NVIDIA GeForce RTX 3090", "uuid": "GPU-11112222", "memory": 25_769_803_776}
# Clocks and bus widths as NVML tells them of cards whose data sheets give the bandwidth.
CLOCKED = [
    ({"megahertz": 9751, "bits": 384}, 936e9),  # RTX 3090, GDDR6X
    ({"megahertz": 10501, "bits": 384}, 1008e9),  # RTX 4090, GDDR6X
    ({"megahertz": 1593, "bits": 5120}, 2039e9),  # A100-SXM4-80GB, HBM2e
    ({"megahertz": 5001, "bits": 256}, 320e9),  # T4, GDDR6
]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a driver with given GPUs in the place of this machine's."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda *gpus: monkeypatch.setattr(detect, "load_nvml", lambda: FakeNvml(*gpus))


def test_a_known_card_has_the_tables_figures_and_the_drivers_memory(driver: Any) -> None:
    """Bandwidth and arithmetic by the data sheet, of the memory what the driver can give."""
    driver(RTX_3090)
    found, known = detect_gpu(), find_gpu("RTX 3090")
    assert found is not None
    assert (found.name, found.bandwidth, found.flops) == (known.name, known.bandwidth, known.flops)
    assert found.memory_bytes == RTX_3090["memory"]
    assert not found.assumed


@pytest.mark.parametrize(("told", "bandwidth"), CLOCKED)
def test_an_unknown_card_has_the_bandwidth_of_its_clock_and_bus(
    driver: Any, told: dict[str, int], bandwidth: float
) -> None:
    """Within a hundredth of the data sheets of four cards, which are asked for by another name."""
    driver({"name": "NVIDIA Example 1", "uuid": "GPU-1", "memory": 1 << 34, **told})
    found = detect_gpu()
    assert found is not None and found.bandwidth == pytest.approx(bandwidth, rel=0.01)
    assert found.flops is None


def test_an_unknown_card_that_tells_nothing_has_no_bandwidth(driver: Any) -> None:
    """Unknown is None."""
    driver({"name": "NVIDIA Example 1", "uuid": "GPU-1", "memory": 1 << 34})
    found = detect_gpu()
    assert found is not None and found.bandwidth is None


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("1", "NVIDIA B"), ("1,0", "NVIDIA B"), ("GPU-aaaa", "NVIDIA A"), ("", None), ("-1", None)],
)
def test_the_gpu_is_the_first_that_cuda_may_use(
    driver: Any, monkeypatch: pytest.MonkeyPatch, visible: str, expected: str | None
) -> None:
    """CUDA_VISIBLE_DEVICES by number and by UUID; hidden GPUs are none.

    Source: CUDA C++ Programming Guide, environment variables.
    """
    driver(
        {"name": "NVIDIA A", "uuid": "GPU-aaaa1111", "memory": 1 << 34},
        {"name": "NVIDIA B", "uuid": "GPU-bbbb2222", "memory": 1 << 34},
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = detect_gpu()
    assert (found and found.name) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "NVIDIA fast"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "NVIDIA fast"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "NVIDIA slow"),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "NVIDIA slow"),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}, "NVIDIA fast"),
    ],
)
def test_unlike_gpus_are_numbered_as_cuda_does(
    driver: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    """The fastest first, unless it is told to go by the bus, as the driver does.

    Source: CUDA C++ Programming Guide, environment variables.
    """
    both = {"memory": 1 << 34, "core megahertz": 2000}
    driver(
        {"name": "NVIDIA slow", "uuid": "GPU-1", "cores": 1024, **both},
        {"name": "NVIDIA fast", "uuid": "GPU-2", "cores": 8192, **both},
    )
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = detect_gpu()
    assert found is not None and found.name == expected


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no error."""
    monkeypatch.setattr(detect, "load_nvml", lambda: None)
    assert detect_gpu() is None


def test_this_cpu_is_described_as_an_assumption() -> None:
    """Its RAM is psutil's figure; bandwidth and arithmetic are guesses, and say so."""
    cpu = detect_cpu()
    assert cpu.kind == "cpu" and cpu.assumed
    assert cpu.memory_bytes == psutil.virtual_memory().total
    assert cpu.bandwidth is not None and 5e9 <= cpu.bandwidth <= 1e12
    assert cpu.flops is not None and 1e10 <= cpu.flops <= 1e15


def test_more_cores_let_expect_more_until_the_channels_are_full() -> None:
    """Two cores are bound by themselves, sixteen by two channels, servers have more of these."""
    expected = [detect._expected_bandwidth(cores) for cores in (1, 2, 4, 16, 64)]
    assert expected == sorted(expected)
    assert expected[2] == expected[3] < expected[4]


def test_finding_the_machine_imports_nothing_heavy() -> None:
    """A plan in less than a second: torch and numpy stay out of it."""
    code = (
        "import sys; from llmfit.device import detect; detect.detect_cpu(); detect.detect_gpu();"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
