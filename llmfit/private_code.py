"""Folders for compiled code that this program runs again: nobody else may have written there.

    folder ─► private_folder: made, or taken back from others ─► is_own(file) ─► run

Whoever can write a shared library that is loaded runs code as the user.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch.compile keeps its code: by default a folder of a known name in the folder that all
users share for temporary files, which another one can make first."""
_HEADERS_VARIABLE = "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"
"""Headers that it compiles once are kept there whatever the other variable says."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path) -> bool:
    """Make ``folder`` where it is missing, and take others' right to write from it.

    False where code in it cannot be trusted: it is not there, it is someone else's, or everyone can
    put another one in its place. It may be one that this process can read only.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name != "posix":
            return True
        status = folder.stat()
        if status.st_uid not in _trusted_users():
            return False
        if status.st_mode & _OTHERS_WRITE:
            folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
        return not any(map(_replaceable_in, folder.resolve().parents))
    except OSError:
        return False


def is_own(file: Path) -> bool:
    """True for a regular file in a private folder that nobody but this user can have written."""
    if os.name != "posix":
        return file.is_file()
    status = file.lstat()
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid in _trusted_users()
        and not status.st_mode & _OTHERS_WRITE
    )


def inductor_environment() -> dict[str, str]:
    """What a process's environment lacks for torch.compile to keep its code in a private folder.

    That folder is the user's choice where one is made, and torch's own where there can be no
    private one.
    """
    from platformdirs import user_cache_path

    folder = user_cache_path("llmfit") / "inductor"
    given = {_HEADERS_VARIABLE: "0"}
    if _is_chosen(os.environ.get(INDUCTOR_VARIABLE)) or not private_folder(folder):
        return given
    return given | ({INDUCTOR_VARIABLE: str(folder)} if os.access(folder, os.W_OK) else {})


def compile_privately() -> None:
    """Settle for this process where torch.compile keeps its code and its headers.

    It imports what compiling needs. Source: torch/_inductor/codecache.py.
    """
    os.environ.update(inductor_environment())
    place = os.environ.get(INDUCTOR_VARIABLE)
    if place is None:
        return
    from torch._inductor import codecache, config

    headers = Path(place) / "precompiled_headers"
    codecache._HEADER_DIR = str(headers)
    codecache._HEADER_LOCK_DIR = str(headers / "locks")
    config.cpp_cache_precompile_headers = True


def _is_chosen(place: str | None) -> bool:
    """True for a folder that a user chose: torch names its default one as soon as it is imported.

    Source: torch/_inductor/runtime/cache_dir_utils.py.
    """
    if place is None:
        return False
    default = Path(place).name.startswith("torchinductor_")
    return not (default and Path(place).parent == Path(tempfile.gettempdir()).absolute())


def _trusted_users() -> tuple[int, int]:
    return os.geteuid(), 0


def _replaceable_in(folder: Path) -> bool:
    """True where everyone may rename what is in ``folder``."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
