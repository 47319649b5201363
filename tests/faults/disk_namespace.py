"""A process in a mount namespace of its own, where small disks can be mounted and nobody sees them.

As root a mount namespace is enough; for others it takes a user namespace too, where the system
allows one. Everything that was mounted is gone with the process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_ALONE = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]


def why_not() -> str | None:
    """Why disks cannot be mounted here; None where they can."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare and nsenter are not installed"
    tried = subprocess.run(
        ["unshare", *_ALONE, "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return None if tried.returncode == 0 else "mounting takes root or a user namespace"


class Namespace:
    """``disk_scenarios.py`` in a namespace of its own; a context manager."""

    def __init__(self, root: Path, model: Path) -> None:
        """``root`` is the folder that disks are mounted in, ``model`` what is compared."""
        self._root = root
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISK_MODEL": str(model)}

    def __enter__(self) -> Namespace:
        reason = why_not()
        if reason is not None:
            pytest.skip(reason)
        self._process = subprocess.Popen(
            ["unshare", *_ALONE, sys.executable, str(HERE / "disk_scenarios.py"), str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def call(self, scenario: str, **given: Any) -> Any:
        """Run a scenario and return its facts."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": scenario, "with": given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{scenario} ended its process"
        return json.loads(line)

    def inside(self, *command: str) -> list[str]:
        """The command line that runs ``command`` among the same disks."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        among = ["nsenter", "--target", str(self._process.pid), *user, "--mount"]
        return [*among, "env", f"PYTHONPATH={ROOT}", *command]
