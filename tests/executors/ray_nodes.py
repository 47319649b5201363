"""A real Ray cluster of several node processes on this machine, each of which can be killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_STORE_BYTES = 100_000_000
_START_S = 90
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""What this process and the nodes are let in with."""


class RayNodes:
    """A head without processors, and nodes; a context manager."""

    def __init__(self, *, python_path: Path) -> None:
        """``python_path`` is a folder of modules that the nodes are to know."""
        self.python_path = python_path
        # Ray's sockets lie in it, whose paths may have some 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> RayNodes:
        self._start(
            "head",
            [
                "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false",
                f"--temp-dir={self._folder}",
            ],
        )  # fmt: skip
        self._await(1)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._nodes)):
            self.kill(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(
        self,
        name: str,
        *,
        cpus: int = 2,
        kind: str | None = None,
        environment: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        """One more node; ``inside`` is a command that it is to be started by."""
        resources = {} if kind is None else {f"accelerator_type:{kind}": 1}
        self._start(
            name,
            [f"--address={self.address}", f"--num-cpus={cpus}",
             f"--resources={json.dumps(resources)}"],
            environment=environment,
            inside=inside,
        )  # fmt: skip
        self._await(len(self._nodes))

    def kill(self, name: str) -> None:
        """End a node at once, with everything that it runs."""
        process = self._nodes.pop(name)
        if process.poll() is None:
            mother = psutil.Process(process.pid)
            for each in (mother, *mother.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # it ended with its own parent
                    each.kill()
        process.wait()

    def log(self, name: str) -> str:
        """What a node's processes printed."""
        return (self._folder / f"{name}.log").read_text()

    def _start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        with (self._folder / f"{name}.log").open("wb") as log:
            self._nodes[name] = subprocess.Popen(
                [*inside, ray, "start", "--node-ip-address=127.0.0.1", "--block",
                 f"--object-store-memory={_STORE_BYTES}", *arguments],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={
                    **os.environ, **AUTH, "PYTHONPATH": str(self.python_path),
                    **(environment or {}),
                    "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0",
                },
            )  # fmt: skip

    def _await(self, count: int) -> None:
        """Wait until so many nodes are in the cluster."""
        deadline = time.monotonic() + _START_S
        said = ""
        while time.monotonic() < deadline:
            for name, process in self._nodes.items():
                assert process.poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
            told = subprocess.run(
                [sys.executable, "-c", _WAIT, self.address, str(count)],
                capture_output=True, text=True, env={**os.environ, **AUTH}, check=False,
            )  # fmt: skip
            if told.returncode == 0:
                return
            said = told.stderr[-1000:]
        raise AssertionError(f"no {count} nodes within {_START_S} s: {said}")


_WAIT = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
for _ in range(100):
    if sum(node["Alive"] for node in ray.nodes()) == int(sys.argv[2]):
        sys.exit(0)
    time.sleep(0.1)
sys.exit(1)
"""
