"""All eight rows on a Ray cluster of two nodes, one of which is killed, and on one machine.

    python -m benchmarks.fleet [--out benchmarks/results/fleet.json]

Two node processes on this machine, each with all its processors by Ray's count, so two rows run at
once: quality has to come out equal to the last bit, speed is of no meaning here. The node that runs
the fourth row is killed while it does, and another one joins.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from llmfit.comparison import compare
from llmfit.device.cpu import physical_cores
from llmfit.executors.ray_cluster import Fleet, RayCluster
from llmfit.job import Observer
from llmfit.keeping import Keeping
from llmfit.records import Comparison, EvaluationSettings, RunRecord, Workload, to_builtins

_WORKLOAD = Workload(prompt_tokens=64, new_tokens=32, repeats=2)
_KILLED_AT = 4
"""The row whose node is killed, by the order in which they begin."""


class _Killer(Observer):
    """Kills a node that runs rows, once."""

    def __init__(self, kill: object) -> None:
        self._kill = kill
        self._begun: list[str] = []
        self.killed = False

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        print(f"  {backend} begins", flush=True)
        self._begun.append(backend)

    def progress(self, backend: str, stage: str, done: int, total: int) -> None:
        if not self.killed and len(self._begun) >= _KILLED_AT and stage == "measure":
            self.killed = True
            assert callable(self._kill)
            print(f"  a node is killed while {backend} is measured", flush=True)
            self._kill()

    def row_done(self, record: RunRecord) -> None:
        print(f"  {record.backend}: {record.status} {record.reason or ''}", flush=True)


def on_fleet(place: Path, limit: int | None) -> Comparison:
    """The rows on two nodes, of which one is killed."""
    from ray.cluster_utils import Cluster

    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=physical_cores()) for _ in range(2)]

    def kill() -> None:
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=physical_cores())

    try:
        with RayCluster(cluster.address) as joined:
            return _compare(place / "fleet", limit, Fleet(joined), _Killer(kill))
    finally:
        cluster.shutdown()


def _compare(
    place: Path, limit: int | None, fleet: Fleet | None, observer: Observer | None
) -> Comparison:
    return compare(
        workload=_WORKLOAD,
        evaluation=EvaluationSettings(limit=limit),
        device="cpu",
        keeping=Keeping(runs_dir=str(place / "runs"), store=str(place / "store.db")),
        cache_dir=str(place.parent / "cache"),
        executor=fleet,
        observer=observer,
    )


def quality(row: RunRecord) -> dict[str, object]:
    """All that was scored of a row, item by item."""
    told = to_builtins(row)
    return {name: told[name] for name in ("status", "hellaswag", "perplexity", "divergence")}


def main() -> None:
    """Run both, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, metavar="N", help="score only so many items")
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmfit-fleet-") as folder:
        started = time.monotonic()
        fleet = on_fleet(Path(folder), args.limit)
        middle = time.monotonic()
        here = _compare(Path(folder) / "here", args.limit, None, None)
        ended = time.monotonic()
    rows = []
    for there, alone in zip(fleet.rows, here.rows, strict=True):
        equal = quality(there) == quality(alone)
        again = [note for note in there.notes if note.startswith("run again")]
        node = None if there.environment is None else there.environment.node
        rows.append(
            {
                "backend": there.backend, "status": there.status, "reason": there.reason,
                "equal_quality": equal, "node": node, "run_again": bool(again),
                "perplexity": None if there.perplexity is None else there.perplexity.token,
                "acc_norm": None if there.hellaswag is None else there.hellaswag.acc_norm,
                "kl_divergence": there.kl_divergence,
            }
        )  # fmt: skip
        print(
            f"{there.backend:10} {there.status:8} equal {equal}  node {node}"
            f"{'  run again after its node was killed' if again else ''}"
        )
    result = {
        "what": "eight rows on a Ray cluster of two nodes, one killed; then on one machine",
        "machine": to_builtins(here.environment),
        "rows": rows,
        "equal": all(row["equal_quality"] for row in rows),
        "run_again": sum(bool(row["run_again"]) for row in rows),
        "nodes": len({row["node"] for row in rows}),
        "fleet_s": middle - started,
        "one_machine_s": ended - middle,
    }
    print(f"equal: {result['equal']}, rows run again: {result['run_again']}")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
