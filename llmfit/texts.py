"""Texts that a user names, read within bounds: file ─► str, of ``LARGEST_CHARACTERS`` at most."""

from __future__ import annotations

import errno
from pathlib import Path

LARGEST_CHARACTERS = 100_000_000
"""Some 25 M tokens, which take a fast GPU an hour to score; WikiText-2's test text has 1.3 M."""


def read_text(file: Path) -> str:
    """The text of a UTF-8 file. Raises OSError, also for one that is too large, or UnicodeError."""
    with file.open(encoding="utf-8") as stream:
        text = stream.read(LARGEST_CHARACTERS + 1)
    if len(text) > LARGEST_CHARACTERS:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST_CHARACTERS:,} characters", str(file))
    return text
