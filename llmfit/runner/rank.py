"""One of the processes that share a row's model: the plan from a file, what is told on a pipe.

    torchrun … -m llmfit.runner.rank FOLDER

All do the same in lockstep: the same plan, seeds and greedy tokens, so that each meets the others
in every layer. The first tells its progress and its record; another one a record that is not ok.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from llmfit.backends.base import Progress, no_progress
from llmfit.device.cpu import physical_cores
from llmfit.parallel import group
from llmfit.parallel.agent import PARENT, follows
from llmfit.parallel.launch import pipe_of
from llmfit.records import Plan, read_record
from llmfit.runner.messages import Message
from llmfit.runner.shared import PLAN_FILE
from llmfit.runner.worker import Channel, end, run_plan


def main(folder: Path) -> int:
    """Do this process's part of the plan; 0 when all was told that it has to tell."""
    if not follows(int(os.environ[PARENT])):
        return 1
    plan = read_record(Plan, folder / PLAN_FILE)
    rank, size = group.join(plan.device)
    # It fails where nobody reads any more.
    pipe_end = os.open(pipe_of(folder, rank), os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(pipe_end, True)
    with os.fdopen(pipe_end, "wb", buffering=0) as pipe:
        channel = Channel(pipe)
        progress: Progress = no_progress if rank else channel.progress
        record = run_plan(_own(plan, rank, size), progress)
        if rank == 0 or record.status != "ok":
            channel.send(Message(record=record))
    return 0


def _own(plan: Plan, rank: int, size: int) -> Plan:
    """The plan as this process runs it: its share of the cores, and one writer of files."""
    if plan.device == "cpu":
        plan = replace(plan, threads=max(1, (plan.threads or physical_cores()) // size))
    # The logits are the same in all; the first writes or reads the reference's.
    return plan if rank == 0 else replace(plan, reference_file=None)


if __name__ == "__main__":
    end(main(Path(sys.argv[1])))
