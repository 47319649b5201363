"""A warm process from which workers are forked, so that a row costs its work and not its imports.

    parent ── socket ──► server: imports once, then for each task with three descriptors
                           ├─ forks a worker with them as stdin, log and channel
                           ├─◄ its pid, at once
                           └─◄ its exit code, when it has ended

The server imports, and does nothing else: no CUDA context (a fork could not use it), no thread of
PyTorch's (a fork would wait for it for ever), no weights. What a worker then holds beyond its
imports is its own, as in a process that was started anew. Only on Linux: Apple's libraries do not
survive a fork, and Windows has none.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import NoReturn, get_args

from llmfit.device.memory import library_pages, map_pages
from llmfit.runner.messages import Task

PRELOADED = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "scipy.stats",
)
SCORING = ("lm_eval.evaluator", "lm_eval.tasks", "llmfit.evaluate.score")
"""What most rows import, and what scoring adds, of those that are installed. bitsandbytes and
GPTQModel ask for the GPU or start threads when they are imported: their rows do that themselves."""


class ForkServer:
    """The parent's end; a context manager. Use it from one thread, for one worker at a time."""

    def __init__(self, environment: dict[str, str], *, scoring: bool) -> None:
        """``environment`` is that of the server and its workers; with ``scoring`` they score."""
        self._environment = environment
        self._modules = PRELOADED + (SCORING if scoring else ())
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @staticmethod
    def available() -> bool:
        """True where a process that imported PyTorch can be forked."""
        return sys.platform == "linux"

    def __enter__(self) -> ForkServer:
        """Start importing; does not wait for it."""
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = str(theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llmfit.runner.forkserver", descriptor, *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=self._environment,
            )
        self._socket = ours
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server; its worker ends by itself, as its stdin closes."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def fork(self, task: Task, stdin: int, log: int, channel: int) -> ForkedWorker:
        """A new worker with these descriptors. Raises OSError where the server has died."""
        assert self._socket is not None
        request = bytes([get_args(Task).index(task)])
        socket.send_fds(self._socket, [request], [stdin, log, channel])
        return ForkedWorker(self.number(), self)

    def number(self) -> int:
        """The next line from the server, which is a number. Raises OSError at its end."""
        assert self._socket is not None
        line = b""
        while not line.endswith(b"\n"):
            piece = self._socket.recv(1)
            if not piece:
                raise BrokenPipeError("the fork server has ended.")
            line += piece
        return int(line)


class ForkedWorker:
    """A forked worker, as much like a Popen as is needed."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def wait(self) -> int | None:
        """Wait for the worker's end; returns its exit code, negative for a signal.

        None where the server ended before it could tell.
        """
        if self._code is None:
            with suppress(OSError):
                self._code = self._server.number()
        return self._code


def main(descriptor: int, modules: Sequence[str]) -> None:
    """Import ``modules``, then fork at every request until the parent closes its end."""
    # torch.cuda.is_available() would open the driver, whose state no fork can use.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    gc.disable()  # next to nothing of what imports make is garbage, and looking takes a second
    for name in modules:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()  # nor need a worker's collector look at it, and copy its pages
    gc.enable()
    pages = library_pages()
    with socket.socket(fileno=descriptor) as parent:
        while True:
            request, descriptors, _, _ = socket.recv_fds(parent, 1, 3)
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                parent.close()
                map_pages(pages)  # or the libraries would count as the model's memory
                _work(get_args(Task)[request[0]], *descriptors)
            for each in descriptors:
                os.close(each)
            parent.sendall(b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            parent.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _work(task: Task, stdin: int, log: int, channel: int) -> NoReturn:
    """Be a worker, in a session of its own, to the end of the process."""
    from llmfit.runner import worker

    os.setsid()
    for source, target in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for each in {stdin, log} - {0, 1, 2}:
        os.close(each)
    worker.end(worker.main([str(channel), task]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
