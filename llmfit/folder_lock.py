"""A folder taken by one process: no file is made for it, and it is free again when that one ends.

A lock on the folder itself, by flock. Where the system or the file system has none, nobody is kept
out.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

_POLL_S = 0.1
_LOCKS = os.name == "posix"


class FolderInUse(OSError):
    """Another process has taken the folder."""


class FolderLock:
    """A folder taken for this process until it is released; a context manager that does so."""

    def __init__(self, folder: Path, *, wait_s: float = 0.0) -> None:
        """Wait so long for another process to release it.

        Raises FolderInUse where it does not, and OSError where the folder cannot be opened.
        """
        self._descriptor: int | None = None
        if not _LOCKS:
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            held = _held(self._descriptor, time.monotonic() + wait_s)
        except BaseException:
            self.release()
            raise
        if not held:
            self.release()

    @property
    def held(self) -> bool:
        """True where others are kept out."""
        return self._descriptor is not None

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _held(descriptor: int, deadline: float) -> bool:
    """Wait for the lock; False where the file system has none. Raises FolderInUse."""
    import fcntl

    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() >= deadline:
                raise FolderInUse("it is in use by another process.") from exc
        except OSError:
            return False
        else:
            return True
        time.sleep(_POLL_S)
