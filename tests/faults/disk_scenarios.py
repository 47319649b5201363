"""Comparisons on small real disks: what a process does inside a mount namespace of its own.

    python disk_scenarios.py ROOT   a {"call": name, "with": {…}} a line on stdin, facts on stdout

Each scenario injects one fault into real rows and returns what came of it; ``test_disk.py`` judges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from llmfit.errors import LlmfitError
from llmfit.executors.base import Limits
from llmfit.executors.local import LocalSite
from llmfit.job import Observer, run_plans
from llmfit.keeping import Keeping
from llmfit.models import resolve
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Comparison, EvaluationSettings, Plan, Workload
from llmfit.runner.isolate import fork_server, probe_environment
from llmfit.store.exchange import import_runs
from llmfit.store.store import Store

Facts = dict[str, Any]
QUICK = Workload(prompt_tokens=8, new_tokens=3, repeats=1, warmup=0)
_SHARED = ExitStack()
ROOT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def disk(name: str, size: str) -> Path:
    """An empty disk of that size; one that was there is gone."""
    place = ROOT / name
    place.mkdir(exist_ok=True)
    subprocess.run(["umount", "-q", place], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    return place


def again(place: Path, options: str) -> None:
    """The same disk with other options, such as another size or ``ro``."""
    # Without the options that are there: in a user namespace the owner's cannot be given again.
    ignoring = ["mount", "--options-mode", "ignore", "-o", f"remount,{options}"]
    subprocess.run([*ignoring, place], check=True)


def fill(place: Path) -> None:
    """Write to a disk until it is full."""
    with suppress(OSError), (place / "filling").open("wb", buffering=0) as stream:
        while stream.write(b"\0" * 4096) == 4096:
            pass


def names(place: Path) -> list[str]:
    """Every file and folder on a disk but what filled it."""
    found = (path.relative_to(place).as_posix() for path in place.rglob("*"))
    return sorted(name for name in found if name != "filling")


# ---------------------------------------------------------------- real rows


@cache
def _base(model: str) -> Plan:
    return Plan(backend="", model=resolve(model), device="cpu", workload=QUICK, threads=1)


@cache
def _server() -> Any:
    scored = replace(_base(os.environ["DISK_MODEL"]), evaluation=EvaluationSettings())
    return _SHARED.enter_context(fork_server(scored))


@cache
def _machine() -> Any:
    return probe_environment(server=_server())


class _Filling(Observer):
    """Fills disks as a row begins."""

    def __init__(self, row: str, places: Sequence[Path]) -> None:
        self._row, self._places = row, places

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        if backend == self._row:
            for place in self._places:
                fill(place)


def run(
    *backends: str,
    runs: Path,
    artifacts: Path,
    store: Path,
    evaluation: EvaluationSettings | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Rows of the model, in processes of their own, kept in these places."""
    base = replace(_base(os.environ["DISK_MODEL"]), cache_dir=str(artifacts), evaluation=evaluation)
    return run_plans(
        [replace(base, backend=backend) for backend in backends],
        LocalSite(_machine(), _server()),
        keeping=Keeping(runs_dir=str(runs), store=str(store), machine="test"),
        limits=Limits(row_s=300),
        observer=observer,
        last_resort=False,
    )


def told(comparison: Comparison) -> Facts:
    """What a comparison says of its rows."""
    return {
        "rows": {row.backend: [row.status, row.reason] for row in comparison.rows},
        "notes": {row.backend: list(row.notes) for row in comparison.rows},
        "quantized": [row.backend for row in comparison.rows if row.quantize_s is not None],
        "store_error": comparison.store_error,
        "run_id": comparison.run_id,
    }


def attempted(begin: Callable[[], Comparison]) -> Facts:
    """What a comparison says, or the error that it ended with."""
    try:
        return told(begin())
    except LlmfitError as exc:
        return {"error": f"{type(exc).__name__}: {exc.message}", "hint": exc.hint}


# ---------------------------------------------------------------- scenarios


def cache_full(size: str, backends: list[str]) -> Facts:
    """A cache that is too small for what the rows make, and the next run with room."""
    small, place = disk("cache", size), disk("elsewhere", "20m")
    first = attempted(
        lambda: run(*backends, runs=place / "runs", artifacts=small, store=place / "s.db")
    )
    left = names(small)
    again(small, "size=20m")
    second = attempted(
        lambda: run(backends[0], runs=place / "runs", artifacts=small, store=place / "s.db")
    )
    damaged = [entry.damaged for entry in ArtifactCache(small).entries()]
    return {"first": first, "left": left, "second": second, "damaged": damaged}


def records_full() -> Facts:
    """A runs folder without room, then one that fills while its second row runs."""
    small, place = disk("runs", "500k"), disk("elsewhere", "20m")
    where = {"artifacts": place / "cache", "store": place / "s.db"}
    refused = attempted(lambda: run("bf16", runs=small, **where))
    left = names(small)
    again(small, "size=2m")
    filling = _Filling("sdpa", [small])
    filled = attempted(lambda: run("bf16", "sdpa", runs=small, observer=filling, **where))
    halves = [name for name in names(small) if name.rpartition("/")[2].startswith(".")]
    with Store(place / "s.db") as store:
        stored = [row.backend for row in store.comparison(filled["run_id"]).rows]
        begun = len(store.history())
    (small / "filling").unlink()
    clean = attempted(lambda: run("sdpa", runs=small, **where))
    return {
        "refused": refused, "left": left, "filled": filled, "halves": halves, "stored": stored,
        "begun": begun, "clean": clean,
    }  # fmt: skip


def store_full() -> Facts:
    """A store that cannot be made, then one that fills while its second row runs."""
    small, place = disk("store", "40k"), disk("elsewhere", "20m")
    where = {"artifacts": place / "cache", "runs": place / "runs"}
    refused = attempted(lambda: run("bf16", store=small / "s.db", **where))
    left = names(place)
    again(small, "size=400k")
    filling = _Filling("sdpa", [small])
    filled = attempted(lambda: run("bf16", "sdpa", store=small / "s.db", observer=filling, **where))
    (small / "filling").unlink()
    again(small, "size=4m")
    with Store(small / "s.db") as store:
        added = import_runs(store, [place / "runs" / filled["run_id"]]).added
        rows = [row.backend for row in store.comparison(filled["run_id"]).rows]
    return {"refused": refused, "left": left, "filled": filled, "added": added, "rows": rows}


def logits_full(text: str) -> Facts:
    """Room for records, and none for the reference's logits."""
    small, place = disk("runs", "1500k"), disk("elsewhere", "20m")
    scored = EvaluationSettings(tasks=("wikitext",), text_file=text)
    comparison = run(
        "bf16", "sdpa",
        runs=small, artifacts=place / "cache", store=place / "s.db", evaluation=scored,
    )  # fmt: skip
    perplexities = [row.perplexity is not None for row in comparison.rows]
    unknown = [row.kl_divergence for row in comparison.rows]
    return {
        **told(comparison), "perplexities": perplexities, "divergences": unknown,
        "left": [name.partition("/")[2] for name in names(small) if "/" in name],
    }  # fmt: skip


def read_only() -> Facts:
    """Each of the three places read-only; a cache then serves what it holds."""
    place, fixed = disk("elsewhere", "20m"), disk("fixed", "20m")
    free = {"runs": place / "runs", "artifacts": place / "cache", "store": place / "s.db"}
    again(fixed, "ro")
    rows = attempted(lambda: run("gguf", "sdpa", **{**free, "artifacts": fixed}))
    runs = attempted(lambda: run("sdpa", **{**free, "runs": fixed}))
    store = attempted(lambda: run("sdpa", **{**free, "store": fixed / "s.db"}))
    below = len(list((place / "runs").iterdir()))
    again(fixed, "rw")
    made = attempted(lambda: run("gguf", **{**free, "artifacts": fixed}))
    again(fixed, "ro")
    served = attempted(lambda: run("gguf", **{**free, "artifacts": fixed}))
    return {
        "cache": rows, "runs": runs, "store": store, "run_folders": below, "made": made,
        "served": served,
    }  # fmt: skip


def make(disks: dict[str, str]) -> dict[str, Path]:
    """Disks by name and size; their places."""
    return {name: disk(name, size) for name, size in disks.items()}


def fill_all(places: list[str]) -> None:
    """Fill these disks."""
    for place in places:
        fill(Path(place))


def list_all(places: list[str]) -> list[list[str]]:
    """What is on each of these disks."""
    return [names(Path(place)) for place in places]


SCENARIOS = (
    cache_full, records_full, store_full, logits_full, read_only, make, fill_all, list_all,
)  # fmt: skip


def main() -> None:
    """Do what the lines of stdin say."""
    known = {scenario.__name__: scenario for scenario in SCENARIOS}
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with _SHARED:
        for line in sys.stdin:
            job = json.loads(line)
            found = known[job["call"]](**job["with"])  # type: ignore[operator]
            out.write(json.dumps(found, default=str) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
