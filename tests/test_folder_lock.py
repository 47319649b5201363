"""A folder is one process's, and free when that one is gone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmfit.folder_lock import FolderInUse, FolderLock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")

TAKE = (
    "import sys, time; from pathlib import Path; from llmfit.folder_lock import FolderLock\n"
    "lock = FolderLock(Path(sys.argv[1])); print(lock.held, flush=True); time.sleep(60)"
)


def test_another_process_keeps_it_until_its_end(tmp_path: Path) -> None:
    """Also where it is killed; nothing is written into the folder."""
    other = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path)
        began = time.monotonic()
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path, wait_s=0.3)
        assert time.monotonic() - began >= 0.3
    finally:
        other.kill()
        other.wait()
    with FolderLock(tmp_path, wait_s=60) as lock:
        assert lock.held
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path)
    assert not lock.held and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It is the system's error."""
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "none")
