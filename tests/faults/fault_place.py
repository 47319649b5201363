"""A place of its own for runs of the real command line, and what must hold there afterwards."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from faulty_backend import install, leave_out_heavy_packages

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""What takes a second on a quiet machine."""
_MARK = "LLMFIT_TEST_PLACE"


class Place:
    """Folders of runs, store, cache and temporary files; every process started here is marked.

    It is without transformers and what scores, whose import takes most of a short comparison.
    """

    def __init__(self, folder: Path, *, scores: bool = False) -> None:
        """With ``scores`` nothing is left out."""
        self.folder = folder
        self.runs = folder / "runs"
        self.cache = folder / "cache"
        self.temporary = folder / "tmp"
        self.marks = folder / "marks"
        for each in (self.temporary, self.marks, folder / "home"):
            each.mkdir(parents=True)
        plugin = install(folder / "plugin")
        if not scores:
            leave_out_heavy_packages(plugin)
        self._mark = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            _MARK: self._mark,
            "PYTHONPATH": os.pathsep.join([str(plugin), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.temporary),
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / "cache"),
            "XDG_DATA_HOME": str(folder / "home" / "data"),
            "LLMFIT_STORE": str(folder / "store.db"),
            "FAULTY_MARKS": str(self.marks),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }

    def start(
        self,
        *words: str,
        before: Sequence[str] = (),
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        **env: str,
    ) -> subprocess.Popen[str]:
        """Start ``llmfit`` with these words, in a process group of its own as a shell does.

        ``before`` is a program that is to start it.
        """
        return subprocess.Popen(
            [*before, sys.executable, "-m", "llmfit", *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**self.environment, **env},
            cwd=self.folder,
            process_group=0,
            preexec_fn=heed_hangup,
        )

    def compare(self, *rows: str, **options: str) -> subprocess.Popen[str]:
        """Start a comparison of the embedded model in these rows: short, by default not scored."""
        return self.start(*self.words(*rows, **options))

    def words(self, *rows: str, **options: str) -> list[str]:
        """Its command line."""
        words = ["compare", "--backends", ",".join(rows), "--warmup", "0", "--repeats", "5"]
        options = {
            "prompt_tokens": "8", "new_tokens": "4", "threads": "1", "runs_dir": str(self.runs),
            "cache_dir": str(self.cache), **options,
        }  # fmt: skip
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", value]
        return words if "tasks" in options else [*words, "--no-eval"]

    def reached(self, name: str, process: subprocess.Popen[str]) -> None:
        """Wait until a row has left its mark there."""
        wait_until(lambda: (self.marks / name).exists() or process.poll() is not None)
        assert (self.marks / name).exists(), process.communicate()

    def let_go(self, row: str | None = None) -> None:
        """A row that waits goes on, and does not wait any more; without a name all of them."""
        (self.marks / ("go" if row is None else f"{row}.go")).touch()

    def workers(self, row: str) -> list[int]:
        """Process ids of the workers that have begun this row, in any run."""
        return [int(mark.suffixes[-2][1:]) for mark in self.marks.glob(f"{row}.*.pid")]

    def processes(self) -> list[psutil.Process]:
        """All that was started here and is running, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_clean(self) -> None:
        """No process, no temporary file, nothing half-made in the folders of runs and cache."""
        wait_until(lambda: not self.processes(), 10)
        assert not self.processes(), [p.cmdline() for p in self.processes()]
        left = {path.name for path in self.temporary.iterdir()}
        assert left <= {f"torchinductor_{getpass.getuser()}"}, left  # torch's own cache
        half = [p for folder in (self.runs, self.cache) for p in folder.rglob(".*")]
        assert {p.name for p in half} <= {".locks", ".hashes.json"}, half

    def stored(self) -> list[dict[str, Any]]:
        """Every run that ended or was interrupted, as its folder has it, by the folder's name."""
        return [json.loads(p.read_text()) for p in sorted(self.runs.glob("*/comparison.json"))]


def ended(process: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that is to end by itself now."""
    try:
        out, err = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def heed_hangup() -> None:
    """In a child that is to come: SIGHUP ends it, though nohup had this process ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait until ``holds``, or for so long; what holds then is the caller's to assert."""
    deadline = time.monotonic() + patience_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
