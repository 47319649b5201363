"""Writing files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Write UTF-8 ``text`` so that a reader, or a crash, sees the old file or the new one.

    The file gets the user's own permissions. Raises OSError.
    """
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
