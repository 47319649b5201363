"""Real rows of a small model: a comparison without probing the machine, in places of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llmfit.executors.base import Limits
from llmfit.executors.local import LocalSite
from llmfit.job import Observer, run_plans
from llmfit.keeping import Keeping
from llmfit.models import resolve
from llmfit.records import Comparison, Environment, Plan, Workload
from llmfit.runner.forkserver import ForkServer

QUICK = Workload(prompt_tokens=8, new_tokens=3, repeats=1, warmup=0)
_MACHINE = Environment(platform="Linux", python="3.11", cpu="CPU", cpu_cores=2, ram_bytes=2**34)


def compared(
    model: Path,
    place: Path,
    *backends: str,
    server: ForkServer | None,
    observer: Observer | None = None,
    **changes: Any,
) -> Comparison:
    """The rows ``backends`` of ``model``, with runs, store and cache in ``place``.

    ``changes`` are those of their plans. Raises what a comparison raises.
    """
    plan = Plan(
        backend="",
        model=resolve(str(model)),
        device="cpu",
        workload=QUICK,
        threads=1,
        cache_dir=str(place / "cache"),
    )
    return run_plans(
        [replace(plan, backend=backend, **changes) for backend in backends],
        LocalSite(_MACHINE, server),
        keeping=Keeping(runs_dir=str(place / "runs"), store=str(place / "store.db")),
        limits=Limits(row_s=300),
        observer=observer,
        last_resort=False,
    )
