"""A group of processes ends as a whole, and says whose fault it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llmfit.parallel import group
from llmfit.parallel.launch import run_group

pytestmark = pytest.mark.slow  # torchrun alone imports for some seconds

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def ranks_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks' modules are found beside this file."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def gone(pids: list[int], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("code", "how"), [(3, "exit code 3"), (-signal.SIGKILL, "signal SIGKILL (out of memory?)")]
)
def test_a_rank_that_dies_ends_all_and_is_named(tmp_path: Path, code: int, how: str) -> None:
    """Its rank, its exit code or signal, the end of its output; the other one does not sleep on."""
    (tmp_path / "how.json").write_text(json.dumps({"1": code}))
    pids: list[int] = []

    def receive(rank: int, line: bytes) -> bool:
        pids.append(int(line))
        return False

    ended = run_group("ending_rank", 2, tmp_path, receive)
    assert ended is not None
    assert (ended.rank, ended.how, ended.said) == (1, how, "the matrix is singular")
    assert gone(pids)


def test_the_group_ends_when_nothing_more_is_wanted(tmp_path: Path) -> None:
    """Once both have told their process id, they are ended in their sleep."""
    (tmp_path / "how.json").write_text("{}")
    pids: list[int] = []

    def receive(rank: int, line: bytes) -> bool:
        pids.append(int(line))
        return len(pids) == 2

    assert run_group("ending_rank", 2, tmp_path, receive) is None
    assert len(pids) == 2 and gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends children with parents")
def test_a_killed_parent_leaves_no_rank(tmp_path: Path) -> None:
    """kill -9 of the process that started the group ends torchrun and both ranks."""
    (tmp_path / "how.json").write_text("{}")
    code = (
        "import sys, pathlib; from llmfit.parallel.launch import run_group;"
        "run_group('ending_rank', 2, pathlib.Path(sys.argv[1]),"
        " lambda rank, line: print(int(line), flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids: list[int] = []
    while len(pids) < 2:  # what torchrun passes on of the ranks' output has their number before it
        line = parent.stdout.readline()
        assert line
        if line.strip().isdigit():
            pids.append(int(line))
    pids += [child.pid for child in psutil.Process(parent.pid).children()]
    assert len(pids) == 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(pids)


def test_a_process_alone_is_a_group_of_one() -> None:
    """Outside torchrun a figure of all is one's own."""
    assert group.size() == 1 and group.of_all(7) == (7,)
