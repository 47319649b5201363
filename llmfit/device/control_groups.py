"""The control groups that hold this process, and the memory that they leave it (Linux)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

LISTING = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def groups_of(
    controller: str, listing: Path = LISTING, mount: Path = MOUNT
) -> Iterator[list[Path]]:
    """Folders of this process's group and of those above it, for each place they may be in.

    Of version 1 those of ``controller``, of version 2 those of all. Nothing where there are none.
    """
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (mount / (controllers or "unified"), mount):
            group = root / path.lstrip("/")
            yield [group, *(above for above in group.parents if above.is_relative_to(root))]


def memory_left_bytes(listing: Path = LISTING, mount: Path = MOUNT) -> int | None:
    """Memory that this process's groups let it take; None where none of them has a limit.

    Pages of files, which the system drops first, count as left. Source: the kernel's cgroup-v2.rst
    (``memory.max``) and cgroup-v1/memory.rst.
    """
    left = [
        room
        for groups in groups_of("memory", listing, mount)
        for group in groups
        if (room := _left_in_bytes(group)) is not None
    ]
    return min(left) if left else None


def _left_in_bytes(group: Path) -> int | None:
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, held = (group / limit).read_text().strip(), int((group / usage).read_text())
            pairs = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most == "max":
            return None
        files = int(pairs.get("inactive_file", 0)) + int(pairs.get("active_file", 0))
        return max(0, int(most) - held + files)
    return None
