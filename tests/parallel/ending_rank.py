"""A rank that ends as ``FOLDER/how.json`` says for its rank, or sleeps."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from llmfit.parallel.agent import PARENT, follows
from llmfit.parallel.launch import pipe_of


def main(folder: Path) -> None:
    assert follows(int(os.environ[PARENT]))
    rank = os.environ["RANK"]
    with pipe_of(folder, int(rank)).open("wb") as pipe:
        pipe.write(str(os.getpid()).encode() + b"\n")
    how = json.loads((folder / "how.json").read_text()).get(rank)
    if how is None:
        time.sleep(600)
    sys.stderr.write("the matrix is singular\n")
    sys.stderr.flush()
    if how < 0:
        os.kill(os.getpid(), -how)
    sys.exit(how)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
