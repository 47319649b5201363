"""Comparisons in a row leave nothing behind: the short form of ``benchmarks/leaks.py``."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import leaks  # noqa: E402


def snapshot(comparison: int, **changes: int) -> leaks.Snapshot:
    """A process that holds 100 MB and has 6 descriptors."""
    blank = leaks.Snapshot(
        comparison=comparison,
        seconds=9.0,
        resident_bytes=150_000_000,
        private_bytes=100_000_000,
        objects=120_000,
        descriptors=6,
        threads=3,
        processes=0,
        zombies=0,
        shared_memory=0,
        temporary_files=0,
        stray_files=0,
        left=(),
    )
    return replace(blank, **changes)


def leaking(snapshots: list[leaks.Snapshot]) -> set[str]:
    """What is said to leak after a warm-up of two."""
    return {each.name for each in leaks.growth(snapshots, warmup=2) if each.leaks}


def series(slope: float, *, noise: float = 100_000) -> list[leaks.Snapshot]:
    """40 comparisons whose private memory grows by ``slope`` bytes and scatters by ``noise``."""
    draw = random.Random(0)
    return [
        snapshot(n, private_bytes=int(100e6 + slope * n + draw.gauss(0, noise))) for n in range(40)
    ]


@pytest.mark.parametrize(("slope", "found"), [(0, set()), (100_000, {"private_bytes"})])
def test_memory_that_grows_is_told_from_memory_that_scatters(slope: float, found: set[str]) -> None:
    """By the interval of its slope."""
    assert leaking(series(slope)) == found


@pytest.mark.parametrize("at", [8, 20, 33])
def test_memory_that_grows_once_is_no_leak(at: int) -> None:
    """Python's heap took five MiB more, whenever that was; what leaks goes on."""
    grown = [snapshot(n, private_bytes=100_000_000 + 5_000_000 * (n > at)) for n in range(40)]
    assert leaking(grown) == set()


def test_a_slope_of_some_bytes_is_no_leak() -> None:
    """It is real, and costs nothing in ten thousand comparisons."""
    assert leaking(series(5_000, noise=10)) == set()


@pytest.mark.parametrize("name", leaks.COUNTS)
def test_one_more_of_anything_is_a_leak(name: str) -> None:
    """Handles, processes and files are counted, not estimated; what was there before is none."""
    one = getattr(snapshot(0), name) + 1
    after = [snapshot(n, **({name: one} if n == 9 else {})) for n in range(10)]
    assert leaking(after) == {name}
    assert leaking([snapshot(n, **({name: one} if n == 0 else {})) for n in range(10)]) == set()


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[leaks.Folders]:
    """Folders that only this series uses."""
    with leaks.private_folders(tmp_path) as made:
        yield made


@pytest.mark.slow
def test_what_is_left_is_seen(folders: leaks.Folders) -> None:
    """A pipe, a thread, a child, a zombie, and files where they do not belong."""
    shared = leaks.shared_memory()
    before = leaks.look(folders, 0, 0.0, shared)
    pipe = os.pipe()
    end = threading.Event()
    threading.Thread(target=end.wait, daemon=True).start()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
    os.close(tempfile.mkstemp()[0])
    run = folders.runs / "20260102-030405-model"
    made = folders.cache / ".making-gguf-0"
    for folder in (run, made, folders.cache / ".locks"):
        folder.mkdir(parents=True)
    for file in (run / "bf16.json", run / "bf16.log", run / "comparison.json"):
        file.touch()
    strays = [run / "reference-logits.bin", made / "model.gguf", folders.user / "store.db-wal"]
    for file in strays:
        file.touch()
    after = leaks.look(folders, 1, 0.0, shared)
    for each in (child, zombie):
        each.kill()
        each.wait()
    end.set()
    for descriptor in pipe:
        os.close(descriptor)
    assert after.descriptors >= before.descriptors + 2 and after.threads == before.threads + 1
    assert (after.processes, after.zombies, after.temporary_files) == (1, 1, 1)
    assert after.stray_files == 3 and set(map(str, strays)) < set(after.left)
    assert before.left == ()


def test_shared_memory_that_nobody_holds_is_left(folders: leaks.Folders) -> None:
    """What another program has open is its own."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    before = leaks.shared_memory()
    left, held = (Path("/dev/shm") / f"llmfit-test-{name}-{uuid.uuid4().hex}" for name in "lh")
    code = f"held = open({str(held)!r}, 'w'); print(flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != leaks.MARK}
    try:
        left.touch()
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as other:  # fmt: skip
            assert other.stdout is not None and other.stdout.readline()
            found = leaks.left_shared(before)
            other.kill()
        assert left.name in found and held.name not in found
        assert held.name in leaks.left_shared(before)
    finally:
        left.unlink(missing_ok=True)
        held.unlink(missing_ok=True)


@pytest.mark.slow
def test_comparisons_in_a_row_leave_nothing(folders: leaks.Folders) -> None:
    """Descriptors, threads, processes, shared memory, temporary and stray files."""
    pytest.importorskip("llama_cpp")
    before = leaks.shared_memory()
    snapshots, _ = leaks.run(folders, (0, 1, 2), warmup=1)
    counts = {each.name: each for each in leaks.growth(snapshots, warmup=1)}
    for name in set(leaks.COUNTS) - {"shared_memory"}:
        assert not counts[name].leaks, counts[name]
    assert {each.processes for each in snapshots} == {0}
    assert snapshots[-1].left == ()
    deadline = time.monotonic() + 60  # other programs of this machine use it too, for a while
    while left := leaks.left_shared(before):
        assert time.monotonic() < deadline, left
        time.sleep(1)
