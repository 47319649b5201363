"""A server started and stopped: to see that it answers.

command, folder ─► process in a session of its own ─► asked until it answers ─► its address
end of the context, or an interrupt ─► it is killed with all that it started
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from llmfit.child import environment
from llmfit.errors import LlmfitError
from llmfit.runner.output import Output

STARTING_S = 600.0
"""How long a server may take to load its model. Source: 16 GB from a disk of 50 MB/s take 320 s."""
_POLL_S = 0.3
_ASKING_S = 10.0


@contextmanager
def started(
    command: Sequence[str], *, cwd: Path, host: str, port: int, limit_s: float = STARTING_S
) -> Iterator[str]:
    """A server that answers; its address.

    Raises LlmfitError, with the end of what it printed, where it does not.
    """
    import httpx

    base = f"http://{host}:{port}"
    deadline = time.monotonic() + limit_s
    with Output() as log:
        try:
            server = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(offline=True),
            )
        except OSError as exc:
            raise LlmfitError(f"cannot start {command[0]}: {exc.strerror}.") from exc
        finally:
            log.given()
        try:
            while True:
                with suppress(httpx.HTTPError):
                    if (
                        httpx.get(
                            f"{base}/v1/models", timeout=_ASKING_S, trust_env=False
                        ).status_code
                        < 500
                    ):
                        break
                if server.poll() is not None:
                    raise LlmfitError(f"{command[0]} ended with {server.returncode}: {log.tail()}")
                if time.monotonic() > deadline:
                    raise LlmfitError(
                        f"{command[0]} did not answer within {limit_s:g} s: {log.tail()}"
                    )
                time.sleep(_POLL_S)
            yield base
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on just now."""
    with closing(socket.socket()) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
