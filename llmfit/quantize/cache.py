"""Quantised artifacts on disk, keyed by the model's content and the settings.

    root/
      <kind>-<hash>/        one artifact: what ``make`` wrote, and artifact.json
      .making-<key>-<random>/   being made, or left by a crash; private
      .locks/<key>.lock     held while <key> is made or removed
      .hashes.json          content hashes of model files (see ``fingerprint``)

An artifact appears under its name by one rename, so it is whole or absent. What damages it later
is seen by the checksums in its artifact.json: all of it is read over each time before it is served.
That costs what reading it costs, which loading then does from the page cache. Size, time and inode,
which ``fingerprint`` goes by for a user's own files, would not tell of a disk that forgets.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from llmfit.errors import LlmfitError, StoreError, UsageError, first_line
from llmfit.files import pieces_hash, write_atomically
from llmfit.quantize.fingerprint import FileHashes
from llmfit.units import format_bytes

FORMAT_VERSION = 1
"""Part of every key: raised when artifacts made by older code must not be served any more."""
MANIFEST_VERSION = 2
"""Of artifact.json: an artifact with another one is made again in its place."""

Setting = str | int | float | bool | None

_MANIFEST = "artifact.json"
_PRIVATE = 0o700
_MAKING = ".making-"
# Only folders with such names are ours, so that a --cache-dir pointed at a folder of other
# things lists and clears none of them.
_KEY = re.compile(r"[a-z0-9_]+-[0-9a-f]{32}")
_HINT = "--cache-dir DIR for another place, or `llmfit cache clear` to free this one"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One artifact in the cache."""

    key: str
    kind: str
    model: str
    path: Path
    size_bytes: int
    created_at: datetime | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    damaged: str | None = None
    """Why the artifact cannot be used (it is then made again when asked for); None when whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact as it is served."""

    path: Path
    """Its folder."""
    make_s: float | None = None
    """Seconds that making it took; None: it was ready."""
    check_s: float = 0.0
    """Seconds beside those: it was read over, or another process made it."""
    notes: tuple[str, ...] = ()
    """That it was damaged, for the row's record."""


class ArtifactCache:
    """A folder of quantised artifacts, shared safely between processes."""

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or platformdirs.user_cache_path("llmfit") / "artifacts"
        self.root = chosen.expanduser().absolute()
        self.hashes = FileHashes(self.root / ".hashes.json")
        """Content hashes of files, remembered."""

    def get_or_make(
        self,
        kind: str,
        model_path: Path,
        settings: Mapping[str, Setting],
        make: Callable[[Path], None],
    ) -> Artifact:
        """The artifact, whole: as it is kept, or made where it is missing or damaged.

        ``make`` fills the empty folder that it is given; what it raises is passed on and leaves
        nothing behind. Of two processes that want one artifact, one makes it and the other
        waits. Raises StoreError when the cache cannot be written, ModelNotFound for a
        ``model_path`` without a model.
        """
        with _store_errors(self.root):
            key = self._key(kind, model_path, settings)

            def fill(folder: Path) -> float:
                seconds = _seconds(make, folder)
                _write_manifest(folder, kind, _model_name(model_path), settings, seconds)
                return seconds

            return self._whole(key, fill)

    def carried(self, kind: str, digest: str, name: str, fill: Callable[[Path], None]) -> Artifact:
        """Files from elsewhere that are known by their content's hash; ``fill`` brings them.

        ``digest`` has 32 hexadecimal digits or more, ``name`` is for people. Raises as
        ``get_or_make`` does.
        """

        def bring(folder: Path) -> float:
            seconds = _seconds(fill, folder)
            _write_manifest(folder, kind, name, {}, seconds)
            return seconds

        with _store_errors(self.root):
            return self._whole(f"{kind}-{digest[:32]}", bring)

    def adopt(self, key: str, fill: Callable[[Path], None]) -> Artifact:
        """The artifact ``key`` of another cache; ``fill`` brings its files, with the manifest.

        Raises as ``get_or_make`` does, and StoreError where what came is not whole.
        """
        with _store_errors(self.root):
            return self._whole(key, partial(_seconds, fill))

    def key_of(self, artifact: Path) -> str | None:
        """The key of a file or folder of an artifact of this cache; None for one from elsewhere."""
        if not artifact.is_relative_to(self.root) or artifact == self.root:
            return None
        key = artifact.relative_to(self.root).parts[0]
        return key if _KEY.fullmatch(key) else None

    def _whole(self, key: str, fill: Callable[[Path], float]) -> Artifact:
        """The artifact ``key``, whole: as it is kept, or filled where it is missing or damaged.

        ``fill`` returns the seconds that count as making it.
        """
        started = time.perf_counter()
        made_s: float | None = None
        notes: tuple[str, ...] = ()
        folder = self.root / key
        if _damage(folder, read_over=True) is not None:
            self._prepare_root()
            self.sweep()
            with self._lock(key):
                damage = _damage(folder, read_over=True)
                if damage is not None:
                    notes = _damage_note(folder, damage)
                    made_s = self._fill(key, fill)
        check_s = time.perf_counter() - started - (made_s or 0.0)
        return Artifact(path=folder, make_s=made_s, check_s=check_s, notes=notes)

    @contextmanager
    def scratch(self, kind: str, size_bytes: int) -> Iterator[Path]:
        """An empty folder on the cache's disk for what is used once; it is gone afterwards.

        What a crash leaves is removed by ``sweep``, which whoever makes an artifact next calls,
        too. Raises StoreError where the disk has not ``size_bytes`` free.
        """
        key = f"{kind}-{uuid.uuid4().hex}"
        with _store_errors(self.root):
            self._prepare_root()
            self.sweep()
            _require_free(self.root, size_bytes)
            lock = self._lock(key)
            with lock:
                folder = self.root / f"{_MAKING}{key}-{uuid.uuid4().hex}"
                folder.mkdir(mode=_PRIVATE)
                try:
                    with _full_disk_told(folder):
                        yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                    Path(lock.lock_file).unlink(missing_ok=True)  # nobody else has this key

    def entries(self, *, read_over: bool = False) -> tuple[CacheEntry, ...]:
        """What the cache holds, newest first; damaged artifacts are listed as such.

        Files of another size, or missing ones, are seen at once; with ``read_over`` other contents
        are too, which takes as long as reading everything.
        """
        with _store_errors(self.root):
            found = [_entry(folder, read_over=read_over) for folder in self._folders()]
        return tuple(sorted(found, key=_age))

    def clear(self, keys: Collection[str] | None = None) -> tuple[CacheEntry, ...]:
        """Remove the artifacts ``keys`` (None: all, and what crashes left); return them.

        The beginning of a key stands for it where no other begins so. An artifact that another
        process is making just now is left alone. Raises UsageError for a key that is not there,
        before anything is removed.
        """
        entries = self.entries()
        if keys is not None:
            wanted = {_whole_key(key, entries) for key in keys}
            entries = tuple(entry for entry in entries if entry.key in wanted)
        with _store_errors(self.root):
            if keys is None and self.root.is_dir():
                self.sweep()
            return tuple(entry for entry in entries if self._remove(entry))

    def sweep(self) -> None:
        """Remove half-made folders whose maker is gone, which is seen by its lock being free.

        Raises StoreError where the cache cannot be written.
        """
        with _store_errors(self.root):
            for folder in self.root.glob(f"{_MAKING}*"):
                match = _KEY.match(folder.name.removeprefix(_MAKING))
                if match is None:
                    continue
                try:
                    with self._lock(match.group(), timeout_s=0):
                        shutil.rmtree(folder, ignore_errors=True)
                except Timeout:
                    continue

    def _key(self, kind: str, model_path: Path, settings: Mapping[str, Setting]) -> str:
        identity = {
            "format": FORMAT_VERSION,
            "kind": kind,
            "model": self.hashes.model(model_path),
            "settings": dict(settings),
        }
        text = json.dumps(identity, sort_keys=True)
        return f"{kind}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"

    def _fill(self, key: str, fill: Callable[[Path], float]) -> float:
        """Have ``fill`` fill the artifact's folder, which appears under its name when it is whole.

        Returns what ``fill`` does.
        """
        # The inner one is what stays, with the user's own permissions: a cache may be shared.
        private = self.root / f"{_MAKING}{key}-{uuid.uuid4().hex}"
        private.mkdir(mode=_PRIVATE)
        temporary = private / key
        temporary.mkdir()
        try:
            with _full_disk_told(temporary):
                seconds = fill(temporary)
            damage = _damage(temporary)
            if damage is not None:
                raise StoreError(f"the artifact {key} did not come whole: {damage}.")
            _flush(temporary)
            folder = self.root / key
            if folder.exists():  # damaged: a rename replaces only an empty folder
                shutil.rmtree(folder)
            temporary.replace(folder)
            _flush_folder(self.root)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        return seconds

    def _remove(self, entry: CacheEntry) -> bool:
        try:
            with self._lock(entry.key, timeout_s=0):
                shutil.rmtree(entry.path)
        except Timeout:
            return False
        return True

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return [path for path in self.root.iterdir() if path.is_dir() and _KEY.fullmatch(path.name)]

    def _prepare_root(self) -> None:
        (self.root / ".locks").mkdir(parents=True, exist_ok=True)

    def _lock(self, key: str, *, timeout_s: float = -1) -> FileLock:
        self._prepare_root()
        return FileLock(self.root / ".locks" / f"{key}.lock", timeout=timeout_s)


@contextmanager
def _store_errors(root: Path) -> Iterator[None]:
    """Translate what the file system refuses inside ``root``; ``make``'s other errors pass."""
    try:
        yield
    except NotImplementedError as exc:  # filelock's word for a file system without locks
        raise StoreError(f"cannot lock the artifact cache {root}: {exc}.", hint=_HINT) from exc
    except OSError as exc:
        inside = exc.filename is not None and Path(str(exc.filename)).is_relative_to(root)
        if not inside and exc.errno not in _FULL:
            raise
        raise StoreError(f"cannot use the artifact cache {root}: {exc}.", hint=_HINT) from exc


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Raise the system's error for a full disk where something else failed because of it.

    NumPy, Rust and C++ libraries say it in words of their own or not at all, so the disk is looked
    at while what was written is still there.
    """
    try:
        yield
    except Exception as exc:
        said = isinstance(exc, StoreError) or (isinstance(exc, OSError) and exc.errno is not None)
        full = os.strerror(errno.ENOSPC)
        free_bytes = shutil.disk_usage(folder).free
        if said or (full not in str(exc) and free_bytes >= _FULL_BELOW_BYTES):
            raise
        cause = exc.message if isinstance(exc, LlmfitError) else first_line(exc)
        raise OSError(errno.ENOSPC, f"{full} ({cause})", str(folder)) from exc


def _require_free(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise StoreError(
            f"{format_bytes(size_bytes)} are needed in {folder} for a moment, "
            f"{format_bytes(free)} are free.",
            hint=_HINT,
        )


_FULL_BELOW_BYTES = 2**20
"""Free on a disk that a failed write of a tensor has filled: less than the piece it lacked."""
# Of a write that fails half-way the system names no file.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))


def _seconds(make: Callable[[Path], None], folder: Path) -> float:
    """How long ``make`` takes to fill the folder."""
    started = time.perf_counter()
    make(folder)
    return time.perf_counter() - started


def _write_manifest(
    folder: Path, kind: str, model: str, settings: Mapping[str, Setting], seconds: float
) -> None:
    """Say in an artifact's folder what is in it, with sizes and checksums."""
    manifest = {
        "format": MANIFEST_VERSION,
        "kind": kind,
        "model": model,
        "settings": dict(settings),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "files": {
            name: {"bytes": size, "hash": pieces_hash(folder / name)}
            for name, size in _sizes(folder).items()
        },
    }
    write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=2))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, or ValueError or OSError."""
    manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_VERSION:
        raise ValueError(f"{_MANIFEST} is not of format {MANIFEST_VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(said, dict) for said in files.values()):
        raise ValueError(f"{_MANIFEST} lists no files")
    return manifest


def _damage_note(folder: Path, damage: str) -> tuple[str, ...]:
    """What a row's record says of an artifact that was there and cannot be used."""
    if not folder.exists():
        return ()
    return (f"the cached artifact was damaged ({damage}): made again",)


def _damage(folder: Path, *, read_over: bool = False) -> str | None:
    """Why an artifact cannot be used, or None; an absent folder counts as damaged.

    With ``read_over`` the contents are held against their checksums.
    """
    try:
        files = _read_manifest(folder)["files"]
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except (OSError, ValueError) as exc:
        return f"{_MANIFEST} cannot be read: {exc}"
    sizes = _sizes(folder)
    for name, said in files.items():
        if sizes.get(name) != said.get("bytes"):
            return f"{name} has {sizes.get(name, 'no')} bytes instead of {said.get('bytes')}"
    for name in files if read_over else ():
        try:
            found = pieces_hash(folder / name)
        except OSError as exc:  # a disk that cannot read it any more
            return f"{name} cannot be read: {exc.strerror}"
        if found != files[name].get("hash"):
            return f"the content of {name} is not what was written"
    return None


def _whole_key(given: str, entries: Collection[CacheEntry]) -> str:
    """The key that ``given`` is, or alone begins with it. Raises UsageError."""
    found = [entry.key for entry in entries if entry.key.startswith(given) and given]
    if given in found or len(found) == 1:
        return given if given in found else found[0]
    if not found:
        raise UsageError(f"no cached artifact {given!r}.", hint="llmfit cache list")
    raise UsageError(f"{len(found)} cached artifacts begin with {given!r}.", hint=found[0])


def _entry(folder: Path, *, read_over: bool = False) -> CacheEntry:
    size_bytes = sum(_sizes(folder).values())
    damaged = _damage(folder, read_over=read_over)
    try:
        manifest = _read_manifest(folder)
        created_at = datetime.fromisoformat(str(manifest["created_at"]))
        settings = manifest["settings"]
    except (OSError, ValueError, KeyError) as exc:
        manifest, created_at, settings = {}, None, {}
        damaged = damaged or f"{_MANIFEST} is incomplete: {exc}"
    return CacheEntry(
        key=folder.name,
        kind=str(manifest.get("kind", folder.name.rpartition("-")[0])),
        model=str(manifest.get("model", "?")),
        path=folder,
        size_bytes=size_bytes,
        created_at=created_at,
        settings=settings if isinstance(settings, dict) else {},
        damaged=damaged,
    )


def _age(entry: CacheEntry) -> float:
    return -entry.created_at.timestamp() if entry.created_at else 0.0


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below ``folder`` but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }


def _model_name(model_path: Path) -> str:
    """The folder's name; of a hub snapshot (models--ORG--NAME/snapshots/COMMIT) the hub id."""
    repository = model_path.parent.parent.name
    if model_path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return model_path.resolve().name


def _flush(folder: Path) -> None:
    """Bring files to the disk before the rename, so that a power cut leaves no empty ones."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
