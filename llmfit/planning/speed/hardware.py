"""GPUs and chips by name: memory, bandwidth and bf16 rate as their vendors state them.

Three ways in: what a user typed (``find_gpu``), a size alone (``assumed_gpu``), and what a driver
calls the card in this machine (``match_gpu``). Pure: the table is read from the package, once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from llmfit.errors import UsageError
from llmfit.records import Hardware
from llmfit.units import GB, GIB, format_bytes

NEAREST = 3
"""Names that an error offers at most."""
_LIKENESS = 0.5
"""How like a name has to be to be offered, of 1: RTX 9999 still finds some RTX."""
_VENDORS = ("nvidia", "geforce", "quadro", "tesla", "amd", "radeon", "instinct", "intel", "apple")
_IDLE_WORDS = frozenset((*_VENDORS, "corporation", "generation", "graphics", "gpu", "r", "tm"))
"""What people and drivers put around a name and leave out of it as they please."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A row of the table: one part with one size of memory."""

    hardware: Hardware
    year: int
    """Of its announcement."""
    keys: tuple[str, ...]
    """Normalised names that mean it."""
    note: str | None = None
    """Why a figure is missing, or what it stands for."""


def parts() -> tuple[Part, ...]:
    """The whole table; a part that is sold with several memory sizes once for each."""
    return _table().parts


def find_gpu(name: str) -> Hardware:
    """The part a user means: ``RTX 4060``, ``rtx-4060``, ``GeForce RTX 4060``, ``M2 Max 64GB``.

    Of several sizes the usual or smallest one, unless the name says which. Raises UsageError that
    names the nearest parts.
    """
    table = _table()
    found = table.by_key.get(_key(name))
    if found is not None:
        return found[0].hardware
    close = get_close_matches(_key(name), table.by_key, n=3 * NEAREST, cutoff=_LIKENESS)
    names = list(dict.fromkeys(table.by_key[key][0].hardware.name for key in close))[:NEAREST]
    offered = f"; nearest: {', '.join(names)}" if names else ""
    raise UsageError(
        f"no GPU {name!r} in the table of {len(table.parts)} parts{offered}.",
        hint=f'--gpu "{names[0]}"' if names else "--gpu-gb 8, for a card by its memory",
    )


def assumed_gpu(gpu_gb: float) -> Hardware:
    """A common card with at least ``gpu_gb`` GB (10⁹ bytes), marked as assumed.

    Beyond the largest such card only the size is known. Raises UsageError for no size.
    """
    if not (math.isfinite(gpu_gb) and gpu_gb > 0):
        raise UsageError(f"--gpu-gb must be above 0, not {gpu_gb:g}.", hint="--gpu-gb 8")
    asked_bytes = int(gpu_gb * GB)
    reason = f"assumed for --gpu-gb {gpu_gb:g}"
    for card in _table().assumed:
        if card.memory_bytes is not None and card.memory_bytes >= asked_bytes:
            return replace(card, assumed=True, source=reason)
    return Hardware(
        name=f"GPU of {format_bytes(asked_bytes)}",
        kind="gpu",
        memory_bytes=asked_bytes,
        bandwidth=None,
        flops=None,
        source=f"{reason}, which no common card has",
        assumed=True,
    )


def match_gpu(driver_name: str, memory_bytes: int | None = None) -> Hardware | None:
    """The part that a driver (NVML, torch) calls ``driver_name``; None where the table has it not.

    Drivers give one name to several sizes of a card: ``memory_bytes``, as the driver reports it,
    tells them apart. The result's own ``memory_bytes`` is the size as sold.
    """
    found = _table().by_key.get(_key(driver_name))
    if found is None:
        return None
    if memory_bytes is None:
        return found[0].hardware
    return min(
        (part.hardware for part in found), key=lambda h: abs((h.memory_bytes or 0) - memory_bytes)
    )


def note_on(name: str) -> str | None:
    """What a reader has to know of the part of this name, e.g. why it has no bf16 rate."""
    found = _table().by_key.get(_key(name))
    return None if found is None else found[0].note


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    parts: tuple[Part, ...]
    by_key: Mapping[str, tuple[Part, ...]]
    """Normalised name → the parts that go by it, the usual one first."""
    assumed: tuple[Hardware, ...]
    """Common cards, by size."""


@cache
def _table() -> _Table:
    text = (files("llmfit") / "data" / "gpus.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    every = tuple(part for row in raw["parts"] for part in _parts(row, raw["sources"]))
    by_key: dict[str, tuple[Part, ...]] = {}
    for part in every:
        for key in part.keys:
            by_key[key] = (*by_key.get(key, ()), part)
    assumed = tuple(by_key[_key(name)][0].hardware for name in raw["assumed"])
    return _Table(parts=every, by_key=by_key, assumed=assumed)


def _parts(row: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[Part]:
    """The parts of a row of the file, one for each size of memory, the smallest first."""
    sizes = row["memory_gib"]
    for size in sizes:
        names = (row["name"], *row.get("aliases", ()))
        tflops = row["bf16_tflops"]
        source = sources[row["source"]]
        if len(sizes) > 1:
            source += f"; also sold with {', '.join(str(n) for n in sizes if n != size)} GB"
        yield Part(
            hardware=Hardware(
                name=f"{row['name']} {size} GB" if len(sizes) > 1 else row["name"],
                kind=row["kind"],
                memory_bytes=int(size * GIB),
                bandwidth=row["bandwidth_gb_s"] * 1e9,
                flops=None if tflops is None else tflops * 1e12,
                source=source,
            ),
            year=row["year"],
            keys=tuple(dict.fromkeys(_keys(names, size))),
            note=row.get("note"),
        )


def _keys(names: Iterable[str], size: int) -> Iterator[str]:
    """What a part is found by: its names, with and without its size of memory."""
    for name in names:
        key = _key(name)
        yield key
        yield f"{key}{size}gb"


def _key(name: str) -> str:
    """A name without vendor words, case, blanks and hyphens: ``rtx4060ti16gb``."""
    words = re.findall(r"[a-z0-9.+]+", name.casefold().replace("gib", "gb"))
    return "".join(word for word in words if word not in _IDLE_WORDS)
