"""A short, seeded run of benchmarks/fuzz: the harness finds what is broken, and nothing here is."""

from __future__ import annotations

import sys
from typing import get_args

import pytest

pytest.importorskip("hypothesis")

from benchmarks.fuzz.child import Batch, Kind
from benchmarks.fuzz.parent import Result, run_process

LIGHT = (
    "JSON", "safetensors header", "index of shards", "config.json to predictions",
    "quantization_config", "quantize_config.json", "tokenizer.json to GGUF vocabulary",
    "nightly TOML",
)  # fmt: skip
"""Readers that import neither torch nor transformers."""
_CASES = 20


@pytest.mark.slow
def test_some_cases_of_each_reader_end_as_promised() -> None:
    """320 files, most of them damaged: each is read, or refused by an error of our own."""
    batches = [Batch(name, kind, 8, _CASES) for name in LIGHT for kind in get_args(Kind)]
    results = [Result(target=batch.target, kind=batch.kind) for batch in batches]
    assert not run_process(batches, results)
    for result in results:
        assert not result.finds, result.finds[0]
    assert sum(result.cases for result in results) > 0.9 * len(batches) * _CASES
    for name in LIGHT:  # neither everything nor nothing passes
        own = [result for result in results if result.target == name]
        assert all(sum(r.outcomes[end] for r in own) for end in ("passed", "refused")), name


_BROKEN = """
import ctypes, sys
from pathlib import Path
from benchmarks.fuzz import child, watch
from benchmarks.fuzz.targets import TARGETS, Target
from llmfit.errors import ModelLoadError

watch.CASE_SECONDS = 0.5

def fails(folder):
    raise KeyError("unexpected")

def hangs(folder):
    while True:
        pass

def grows(folder):
    bytearray(2 * watch.CASE_BYTES)

def looks_around(folder):
    try:
        open("/etc/shadow")
    except OSError:
        pass

def babbles(folder):
    raise ModelLoadError("x" * 10_000)

def crashes(folder):
    ctypes.string_at(0)

def target(run):
    return Target(name=run.__name__, file="x", run=run, seeds=lambda: [b"seed"],
                  structured=lambda: None)

child.TARGETS = tuple(map(target, (fails, hangs, grows, looks_around, babbles, crashes)))
child.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_the_harness_finds_each_kind_of_fault() -> None:
    """Another error, time, memory, a file elsewhere, a message without end, a crash."""
    names = ("fails", "hangs", "grows", "looks_around", "babbles", "crashes")
    batches = [Batch(name, "bytes", 0, 2) for name in names]
    results = [Result(target=name, kind="bytes") for name in names]
    assert run_process(batches, results, (sys.executable, "-c", _BROKEN))
    told = [str(result.finds[0]["find"]) for result in results]
    for said, expected in zip(
        told,
        ("KeyError in", "too slow in", "MemoryError in", "open /etc/shadow", "10000 characters"),
        strict=False,
    ):
        assert expected in said
    assert "SIGSEGV" in told[-1]
    assert [result.finds[0]["count"] for result in results[:-1]] == [2] * 5
