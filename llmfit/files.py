"""Files that are whole: written at once or not at all, and known again by their content."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HASH_BYTES = 20
_PIECE_BYTES = 2**26
_BUFFER_BYTES = 2**18
_HASHING_THREADS = 4
_HALF = re.compile(r"\..+-[0-9a-f]{32}")
"""Name of a file that is being written."""


def expanded(path: str | Path) -> Path:
    """``path`` with a home in the place of ``~`` or ``~name``; as it is without such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_atomically(file: Path, text: str) -> None:
    """Write UTF-8 ``text`` so that a reader, or a crash, sees the old file or the new one.

    The file gets the user's own permissions. Raises OSError.
    """
    with replaced_atomically(file) as temporary, temporary.open("x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_result(file: Path, text: str) -> None:
    """Write a result where a user wants it: whole or not at all, through links, into pipes.

    What is there and no file, as a pipe or a device, is written to and not replaced. Raises
    OSError.
    """
    if file.exists() and not file.is_file():
        file.write_text(text, encoding="utf-8")
    else:
        write_atomically(file.resolve(), text)


@contextmanager
def replaced_atomically(file: Path) -> Iterator[Path]:
    """A path beside ``file`` that is free and nobody knows; what is written there takes its place.

    Nothing is left of it where writing fails. Raises OSError.
    """
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def file_hash(file: Path) -> str:
    """BLAKE2b-160 of a file's content, hexadecimal. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(
            stream, lambda: hashlib.blake2b(digest_size=_HASH_BYTES)
        ).hexdigest()


def pieces_hash(file: Path) -> str:
    """BLAKE2b-160 over the BLAKE2b-160 of each 64 MiB of a file, hexadecimal. Raises OSError.

    Several threads share the pieces, so a large file takes as long as reading it: one core of a
    server hashes 0.7 GB/s.
    """
    from concurrent.futures import ThreadPoolExecutor

    starts = range(0, file.stat().st_size, _PIECE_BYTES)
    with ThreadPoolExecutor(min(_HASHING_THREADS, max(1, len(starts)))) as pool:
        digests = list(pool.map(lambda start: _piece_digest(file, start), starts))
    total = _hasher()
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def _piece_digest(file: Path, start: int) -> bytes:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    piece = _hasher()
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        left = _PIECE_BYTES
        while left > 0 and (count := stream.readinto(buffer[: min(left, len(buffer))])):
            piece.update(buffer[:count])
            left -= count
    return piece.digest()


def _hasher() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=_HASH_BYTES)


def remove_half_written(folder: Path) -> None:
    """Remove what a killed writer left in a folder that nobody else writes to. Raises OSError."""
    for file in folder.iterdir():
        if _HALF.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)
