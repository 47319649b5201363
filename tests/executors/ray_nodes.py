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
        self._watch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RayNodes:
        self._start(
            "head",
            [
                "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false",
                f"--temp-dir={self._folder}",
            ],
        )  # fmt: skip
        with (
            (self._folder / "alive").open("wb") as alive,
            (self._folder / "said").open("wb") as said,
        ):
            self._watch = subprocess.Popen(
                [sys.executable, "-c", _WATCH, self.address],
                stdout=alive, stderr=said, env={**os.environ, **AUTH},
            )  # fmt: skip
        self._await_another_than(frozenset())
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._nodes)):
            self.kill(name)
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
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
        before = self._alive()
        self._start(
            name,
            [f"--address={self.address}", f"--num-cpus={cpus}",
             f"--resources={json.dumps(resources)}"],
            environment=environment,
            inside=inside,
        )  # fmt: skip
        self._await_another_than(before)

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

    def _alive(self) -> frozenset[str]:
        """The ids of the nodes that were in the cluster a moment ago."""
        lines = (self._folder / "alive").read_text().splitlines()
        return frozenset(lines[-1].split() if lines else ())

    def _await_another_than(self, before: frozenset[str]) -> None:
        """Wait until a node is in the cluster that was not."""
        deadline = time.monotonic() + _START_S
        while not self._alive() - before:
            for name, process in self._nodes.items():
                assert process.poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
            said = (self._folder / "said").read_text()[-1000:]
            assert time.monotonic() < deadline, f"no new node within {_START_S} s: {said}"
            time.sleep(0.1)


_WATCH = """
import sys, time, ray
while not ray.is_initialized():
    try:
        ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
    except ConnectionError as exc:  # the head is not up yet
        print(exc, file=sys.stderr, flush=True)
        time.sleep(0.5)
while True:
    print(*(node["NodeID"] for node in ray.nodes() if node["Alive"]), flush=True)
    time.sleep(0.1)
"""
"""Prints the ids of the nodes that are in the cluster, again and again."""
