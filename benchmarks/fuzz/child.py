"""Batches of cases in one process, its limits on; one line of JSON on stdout for each case.

    python -m benchmarks.fuzz.child   a list of Batch as JSON on stdin

The line of a case is written when it is over, so the one that is missing killed the process.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.fuzz.mutate import mutated
from benchmarks.fuzz.targets import TARGETS, Target
from benchmarks.fuzz.watch import TooSlow, Watch, limit_memory, quiet
from llmfit.errors import LlmfitError

Kind = Literal["bytes", "structure"]
LONGEST_MESSAGE = 3_000
"""Characters of an error; one that repeats a file would fill a terminal."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Which cases to run: ``count`` of one kind, by a seed."""

    target: str
    kind: Kind
    seed: int
    count: int


def run_batch(batch: Batch, send: Callable[[dict[str, object]], None]) -> None:
    """Run the cases, each reported by ``send``."""
    target = next(each for each in TARGETS if each.name == batch.target)
    quiet()
    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-", dir=_memory_disk()) as name:
        runner = _Runner(target, Path(name), send)
        if batch.kind == "bytes":
            _by_bytes(runner, batch)
        else:
            _by_structure(runner, batch)


def _memory_disk() -> str | None:
    """Where files are never written to a disk; None where there is no such place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class _Runner:
    def __init__(
        self, target: Target, folder: Path, send: Callable[[dict[str, object]], None]
    ) -> None:
        self._target, self._folder, self._send = target, folder, send
        target.warm()
        target.furnish(folder)
        self._file = folder / target.file
        self._own = frozenset(folder.rglob("*"))
        self._watch = Watch(folder, also=(Path(tempfile.gettempdir()),))
        limit_memory()

    def case(self, content: bytes) -> None:
        """Run one, and report how it ended."""
        self._clean()
        self._file.write_bytes(content)
        if self._target.padded_bytes is not None:
            os.truncate(self._file, max(len(content), self._target.padded_bytes))
        self._watch.outside.clear()
        started = time.monotonic()
        try:
            with self._watch.watching():
                self._target.run(self._folder)
            outcome, find = "passed", None
        except LlmfitError as exc:
            outcome = "refused"
            find = _wrong_with(exc)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is what is looked for
            outcome, find = "find", _told(exc)
        if self._watch.outside:
            outcome, find = "find", "; ".join(self._watch.outside[:3])
        elif find is not None:
            outcome = "find"
        line: dict[str, object] = {"outcome": outcome, "s": time.monotonic() - started}
        if find is not None:
            line |= {"find": find, "content": base64.b64encode(content[:20_000]).decode()}
        self._send(line)

    def _clean(self) -> None:
        """Take away what the case before left."""
        for path in self._folder.rglob("*"):
            if path not in self._own and path.is_file():
                path.unlink()


def _wrong_with(error: LlmfitError) -> str | None:
    """Why an error of our own is not as promised; None where it is."""
    if len(str(error)) > LONGEST_MESSAGE:
        return f"too long a message: {len(str(error))} characters"
    cause = error.__cause__
    while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__cause__
    return None if cause is None else f"memory was asked for before the check: {error}"[:300]


def _told(error: BaseException) -> str:
    """The error and where in llmfit it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}llmfit{os.sep}" in f.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"
    what = "too slow" if isinstance(error, TooSlow) else type(error).__name__
    return f"{what} in {place}: {str(error)[:300]}"


def _by_bytes(runner: _Runner, batch: Batch) -> None:
    target = next(each for each in TARGETS if each.name == batch.target)
    seeds = target.seeds()
    for index in range(batch.count):
        draw = random.Random(f"{batch.target}/{batch.seed}/{index}")
        runner.case(mutated(seeds, draw, hot=target.hot))


def _by_structure(runner: _Runner, batch: Batch) -> None:
    """As many cases as hypothesis makes of ``count``; it repeats none."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    target = next(each for each in TARGETS if each.name == batch.target)

    @seed(batch.seed)
    @settings(
        max_examples=batch.count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.structured())
    def each(content: bytes) -> None:
        runner.case(content)

    each()


def main() -> None:
    """The process: batches out of stdin, lines to the real stdout."""
    batches = [Batch(**each) for each in json.loads(sys.stdin.readline())]
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no line of ours

    def send(line: dict[str, object]) -> None:
        channel.write(json.dumps(line) + "\n")

    for number, batch in enumerate(batches):
        send({"batch": number, "outcome": "begins"})
        run_batch(batch, lambda line, number=number: send({"batch": number, **line}))
    send({"outcome": "done"})
    channel.flush()
    os._exit(0)  # native libraries' exit handlers are not what is tested


if __name__ == "__main__":
    main()
