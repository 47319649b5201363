"""How fast this machine reads its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfit.device import bandwidth as bandwidth_probe
from llmfit.device.bandwidth import measure_bandwidth
from llmfit.device.cpu import physical_cores
from llmfit.device.detect import detect_gpu


def test_the_bandwidth_is_that_of_memory_and_threads_stay_as_they_were() -> None:
    """Beyond a gigabyte a second, below ten times what a core's caches give all cores together."""
    import torch

    threads = torch.get_num_threads()
    bandwidth = measure_bandwidth("cpu")
    assert bandwidth is not None
    assert 1e9 < bandwidth < physical_cores() * 200e9
    assert torch.get_num_threads() == threads


def test_the_bandwidth_is_unknown_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that a cache could hold would measure the cache."""
    monkeypatch.setattr(bandwidth_probe, "free_bytes", lambda _: 1 << 30)
    assert measure_bandwidth("cpu") is None


def test_caches_are_added_up_once_for_all_cores_that_share_them(tmp_path: Path) -> None:
    """Two caches of 32 MiB under four cores, as the kernel lists them, are 64 MiB."""
    for core, shared in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        cache = tmp_path / f"cpu{core}" / "cache" / "index3"
        cache.mkdir(parents=True)
        (cache / "shared_cpu_list").write_text(f"{shared}\n")
        (cache / "size").write_text("32768K\n")
    (tmp_path / "cpu4" / "cache" / "index3").mkdir(parents=True)  # tells nothing
    assert bandwidth_probe._last_level_cache_bytes(tmp_path) == 64 << 20


@pytest.mark.gpu
def test_a_gpus_bandwidth_is_near_its_data_sheet() -> None:
    """A sum over 2 GiB reads at least three quarters of what the vendor states, and not more."""
    known = detect_gpu()
    if known is None or known.bandwidth is None:
        pytest.skip("this GPU is not in the table of parts")
    measured = measure_bandwidth("cuda")
    assert measured is not None
    assert 0.75 * known.bandwidth < measured < 1.05 * known.bandwidth
