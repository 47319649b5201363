"""torchrun in a process that ends with its parent, and says which process failed first.

    python -m llmfit.parallel.agent PARENT_PID FAILURE_FILE TORCHRUN_ARGUMENTS…

Where a process of the group dies, torchrun kills the others; ``FAILURE_FILE`` then has its rank and
exit code as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from llmfit.child import die_with_parent

PARENT = "LLMFIT_GROUP_AGENT"
"""Variable that tells a process of the group the agent's process id."""


def main(arguments: list[str]) -> int:
    """Run the group; 0 where all its processes ended well."""
    parent, failure_file, *for_torchrun = arguments
    if not follows(int(parent)):
        return 1
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ[PARENT] = str(os.getpid())
    try:
        run(parse_args(for_torchrun))
    except ChildFailedError as exc:
        rank, failure = exc.get_first_failure()
        found = {"rank": rank, "code": failure.exitcode}
        Path(failure_file).write_text(json.dumps(found), encoding="utf-8")
        return 1
    except SignalException as exc:  # the parent wants no more; torchrun has ended the group
        return 128 + exc.sigval
    return 0


def follows(parent: int) -> bool:
    """Have this process end with ``parent``; False where that has ended already."""
    die_with_parent()
    return os.getppid() == parent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
