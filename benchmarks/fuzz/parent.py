"""Batches of cases in processes of their own, and what became of them."""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, get_args

from benchmarks.fuzz.child import Batch, Kind
from benchmarks.fuzz.targets import TARGETS, Target
from benchmarks.fuzz.watch import CASE_SECONDS

_SILENCE_S = 10 * CASE_SECONDS + 60
"""After so long without a word, imports of a first case included, a process hangs."""
_BATCH = 1_000
_CHILD = (sys.executable, "-m", "benchmarks.fuzz.child")
_MOST_DEATHS = 20
"""Of processes for one target and kind, after which it is given up."""


@dataclass(slots=True)
class Result:
    """How the cases of one target and kind ended."""

    target: str
    kind: Kind
    outcomes: Counter[str] = field(default_factory=Counter)
    finds: list[dict[str, object]] = field(default_factory=list)
    """Each kind of find once, with the first case that showed it and how many did."""
    seconds: float = 0.0
    slowest_s: float = 0.0

    @property
    def cases(self) -> int:
        """Cases that were run to some end."""
        return sum(self.outcomes.values())

    def add(self, line: dict[str, object], batch: Batch) -> None:
        """Count a case."""
        self.outcomes[str(line["outcome"])] += 1
        self.slowest_s = max(self.slowest_s, float(str(line.get("s", 0.0))))
        if "find" not in line:
            return
        name = str(line["find"]).partition(":")[0]
        for known in self.finds:
            if known["name"] == name:
                known["count"] = int(str(known["count"])) + 1
                return
        case = f"{batch.kind}, seed {batch.seed}, number {self.cases}"
        self.finds.append({"name": name, "count": 1, "case": case, **line})


def run(cases: int, seed: int, *, only: str | None = None) -> Iterator[Result]:
    """Run ``cases`` in all, shared out over the targets; each pair of target and kind in turn."""
    chosen = [each for each in TARGETS if only is None or only in each.name]
    shares = sum(each.share for each in chosen) * len(get_args(Kind))
    for target in chosen:
        count = max(1, round(cases * target.share / shares))
        for kind in get_args(Kind):
            yield _run_kind(target, kind, count, seed)


def _run_kind(target: Target, kind: Kind, count: int, seed: int) -> Result:
    """All cases of one kind: hypothesis may make fewer of a batch, so another one follows."""
    result = Result(target=target.name, kind=kind)
    started = time.monotonic()
    deaths = 0
    for number in range(count):  # no batch is without a case
        left = count - result.cases
        if left <= 0 or deaths >= _MOST_DEATHS:
            break
        batch = Batch(target.name, kind, seed * 1_000_003 + number, min(left, _BATCH))
        deaths += run_process([batch], [result])
    result.seconds = time.monotonic() - started
    return result


def run_process(
    batches: Sequence[Batch], results: Sequence[Result], command: Sequence[str] = _CHILD
) -> bool:
    """Run batches in one process, each to its result; True where the process died in one."""
    running = 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([asdict(batch) for batch in batches]) + "\n")
        process.stdin.close()
        for line in _lines(process, process.stdout):
            if line["outcome"] == "done":
                process.wait()
                return False
            running = int(str(line["batch"]))
            if line["outcome"] != "begins":
                results[running].add(line, batches[running])
        code = process.wait()
        log.seek(0)
        tail = " | ".join(log.read().splitlines()[-4:])[-600:]
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    find = f"the process ended with {name}: {tail}"
    results[running].add({"outcome": "find", "find": find}, batches[running])
    return True


def _lines(process: subprocess.Popen[str], stream: IO[str]) -> Iterator[dict[str, object]]:
    """What the process says, until it ends; one that is silent for too long is killed."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(_SILENCE_S):
                process.kill()
                return
            line = stream.readline()
            if not line:
                return
            yield json.loads(line)
