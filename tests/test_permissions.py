"""Files get the user's own permissions; what is temporary, and code, is the user's alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llmfit.kernels.build import find_compiler
from llmfit.models import data_path
from llmfit.private_code import INDUCTOR_VARIABLE, inductor_environment

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
ROOT = Path(__file__).parents[1]
WORDS = ("--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1", "--warmup", "0")


def modes(folder: Path) -> dict[str, int]:
    """Permissions of every file and folder below ``folder``."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def run(home: Path, umask: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line under a umask, its folders all in ``home``."""
    return subprocess.run(
        [sys.executable, "-m", "llmfit", *words],
        cwd=home,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_DATA_HOME": str(home / "data"),
            "LLMFIT_STORE": str(home / "data" / "llmfit" / "store.db"),
            "TMPDIR": tempfile.mkdtemp(dir=home),
        },
        umask=umask,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_under_a_strict_umask_nothing_is_for_others(tmp_path: Path) -> None:
    """Records, logs, store, artifact, exports, reports: none, not even to read."""
    shutil.copytree(data_path("embedded"), tmp_path / "model")
    before = set(modes(tmp_path))
    for words in (
        ("compare", "./model", "--backends", "gguf", "--no-eval", *WORDS),
        ("export", "--format", "csv", "--out", "x.csv"),
        ("export", "--format", "parquet", "--out", "x.parquet"),
        ("report", "--out", "report"),
    ):
        done = run(tmp_path, 0o077, *words)
        assert done.returncode == 0, done.stderr
    made = {name: mode for name, mode in modes(tmp_path).items() if name not in before}
    assert {name for name, mode in made.items() if mode & 0o077} == set()
    for part in ("store.db", "gguf.log", "model.gguf", "artifact.json", "x.parquet", "report.html"):
        assert any(name.endswith(part) for name in made), part


@pytest.mark.slow
def test_under_the_usual_umask_others_may_read_and_not_write(tmp_path: Path) -> None:
    """So that a cache, a store and a report can be shared; compiled code is not."""
    done = run(tmp_path, 0o022, "compare", "--backends", "gguf", "--no-eval", *WORDS)
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, 0o022, "report", "--out", "report")
    assert done.returncode == 0, done.stderr
    made = modes(tmp_path)
    assert {name for name, mode in made.items() if mode & 0o022} == set()
    shared = ("store.db", "gguf.json", "comparison.json", "model.gguf", "report.html", "junit.xml")
    for part in shared:
        assert {mode for name, mode in made.items() if name.endswith(part)} == {0o644}, part
    assert made["cache/llmfit/inductor"] == 0o700


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_compiled_code_is_kept_in_a_private_folder(tmp_path: Path) -> None:
    """And its headers; nothing is left where all users' temporary files are."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import torch; from llmfit.private_code import compile_privately; compile_privately()\n"
        "print(torch.compile(lambda x: (x + 1).sin())(torch.zeros(8)).sum().item())"
    )
    given = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(scratch)}
    given.pop(INDUCTOR_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=given,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("6.73")
    kept = tmp_path / "cache" / "llmfit" / "inductor"
    assert list(kept.rglob("*.so")) and list((kept / "precompiled_headers").glob("*.gch"))
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert list(scratch.iterdir()) == []


def test_torchs_own_folder_for_compiled_code_is_not_taken(
    user_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for all users under a name that they know; another one that is named is taken."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.setenv(INDUCTOR_VARIABLE, default_cache_dir())  # as torch does by itself
    for name, value in inductor_environment().items():
        monkeypatch.setenv(name, value)
    told = cache_dir()
    assert Path(told).is_relative_to(user_folders)
    assert stat.S_IMODE(Path(told).stat().st_mode) == 0o700
    monkeypatch.setenv(INDUCTOR_VARIABLE, "/elsewhere")
    assert INDUCTOR_VARIABLE not in inductor_environment()
