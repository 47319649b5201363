"""Whether comparisons in a row leave anything behind: memory, handles, processes, files.

    python benchmarks/leaks.py [--comparisons 200] [--out FILE]

One process calls `llmfit.compare` so many times on the embedded model, with one cache, one folder
of runs and one store: bf16 every time, sdpa, GGUF or GPTQ, and some scoring beside it every tenth
time. After each the process, its children and its folders are looked at. A leak is

    memory   its slope has a 95 % interval above zero and is more than LEAK_BYTES a comparison, in
             each third of the comparisons after the warm-up: what leaks goes on, while the heap of
             Python takes another MiB now and then and keeps it, as when more records of earlier
             runs were read at once
    counts   descriptors, threads, processes, shared memory, stray files: more at the end than
             after the warm-up, or any zombie, at any time

Exit code 1 where anything leaks.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import llmfit
from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.device.memory import return_freed_memory
from llmfit.files import write_atomically
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Comparison, EvaluationSettings, Workload, to_json

WARMUP = 20
"""Comparisons that fill caches: two of them have every row."""
FULL_EVERY = 10
"""Of so many comparisons one has sdpa, GGUF and GPTQ in turn, and scores."""
LEAK_BYTES = 20_000
"""Ten thousand comparisons would then hold 200 MB more."""
MARK = "LLMFIT_LEAKS"
"""In the environment of all that this process starts, so that orphans are found too."""

MEMORY = ("resident_bytes", "private_bytes")
COUNTS = (
    "descriptors", "threads", "processes", "zombies", "shared_memory", "temporary_files",
    "stray_files",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where a series of comparisons works; nobody else does."""

    temporary: Path
    cache: Path
    runs: Path
    user: Path
    """For XDG_CACHE_HOME and XDG_DATA_HOME: what is made once a machine."""

    @property
    def store(self) -> Path:
        """The results store."""
        return self.user / "store.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """This process, what it started, and its folders, after one comparison."""

    comparison: int
    seconds: float
    resident_bytes: int
    private_bytes: int
    """Pages of no file. A unique set size would count a library's pages too, whenever no other
    process has mapped them."""
    objects: int
    """Python objects that the garbage collector watches."""
    descriptors: int
    threads: int
    processes: int
    """Children that live, and whatever else carries this series' mark."""
    zombies: int
    shared_memory: int
    """Files in /dev/shm that were not there before the series."""
    temporary_files: int
    stray_files: int
    """Files that no run, artifact or store accounts for."""
    left: tuple[str, ...]
    """Names of the last two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How one figure went."""

    name: str
    first: int
    """After the warm-up."""
    last: int
    most: int
    slope: float | None = None
    """Per comparison, by Theil and Sen; None for counts, and for fewer than three comparisons."""
    low: float | None = None
    high: float | None = None
    """The slope's 95 % interval."""
    leaks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the script measured."""

    comparisons: int
    warmup: int
    leak_bytes: int
    growth: tuple[Growth, ...]
    snapshots: tuple[Snapshot, ...]
    seconds: float
    cpu: str
    cpu_cores: int
    system: str
    python: str
    packages: dict[str, str]

    @property
    def leaking(self) -> tuple[str, ...]:
        """Names of what leaks."""
        return tuple(each.name for each in self.growth if each.leaks)


@contextmanager
def private_folders(work: Path) -> Iterator[Folders]:
    """Folders under ``work``, which this process and all it starts use meanwhile."""
    folders = Folders(
        temporary=work / "tmp", cache=work / "cache", runs=work / "runs", user=work / "user"
    )
    for folder in (folders.temporary, folders.runs, folders.user):
        folder.mkdir(parents=True)
    changed = {
        "TMPDIR": str(folders.temporary),
        "XDG_CACHE_HOME": str(folders.user / "cache"),
        "XDG_DATA_HOME": str(folders.user / "data"),
        MARK: uuid.uuid4().hex,
    }
    before = {name: os.environ.get(name) for name in changed}
    chosen = tempfile.tempdir
    os.environ.update(changed)
    tempfile.tempdir = None
    try:
        yield folders
    finally:
        tempfile.tempdir = chosen
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(
    folders: Folders, numbers: Sequence[int], *, warmup: int, say: bool = False
) -> tuple[tuple[Snapshot, ...], Comparison]:
    """A comparison for each of ``numbers``, which say what rows it has, and what each left.

    The last comparison stands for them all. Raises RuntimeError for a row that does not run.
    """
    shared_before = shared_memory()
    snapshots: list[Snapshot] = []
    for place, number in enumerate(numbers):
        began = time.monotonic()
        done = _compare(folders, number)
        for row in done.rows:
            if row.status != "ok":
                raise RuntimeError(f"comparison {place}, {row.backend}: {row.reason}")
        seconds = time.monotonic() - began
        snapshots.append(look(folders, place, seconds, shared_before))
        if say:
            _say(snapshots[-1], warming=place < warmup)
    return tuple(snapshots), done


def _compare(folders: Folders, number: int) -> Comparison:
    full = number % FULL_EVERY == 0
    other = "gguf" if number % (2 * FULL_EVERY) == 0 else "gptq"
    return llmfit.compare(
        backends=["bf16", "sdpa", other] if full else ["bf16"],
        workload=Workload(prompt_tokens=16, new_tokens=4),
        evaluation=EvaluationSettings(limit=2) if full else None,
        device="cpu",
        threads=1,
        cache_dir=str(folders.cache),
        keeping=llmfit.Keeping(runs_dir=str(folders.runs), store=str(folders.store)),
    )


def look(folders: Folders, place: int, seconds: float, shared_before: frozenset[str]) -> Snapshot:
    """This process, what it started and the folders, as they are now."""
    gc.collect()
    return_freed_memory()  # what the C heap keeps for its next use is no leak
    this = psutil.Process()
    memory = this.memory_info()
    temporary = _files(folders.temporary)
    stray = _in_no_run(folders.runs) | _unaccounted(folders.cache) | _beside_store(folders)
    return Snapshot(
        comparison=place,
        seconds=seconds,
        resident_bytes=memory.rss,
        private_bytes=memory.rss - memory.shared,
        objects=len(gc.get_objects()),
        descriptors=this.num_fds(),
        threads=this.num_threads(),
        processes=len(_marked()),
        zombies=sum(_is_zombie(child) for child in this.children(recursive=True)),
        shared_memory=len(left_shared(shared_before)),
        temporary_files=len(temporary),
        stray_files=len(stray),
        left=tuple(sorted(map(str, temporary | stray))),
    )


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def _in_no_run(runs: Path) -> set[Path]:
    """Files that are neither a row's record, nor its log, nor the record of a whole run."""
    found = set()
    for file in _files(runs):
        record = file.suffix == ".json" or file.with_suffix(".json").is_file()
        if file.parent.parent != runs or not record or file.suffix not in (".json", ".log"):
            found.add(file)
    return found


def _unaccounted(cache: Path) -> set[Path]:
    """Files of the cache that belong to no whole artifact, but for what it keeps about them."""
    entries = [entry for entry in ArtifactCache(cache).entries() if entry.damaged is None]
    locks = {cache / ".locks" / f"{entry.key}.lock" for entry in entries}
    inside = {file for entry in entries for file in _files(entry.path)}
    beside = {path for path in cache.glob(".*.json") if path.is_file()}  # hashes, remembered
    return _files(cache) - inside - locks - beside


def _beside_store(folders: Folders) -> set[Path]:
    return set(folders.store.parent.glob("store.db*")) - {folders.store}


def shared_memory() -> frozenset[str]:
    """Names of the files in /dev/shm, which all programs of a machine share."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return frozenset()
    return frozenset(path.name for path in folder.iterdir() if not path.is_dir())


def left_shared(before: frozenset[str]) -> frozenset[str]:
    """What is there beyond ``before``, but for what programs other than this one's hold open."""
    new = shared_memory() - before
    ours = {os.getpid(), *(process.pid for process in _marked())} if new else set()
    for process in psutil.process_iter() if new else ():
        if process.pid in ours:
            continue
        try:
            held = {each.path for each in process.memory_maps()}
            held |= {each.path for each in process.open_files()}
        except (psutil.Error, OSError):  # it has just ended, or is not ours to ask
            continue
        new -= {Path(path).name for path in held if path.startswith("/dev/shm/")}
    return new


def _marked() -> list[psutil.Process]:
    """Processes other than this one that carry the mark: children, and orphans of theirs."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == os.environ[MARK]
        except (psutil.Error, OSError):  # it has just ended, or is not ours to ask
            continue
        if marked and process.pid != os.getpid():
            found.append(process)
    return found


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- judging


def growth(snapshots: Sequence[Snapshot], *, warmup: int) -> tuple[Growth, ...]:
    """How each figure went after ``warmup`` comparisons, and whether it leaks."""
    kept = snapshots[warmup - 1 :]
    memory = [_of_memory(name, kept) for name in (*MEMORY, "objects")]
    return (*memory, *(_of_count(name, kept) for name in COUNTS))


def _of_memory(name: str, kept: Sequence[Snapshot]) -> Growth:
    from scipy.stats import theilslopes

    def fitted(part: Sequence[Snapshot]) -> tuple[float, float, float]:
        values = [getattr(each, name) for each in part]
        found = theilslopes(values, [each.comparison for each in part], 0.95)
        return float(found.slope), float(found.low_slope), float(found.high_slope)

    values = [getattr(each, name) for each in kept]
    slope, low, high = fitted(kept) if len(kept) > 2 else (None, None, None)
    thirds = [kept[len(kept) * i // 3 : len(kept) * (i + 1) // 3] for i in range(3)]
    goes_on = len(thirds[0]) > 2 and all(
        slope > LEAK_BYTES and low > 0 for slope, low, _ in map(fitted, thirds)
    )
    return Growth(
        name=name,
        first=values[0],
        last=values[-1],
        most=max(values),
        slope=slope,
        low=low,
        high=high,
        # Objects only explain what memory shows.
        leaks=name in MEMORY and goes_on,
    )


def _of_count(name: str, kept: Sequence[Snapshot]) -> Growth:
    values = [getattr(each, name) for each in kept]
    grown = values[-1] > values[0] or (name == "zombies" and max(values) > 0)
    return Growth(name=name, first=values[0], last=values[-1], most=max(values), leaks=grown)


# ---------------------------------------------------------------- showing


def _say(snapshot: Snapshot, *, warming: bool) -> None:
    resident, private = snapshot.resident_bytes / 1e6, snapshot.private_bytes / 1e6
    counts = " ".join(str(getattr(snapshot, name)) for name in COUNTS)
    print(
        f"{snapshot.comparison:4d}{'~' if warming else ' '} {snapshot.seconds:6.1f} s  "
        f"resident {resident:7.2f} MB, private {private:7.2f} MB, {snapshot.objects:,} objects; "
        f"{counts}",
        flush=True,
    )


def _show(result: Result) -> None:
    print(f"\n{result.comparisons} comparisons in {result.seconds:.0f} s; after {result.warmup}:")
    for each in result.growth:
        line = f"{each.name:16s} {each.first:>12,} → {each.last:>12,}  most {each.most:>12,}"
        if each.slope is not None:
            line += f"  {each.slope:+,.0f} ({each.low:+,.0f} … {each.high:+,.0f}) a comparison"
        print(line + ("  LEAKS" if each.leaks else ""))
    for name in result.snapshots[-1].left:
        print(f"left: {name}")


def main() -> int:
    """Compare, look, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=WARMUP)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="llmfit-leaks-"))
    try:
        with private_folders(work) as folders:
            snapshots, last = run(folders, range(args.comparisons), warmup=args.warmup, say=True)
    finally:
        shutil.rmtree(work)
    result = Result(
        comparisons=args.comparisons,
        warmup=args.warmup,
        leak_bytes=LEAK_BYTES,
        growth=growth(snapshots, warmup=args.warmup),
        snapshots=snapshots,
        seconds=time.monotonic() - began,
        cpu=cpu_name(),
        cpu_cores=physical_cores(),
        system=platform.platform(),
        python=platform.python_version(),
        packages=last.environment.packages,
    )
    _show(result)
    if args.out is not None:
        write_atomically(args.out, to_json(result) + "\n")
    return 1 if result.leaking else 0


if __name__ == "__main__":
    sys.exit(main())
