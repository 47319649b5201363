"""Files between the nodes of a Ray cluster, through its object store.

    Sent: path, content hash, node ─► here with that content? ─► that path
                                            └► no ─► pieces from its node ─► artifact cache ─► path

What all nodes see under one path is never copied. What comes from elsewhere is kept by content in
the node's artifact cache, so that it comes once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from llmfit.errors import ModelLoadError, StoreError, first_line
from llmfit.quantize.cache import ArtifactCache

_PIECE_BYTES = 16 * 2**20
_PIECES_AHEAD = 4
"""Pieces that wait in the object store for a slower receiver."""
_CARRIED = "carried"
"""Kind of artifact that files of another node are kept as."""

Reading = Literal["model", "everything"]
"""How a path is hashed: a model's own files, or all of a folder (see ``FileHashes``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A file or folder of one node that another one is to read."""

    path: str
    digest: str
    reading: Reading
    node: str
    """Ray's id of the node that has it."""


def at_hand(sent: Sent, cache: ArtifactCache) -> Path:
    """Where the content is on this node, which is a Ray worker; brought here if need be.

    Raises ModelLoadError where it cannot be had, and StoreError where it cannot be kept.
    """
    here = Path(sent.path)
    if here.exists() and _digest(here, sent.reading, cache) == sent.digest:
        return here
    name = here.name

    def fill(folder: Path) -> None:
        bring(sent.node, sent.path, folder / name, whole=sent.reading == "everything")

    place = cache.carried(_CARRIED, sent.digest, name, fill).path / name
    found = _digest(place, sent.reading, cache)
    if found != sent.digest:
        raise ModelLoadError(
            f"{sent.path} came here with content {found} instead of {sent.digest}.",
            hint="leave its files alone while they are measured",
        )
    return place


def bring(node: str, path: str, place: Path, *, whole: bool = True) -> None:
    """Copy the file or folder ``path`` of a node to ``place``, from within a Ray worker.

    Of a folder without ``whole``, its files alone and not those of its subfolders. Raises
    ModelLoadError where the node is gone or does not have it.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    sender = ray.remote(pieces).options(
        num_cpus=0,  # it waits for no row
        num_returns="streaming",
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        _generator_backpressure_num_objects=_PIECES_AHEAD,
    )
    try:
        for reference in sender.remote(path, whole):
            _write(place, *ray.get(reference))
    except RayError as exc:
        raise ModelLoadError(
            f"{path} did not come from the node {node}: {first_line(exc)}."
        ) from exc


def pieces(path: str, whole: bool) -> Iterator[tuple[str, bytes]]:
    """A file, or a folder's files, as (relative path, piece); an empty file is an empty piece."""
    root = Path(path)
    if not root.is_dir():
        yield from ((".", piece) for piece in _pieces(root))
        return
    for file in sorted(root.rglob("*") if whole else root.iterdir()):
        if file.is_file():
            name = file.relative_to(root).as_posix()
            yield from ((name, piece) for piece in _pieces(file))


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        piece = stream.read(_PIECE_BYTES)
        yield piece
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _write(place: Path, name: str, piece: bytes) -> None:
    """Add a piece to the file ``name`` below ``place``; raises StoreError for one outside it."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise StoreError(f"a node sent a file outside its folder: {name!r}.")
    target = place / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as stream:
        stream.write(piece)


def _digest(path: Path, reading: Reading, cache: ArtifactCache) -> str:
    return cache.hashes.model(path) if reading == "model" else cache.hashes.everything(path)
