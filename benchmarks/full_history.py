"""How long a plan and the start of a comparison take on a machine with a long history.

    python benchmarks/full_history.py [--runs 10000] [--out FILE]

Fills a folder of runs and a store, as comparisons of two formats leave them, and times what looks
into them: `llmfit plan`, which calibrates its speeds by own records, opening the store, and how a
comparison begins to keep its records or finds the one to go on with. Empty, a tenth as long and
whole take turns. Exit code 1 where anything takes more than a second with the whole history.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.files import write_atomically
from llmfit.history import own_records
from llmfit.keeping import Keeping, keep
from llmfit.models import resolve
from llmfit.planner import plan
from llmfit.records import Comparison, Environment, Plan, to_json
from llmfit.store.heads import RunHead
from llmfit.store.store import Store
from llmfit.testing import make_comparison, make_record

BACKENDS = ("bf16", "sdpa")
REPEATS = 5
LIMIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One action with a history of one length."""

    action: str
    runs: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the script measured."""

    timed: tuple[Timed, ...]
    records_used: int
    """Own records that a plan took into account, of the whole history."""
    store_bytes: int
    cpu: str
    python: str

    @property
    def too_slow(self) -> tuple[Timed, ...]:
        """What takes more than the limit."""
        return tuple(each for each in self.timed if median(each.seconds) > LIMIT_S)


def _comparison() -> Comparison:
    """Two rows of the embedded model on this machine's CPU."""
    machine = Environment(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=cpu_name(),
        cpu_cores=physical_cores(),
        ram_bytes=2**35,
    )
    spec = resolve(None)
    rows = [
        replace(
            make_record(name, device="cpu"),
            environment=machine,
            plan=Plan(backend=name, model=spec, device="cpu"),
        )
        for name in BACKENDS
    ]
    return make_comparison(rows, model=spec, environment=machine)


def fill(folder: Path, runs: int) -> Keeping:
    """A history of so many runs, half an hour apart, and where it is kept."""
    base = _comparison()
    keeping = Keeping(runs_dir=str(folder / "runs"), store=str(folder / "store.db"), machine="lab")
    texts = {f"{row.backend}.json": to_json(row) for row in base.rows}
    texts |= {f"{row.backend}.log": "" for row in base.rows}
    texts["comparison.json"] = to_json(base)
    (folder / "runs").mkdir(parents=True)
    with Store(keeping.store) as store:
        for number in range(runs):
            started = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=30 * number)
            run_id = f"{started:%Y%m%d-%H%M%S}-llmfit-embedded-{number:06x}"
            run = folder / "runs" / run_id
            run.mkdir()
            for name, text in texts.items():
                (run / name).write_text(text, encoding="utf-8")
            rows = tuple(replace(row, started_at=started.isoformat()) for row in base.rows)
            head = RunHead(
                run_id=run_id,
                model=base.model,
                workload=base.workload,
                environment=base.environment,
                backends=BACKENDS,
                started_at=started.isoformat(),
                machine=keeping.machine,
            )
            store.put(head, replace(base, run_id=run_id, rows=rows))
    return keeping


def actions(keeping: Keeping) -> dict[str, Callable[[], object]]:
    """What looks into a history, by name."""
    base = _comparison()
    plans = [Plan(backend=name, model=base.model, device="cpu") for name in BACKENDS]

    def unfinished() -> object:
        with Store(keeping.store) as store:
            return store.unfinished("lab", base.model.name)

    return {
        "own records": lambda: own_records(keeping.runs_dir),
        "plan": lambda: plan(runs_dir=keeping.runs_dir),
        "a run begins": lambda: keep(plans, base.environment, keeping, command=None).close(),
        "a run to go on with": unfinished,
    }


def main() -> int:
    """Fill, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmfit-history-") as folder:
        lengths = (0, args.runs // 10, args.runs)
        kept = {length: fill(Path(folder) / str(length), length) for length in lengths}
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(REPEATS):
            for length, keeping in kept.items():
                for name, action in actions(keeping).items():
                    began = time.perf_counter()
                    action()
                    taken = time.perf_counter() - began
                    seconds.setdefault((name, length), []).append(taken)
        whole = kept[args.runs]
        result = Result(
            timed=tuple(
                Timed(action=name, runs=length, seconds=tuple(found))
                for (name, length), found in sorted(seconds.items())
            ),
            records_used=len(own_records(whole.runs_dir)),
            store_bytes=Path(str(whole.store)).stat().st_size,
            cpu=cpu_name(),
            python=platform.python_version(),
        )
    for each in result.timed:
        low, high = min(each.seconds), max(each.seconds)
        print(
            f"{each.action:20s} {each.runs:>7,} runs  {median(each.seconds):.3f} s "
            f"({low:.3f} … {high:.3f})"
        )
    print(f"a plan uses {result.records_used} records; store {result.store_bytes / 1e6:.0f} MB")
    if args.out is not None:
        write_atomically(args.out, to_json(result) + "\n")
    return 1 if result.too_slow else 0


if __name__ == "__main__":
    sys.exit(main())
