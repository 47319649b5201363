"""The row of a model that several processes share: started, followed, and one record of it.

Plan ─► torchrun ─► rank 0 … N−1 (rank.py) ─► progress and record of rank 0
                                           └► a record of any other that is not ok
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from llmfit.backends.base import Progress
from llmfit.errors import StoreError
from llmfit.parallel.launch import Ended, run_group
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Plan, RunRecord, to_builtins
from llmfit.runner.messages import decode

PLAN_FILE = "plan.json"
RANK_MODULE = "llmfit.runner.rank"


def is_shared(plan: Plan) -> bool:
    """Whether several processes run this plan."""
    return plan.gpus > 1 and plan.split == "tensor"


def run_shared(plan: Plan, blank: RunRecord, progress: Progress) -> RunRecord:
    """Run ``plan`` in ``plan.gpus`` processes; ``blank`` with the reason where they come to grief.

    The first record that is not ok ends them all, and is the row's.
    """
    found: list[RunRecord] = []

    def receive(rank: int, line: bytes) -> bool:
        message = decode(line)
        if message.stage is not None:
            progress(message.stage.name, message.stage.done, message.stage.total)
        if message.record is None:
            return False
        record = message.record
        if rank and record.reason is not None:
            record = replace(record, reason=f"rank {rank} of {plan.gpus}: {record.reason}")
        found.append(record)
        return True

    with ExitStack() as stack:
        folder = _scratch(plan, stack)
        (folder / PLAN_FILE).write_bytes(msgspec.json.encode(to_builtins(plan)))
        # transformers shares out over GPUs wherever it sees one.
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if plan.device == "cpu" else {}
        ended = run_group(RANK_MODULE, plan.gpus, folder, receive, variables=hidden)
    if ended is None:
        return replace(found[0], plan=plan)
    return replace(blank, reason=_reason(ended, plan.gpus))


def _scratch(plan: Plan, stack: ExitStack) -> Path:
    """A folder for the group's pipes: in the cache, which is swept where this process is killed.

    One of the system's where the cache cannot be written.
    """
    cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
    try:
        return stack.enter_context(cache.scratch("group", 0))
    except StoreError:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmfit-group-")))


def _reason(ended: Ended, processes: int) -> str:
    said = f": {ended.said}" if ended.said else ""
    if ended.rank is None:
        return f"torchrun ended with {ended.how} before its {processes} processes were done"
    return f"rank {ended.rank} of {processes} ended with {ended.how}, which ended all{said}"
