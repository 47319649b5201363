"""The command line: ``python -m benchmarks.fuzz --seed 0 --cases 24000 --out FILE``."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.fuzz.parent import Result, run

_PACKAGES = ("transformers", "tokenizers", "safetensors", "gguf", "llama-cpp-python", "msgspec",
             "sentencepiece", "protobuf", "hypothesis")  # fmt: skip


def main() -> int:
    """Run the cases, print a line for each target, write JSON; 1 where there is a find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=24_000, help="of all targets together")
    parser.add_argument("--only", help="targets with this in their name")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    asked = parser.parse_args()
    started = time.monotonic()
    results = []
    for result in run(asked.cases, asked.seed, only=asked.only):
        results.append(result)
        _show(result)
    cases = sum(result.cases for result in results)
    finds = sum(len(result.finds) for result in results)
    print(f"{cases} cases, {finds} finds, {time.monotonic() - started:.0f} s")
    if asked.out is not None:
        asked.out.write_text(
            json.dumps(_report(results, asked.seed, time.monotonic() - started), indent=1) + "\n"
        )
    return 1 if finds else 0


def _show(result: Result) -> None:
    outcomes = result.outcomes
    ended = f"{outcomes['passed']:6} passed {outcomes['refused']:6} refused"
    time_taken = f"{result.seconds:6.1f} s, slowest {result.slowest_s:.2f} s"
    name = f"{result.target:36} {result.kind:9}"
    print(f"{name} {result.cases:6} cases {ended} {time_taken}", flush=True)
    for find in result.finds:
        print(f"    FIND {find['count']} × {find['find']}", flush=True)


def _report(results: list[Result], seed: int, seconds: float) -> dict[str, object]:
    return {
        "seed": seed,
        "cases": sum(result.cases for result in results),
        "finds": sum(len(result.finds) for result in results),
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in _PACKAGES},
        "targets": [_told(result) for result in results],
    }


def _told(result: Result) -> dict[str, object]:
    return {
        "target": result.target,
        "kind": result.kind,
        "cases": result.cases,
        "passed": result.outcomes["passed"],
        "refused": result.outcomes["refused"],
        "seconds": round(result.seconds, 1),
        "slowest_s": round(result.slowest_s, 3),
        "finds": result.finds,
    }


if __name__ == "__main__":
    sys.exit(main())
