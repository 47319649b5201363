"""Runs to store, and what processes that store them do."""

from __future__ import annotations

from pathlib import Path

from llmfit.records import RunRecord
from llmfit.store.heads import RunHead
from llmfit.store.store import Store
from llmfit.testing import make_comparison, make_record


def head_of(
    run_id: str, *, night: int = 1, machine: str = "lab", tag: str | None = None
) -> RunHead:
    """A run of January."""
    comparison = make_comparison([make_record("bf16")])
    return RunHead(
        run_id=run_id,
        model=comparison.model,
        workload=comparison.workload,
        environment=comparison.environment,
        backends=("bf16", "nf4"),
        started_at=f"2026-01-{night:02d}T00:00:00.000000+00:00",
        machine=machine,
        tag=tag,
        command="llmfit compare meta-llama/Llama-3.1-8B",
    )


def rows_of(rate: float = 40.0, *, night: int = 1) -> list[RunRecord]:
    """Two rows of that night."""
    at = f"2026-01-{night:02d}T00:00:01+00:00"
    return [
        make_record("bf16", tokens_per_s=rate, started_at=at),
        make_record(
            "nf4", tokens_per_s=2 * rate, perplexity=6.5, kl_divergence=0.02, started_at=at
        ),
    ]


def write_runs(place: str, name: str, count: int) -> None:
    """Store so many runs, row by row."""
    with Store(place) as store:
        for number in range(count):
            run_id = f"{name}-{number}"
            store.begin(head_of(run_id))
            for position, row in enumerate(rows_of()):
                store.add(run_id, position, row)
            store.conclude(make_comparison(rows_of(), run_id=run_id))


def write_until_killed(place: str, told: Path) -> None:
    """Store run after run; a line in ``told`` for each that is stored."""
    with Store(place) as store, told.open("w") as stream:
        for number in range(10_000):
            store.put(head_of(f"k-{number}"), make_comparison(rows_of(), run_id=f"k-{number}"))
            stream.write(f"{number}\n")
            stream.flush()
