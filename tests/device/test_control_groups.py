"""Memory that control groups leave, from folders as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfit.device.control_groups import memory_left_bytes


def write(group: Path, **files: str) -> None:
    """A control group's files; two underscores stand for a dot."""
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text)


def test_the_least_of_all_groups_above_counts_in_version_2(tmp_path: Path) -> None:
    """A pod of 2 GB within a slice without a limit; pages of files can be dropped."""
    (tmp_path / "cgroup").write_text("0::/slice/pod\n")
    mount = tmp_path / "mount"
    stat = "anon 5\nactive_file 100\ninactive_file 200\n"
    write(mount / "slice", memory__max="max\n", memory__current="7", memory__stat=stat)
    write(
        mount / "slice" / "pod", memory__max="2000000000\n", memory__current="500000300\n",
        memory__stat=stat,
    )  # fmt: skip
    assert memory_left_bytes(tmp_path / "cgroup", mount) == 1_500_000_000


def test_version_1_has_files_of_other_names(tmp_path: Path) -> None:
    """And a folder for each controller."""
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/a\n3:memory:/a\n")
    write(
        tmp_path / "memory" / "a", memory__limit_in_bytes="1000", memory__usage_in_bytes="1400",
        memory__stat="cache 0\n",
    )  # fmt: skip
    assert memory_left_bytes(tmp_path / "cgroup", tmp_path) == 0


@pytest.mark.parametrize("text", ["", "0::/\n"])
def test_without_a_limit_nothing_is_said(tmp_path: Path, text: str) -> None:
    """No group at all, or the root, which has no such files."""
    (tmp_path / "cgroup").write_text(text)
    assert memory_left_bytes(tmp_path / "cgroup", tmp_path) is None
    assert memory_left_bytes(tmp_path / "missing", tmp_path) is None
