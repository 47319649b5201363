"""Memory that is read over and over, put into huge pages (Linux, 2 MiB on x86-64).

A core translates addresses through tables that hold a few MiB in pages of 4 KiB, and its prefetcher
stops at the end of each page. Weights that are streamed once a token meet both at every page. The
system gives huge pages to memory that asks for them before it is first touched; weights are mapped
from files, or allocated by libraries that do not ask. So they are copied, and the copies are put
in their place at the very addresses that they had: whatever points there stays right.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from llmfit.device.cpu import physical_cores
from llmfit.device.memory import free_bytes

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_CHUNK_BYTES = 16 << 20
"""Copied at once by each thread: so much is held twice for a moment."""
_SPARE_SHARE = 0.1
"""Of the machine's memory, left free: pages of a file can be dropped and read again, copies not."""
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2  # Source: Linux, include/uapi/linux/mman.h
_MAP_FAILED = ctypes.c_void_p(-1).value


def huge_page_bytes(settings: Path = _SETTINGS) -> int | None:
    """Bytes of a huge page that memory can ask for; None where the system gives none."""
    if sys.platform != "linux":
        return None
    try:
        enabled = (settings / "enabled").read_text()
        size = int((settings / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return None
    return None if "[never]" in enabled else size


def ask_for_huge_pages(address: int, nbytes: int) -> None:
    """Let memory that nothing has touched yet be given huge pages, where there are such."""
    size = huge_page_bytes()
    if size is None:
        return
    start, end = _inside(address, address + nbytes, size)
    if start < end:
        _libc().madvise(start, end - start, mmap.MADV_HUGEPAGE)


def move_to_huge_pages(ranges: Iterable[tuple[int, int]]) -> int:
    """Put private memory, ``(address, bytes)`` each, into huge pages where it lies.

    Nothing may write to it meanwhile; no byte beside it is copied. Ranges that touch, as tensors of
    a file do, are one. What is left at the ends stays as it is, and so does the rest where little
    of the machine's memory is free.
    Returns the bytes that were moved, 0 where the system gives no huge pages. Raises OSError where
    the system runs out of memory for its own tables.
    """
    import psutil

    size = huge_page_bytes()
    if size is None:
        return 0
    spare = int(_SPARE_SHARE * psutil.virtual_memory().total)
    starts: list[int] = []
    lengths: list[int] = []
    for whole in _joined(ranges):
        start, end = _inside(*whole, size)
        for chunk in range(start, end, _CHUNK_BYTES):
            starts.append(chunk)
            lengths.append(min(_CHUNK_BYTES, end - chunk))
    with ThreadPoolExecutor(physical_cores()) as threads:
        return sum(threads.map(partial(_move, size=size, spare=spare), starts, lengths))


def bytes_in_huge_pages(ranges: Iterable[tuple[int, int]]) -> int | None:
    """How much of such memory the system really holds in huge pages; None where it does not tell.

    The system tells it of whole mappings, in which others' memory may lie beside this: no more is
    counted than there are whole huge pages of this. Source: Linux,
    Documentation/filesystems/proc.rst, smaps.
    """
    wanted = _joined(ranges)
    size = huge_page_bytes() or 1
    found = inside = 0
    try:
        with Path("/proc/self/smaps").open() as lines:
            for line in lines:
                first = line.split(maxsplit=1)[0]
                if not first.endswith(":"):
                    low, high = (int(each, 16) for each in first.split("-"))
                    parts = (
                        _inside(max(start, low), min(end, high), size) for start, end in wanted
                    )
                    inside = sum(max(0, end - start) for start, end in parts)
                elif inside and first == "AnonHugePages:":
                    found += min(inside, int(line.split()[1]) * 1024)
    except OSError:
        return None
    return found


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """``(start, end)``, those that touch or overlap as one."""
    joined: list[tuple[int, int]] = []
    for address, nbytes in sorted(ranges):
        end = address + nbytes
        if joined and address <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((address, end))
    return joined


def _inside(start: int, end: int, size: int) -> tuple[int, int]:
    """The whole huge pages between two addresses; where there are none, end is not above start."""
    return -(-start // size) * size, end // size * size


def _move(address: int, nbytes: int, *, size: int, spare: int) -> int:
    """Copy whole huge pages and put the copy in their place; returns the bytes, 0 for no room."""
    if free_bytes("cpu") < nbytes + spare:
        return 0
    libc = _libc()
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    space = libc.mmap(None, nbytes + size, protection, flags, -1, 0)
    if space in (None, _MAP_FAILED):
        return 0  # beyond a limit on private memory
    copy = -(-space // size) * size
    libc.madvise(copy, nbytes, mmap.MADV_HUGEPAGE)
    ctypes.memmove(copy, address, nbytes)
    moved = libc.mremap(copy, nbytes, nbytes, _MREMAP_MAYMOVE | _MREMAP_FIXED, address)
    number = ctypes.get_errno()
    for start, end in ((space, copy), (copy + nbytes, space + nbytes + size)):
        if start < end:
            libc.munmap(start, end - start)
    if moved != address:
        raise OSError(number, f"cannot put {nbytes} bytes into huge pages: {os.strerror(number)}")
    return nbytes


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, result, arguments in (
        ("mmap", pointer, (pointer, size, number, number, number, ctypes.c_long)),
        ("munmap", number, (pointer, size)),
        ("madvise", number, (pointer, size, number)),
        ("mremap", pointer, (pointer, size, size, number, pointer)),
    ):
        function = getattr(libc, name)
        function.restype, function.argtypes = result, arguments
    return libc
