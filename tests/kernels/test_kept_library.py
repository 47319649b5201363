"""The compiled library is loaded only whole, and only where nobody else could have written it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from llmfit.kernels import build
from llmfit.kernels.build import find_compiler

pytestmark = [
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX"),
]

OURS, THEIRS = "ours", "theirs"


def source(folder: Path, word: str) -> Path:
    """C++ whose library writes ``word`` into the file that LOADED names when it is loaded."""
    file = folder / f"{word}.cpp"
    file.write_text(
        "#include <cstdio>\n#include <cstdlib>\n"
        "__attribute__((constructor)) static void loaded() {\n"
        '    FILE *file = fopen(getenv("LOADED"), "a");\n'
        f'    fputs("{word}\\n", file);\n    fclose(file);\n}}\n'
    )
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for libraries of a source that is quickly compiled."""
    monkeypatch.setattr(build, "SOURCE", source(tmp_path, OURS))
    monkeypatch.setenv("LOADED", str(tmp_path / "loaded"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return tmp_path / "cache" / "kernels"


def load(cache: Path) -> list[str]:
    """Load the library from ``cache``; what was loaded, by whose it was."""
    log = Path(os.environ["LOADED"])
    log.unlink(missing_ok=True)
    build._load(cache)
    return log.read_text().split() if log.exists() else []


def plant(cache: Path, tmp_path: Path, mode: int) -> Path:
    """Another library under the name that ours has, its own content's hash and all."""
    made = build._compile(str(find_compiler()), tmp_path / "other.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SOURCE", source(tmp_path, THEIRS))
        build._compile(str(find_compiler()), made)
    file = cache / build._name(build._key(), made)
    shutil.copyfile(made, file)
    file.chmod(mode)
    return file


def test_it_is_kept_for_the_user_alone(cache: Path) -> None:
    """Also with a umask that lets a group write; the second time the kept one is taken."""
    before = os.umask(0o002)
    try:
        assert load(cache) == [OURS]
    finally:
        os.umask(before)
    (library,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(library.stat().st_mode) == 0o700
    again = cache.with_name("again")  # dlopen knows a file that it has loaded already
    shutil.copytree(cache, again)
    made = (again / library.name).stat().st_ino
    assert load(again) == [OURS] and (again / library.name).stat().st_ino == made


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_one_that_others_could_have_written_is_not_loaded(
    mode: int, cache: Path, tmp_path: Path
) -> None:
    """Though its name is right; ours is made anew in its place."""
    cache.mkdir(parents=True, mode=0o700)
    planted = plant(cache, tmp_path, mode)
    assert load(cache) == [OURS]
    assert not planted.exists() and len(list(cache.iterdir())) == 1


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="needs root, to give files away"
)
def test_one_of_another_user_is_not_loaded(cache: Path, tmp_path: Path) -> None:
    """Neither their file in our folder, nor any file in their folder."""
    cache.mkdir(parents=True, mode=0o700)
    os.chown(plant(cache, tmp_path, 0o700), 12345, 12345)
    assert load(cache) == [OURS]
    theirs = cache.with_name("theirs")
    theirs.mkdir(mode=0o755)
    plant(theirs, tmp_path, 0o755)
    os.chown(theirs, 12345, 12345)
    assert load(theirs) == [OURS]
    assert len(list(theirs.iterdir())) == 1  # and nothing of ours is left with them


def test_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    """Where it leads may be anyone's."""
    cache.mkdir(parents=True, mode=0o700)
    planted = plant(cache, tmp_path, 0o700)
    elsewhere = tmp_path / "elsewhere.so"
    planted.rename(elsewhere)
    planted.symlink_to(elsewhere)
    assert load(cache) == [OURS]


def test_a_damaged_one_is_made_again(cache: Path) -> None:
    """A byte that the disk forgot, or half of the file: loading it would crash the process."""
    assert load(cache) == [OURS]
    (library,) = cache.iterdir()
    content = library.read_bytes()
    for number, wrong in enumerate((content[: len(content) // 2], b"\0" + content[1:], b"")):
        copy = cache.with_name(f"copy-{number}")
        copy.mkdir(mode=0o700)
        (copy / library.name).write_bytes(wrong)
        (copy / library.name).chmod(0o700)
        assert load(copy) == [OURS]
        (made,) = copy.iterdir()
        assert made.name == build._name(build._key(), made)


def test_a_folder_that_everyone_can_exchange_keeps_nothing(cache: Path, tmp_path: Path) -> None:
    """The library is made for this process alone, in a private folder that is gone afterwards."""
    cache.parent.mkdir()
    cache.parent.chmod(0o777)
    assert load(cache) == [OURS]
    assert list(cache.iterdir()) == [] == list((tmp_path / "scratch").iterdir())
    cache.parent.chmod(0o1777)  # as /tmp: nobody renames what is another's
    assert load(cache) == [OURS] and len(list(cache.iterdir())) == 1


def test_a_folder_that_others_may_write_to_is_taken_back(cache: Path) -> None:
    """As an earlier version, or a umask of 0, may have left it."""
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert load(cache) == [OURS]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o755


def test_what_a_killed_compiler_left_is_swept(cache: Path, tmp_path: Path) -> None:
    """By the next process that makes a library there; nothing is written elsewhere meanwhile."""
    half = cache / ".making-half"
    half.mkdir(parents=True)
    cache.chmod(0o700)
    (half / "half.so").write_bytes(b"half")
    assert load(cache) == [OURS]
    assert [file.suffix for file in cache.iterdir()] == [".so"]
    assert not list((tmp_path / "scratch").iterdir())
