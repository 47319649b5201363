"""A warm process from which workers are forked, so that a row costs its work and not its imports.

    parent ── socket ──► server: imports once, then for each task with three descriptors
                           ├─ forks a worker with them as stdin, log and channel
                           ├─◄ its pid, at once
                           ├─ kills what the worker left running, in whichever session
                           └─◄ its exit code, when it has ended
    parent gone ──────────► kills the worker and ends

The server imports, and does nothing else: no CUDA context (a fork could not use it), no thread of
PyTorch's (a fork would wait for it for ever), no weights. What a worker then holds beyond its
imports is its own, as in a process that was started anew. Only on Linux: Apple's libraries do not
survive a fork, and Windows has none.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import NoReturn, get_args

from llmfit.child import die_with_parent
from llmfit.device.memory import library_pages, map_pages
from llmfit.device.processes import adopt_orphans, kill_children
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
FORK_LIMIT_S = 300
"""How long a fork may take, the imports before the first one included. Source: 5 s with files in
memory, a minute from a network's disk."""
_END_LIMIT_S = 10
_POLL_S = 0.1


class ForkServer:
    """The parent's end; a context manager. Use it from one thread, for one worker at a time."""

    def __init__(self, environment: dict[str, str], *, scoring: bool) -> None:
        """``environment`` is that of the server and its workers; with ``scoring`` they score."""
        self._environment = environment
        self._scoring = scoring
        self._modules = PRELOADED + (SCORING if scoring else ())
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._forked = False

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

    def serves(self, environment: dict[str, str], *, scoring: bool) -> bool:
        """True where it lives, and one made with these arguments would be the same."""
        alike = (environment, scoring) == (self._environment, self._scoring)
        return alike and self._process is not None and self._process.poll() is None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server, with its worker and what that one left running."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is None:
            return
        if self._forked:  # else it imports, and sees nothing
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_LIMIT_S)
        self._process.kill()
        self._process.wait()

    def fork(self, task: Task, stdin: int, log: int, channel: int) -> ForkedWorker:
        """A new worker with these descriptors.

        Raises OSError where the server has died, or does not answer, upon which it is ended.
        """
        if self._socket is None:
            raise BrokenPipeError("the fork server has ended.")
        request = bytes([get_args(Task).index(task)])
        try:
            socket.send_fds(self._socket, [request], [stdin, log, channel])
            if not self.answers(FORK_LIMIT_S):
                raise TimeoutError(f"the fork server did not answer within {FORK_LIMIT_S} s.")
            pid = self.number()
        except OSError:
            self.__exit__(None, None, None)
            raise
        self._forked = True
        return ForkedWorker(pid, self)

    def answers(self, limit_s: float) -> bool:
        """Wait for the server to say something, or to end; False where it does neither."""
        if self._socket is None:
            return True
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(1000 * limit_s))

    def number(self) -> int:
        """The next line from the server, which is a number. Raises OSError at its end."""
        if self._socket is None:
            raise BrokenPipeError("the fork server has ended.")
        line = b""
        while not line.endswith(b"\n"):
            piece = self._socket.recv(1)
            if not piece:
                raise BrokenPipeError("the fork server has ended.")
            line += piece
        return int(line)


class ForkServers:
    """The server of several comparisons in a row, which import once; a context manager.

    One at a time: another takes its place where workers are to have another environment, or score,
    or where it has died.
    """

    def __init__(self) -> None:
        self._server: ForkServer | None = None

    def __enter__(self) -> ForkServers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server."""
        if self._server is not None:
            self._server.__exit__(kind, value, trace)
            self._server = None

    def server(self, environment: dict[str, str], *, scoring: bool) -> ForkServer:
        """The server whose workers have this environment; it may still be importing."""
        if self._server is None or not self._server.serves(environment, scoring=scoring):
            self.__exit__(None, None, None)
            self._server = ForkServer(environment, scoring=scoring).__enter__()
        return self._server


class ForkedWorker:
    """A forked worker, as much like a Popen as is needed."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Its exit code, negative for a signal; None while it runs, and where it is not known."""
        self._server = server
        self._told = True

    def ended(self) -> bool:
        """True where it runs no more; its exit code is known then, unless the server has died."""
        if self._told and self.returncode is None and self._server.answers(0):
            self._hear()
        return self.returncode is not None or not (self._told or _exists(self.pid))

    def wait(self, limit_s: float) -> bool:
        """Wait for its end; False where it does not come."""
        deadline = time.monotonic() + limit_s
        if self._told and self.returncode is None and self._server.answers(limit_s):
            self._hear()
        while not (ended := self.ended()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)  # the server has died: nobody else tells
        return ended

    def _hear(self) -> None:
        try:
            self.returncode = self._server.number()
        except OSError:
            self._told = False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main(descriptor: int, modules: Sequence[str]) -> None:
    """Import ``modules``, then fork at every request until the parent closes its end."""
    die_with_parent()
    adopt_orphans()
    # torch.cuda.is_available() would open the driver, whose state no fork can use.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    gc.disable()  # next to nothing of what imports make is garbage, and looking takes a second
    for index, name in enumerate(modules):
        with suppress(ImportError):
            import_module(name)
        if _gpu_is_open():
            _start_again(descriptor, modules[:index])
    gc.freeze()  # nor need a worker's collector look at it, and copy its pages
    gc.enable()
    pages = library_pages()
    die_with_parent(False)  # from here on the socket tells, and a worker is not to be left behind
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
            code = _outlived(pid, parent)
            kill_children()
            if code is None:
                return
            parent.sendall(b"%d\n" % code)


def _start_again(descriptor: int, modules: Sequence[str]) -> NoReturn:
    """Be the same process anew, which imports no more than ``modules``.

    Where nothing is left of them it ends, and the parent starts each worker itself.
    """
    if not modules:
        os._exit(0)
    command = [sys.executable, "-m", "llmfit.runner.forkserver", str(descriptor), *modules]
    os.execv(sys.executable, command)


def _gpu_is_open() -> bool:
    """True where an import has opened the GPU's driver, as torchao's does: no fork could use it."""
    asks = getattr(getattr(sys.modules.get("torch"), "_C", None), "_cuda_isInBadFork", None)
    if asks is None:  # a build for CPUs
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(int(asks()))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def _outlived(pid: int, parent: socket.socket) -> int | None:
    """Wait for the worker's end; its exit code, or None where the parent ended before it."""
    waiting = select.poll()
    waiting.register(parent, select.POLLIN)
    watched = _watch(pid, waiting)
    try:
        while True:
            ready = dict(waiting.poll(None if watched is not None else 1000 * _POLL_S))
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if parent.fileno() in ready:  # it asks for nothing meanwhile: this is its end
                return None
    finally:
        if watched is not None:
            os.close(watched)


def _watch(pid: int, waiting: select.poll) -> int | None:
    """A descriptor that is ready when the process has ended; None on a kernel before Linux 5.3."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    waiting.register(descriptor, select.POLLIN)
    return descriptor


def _work(task: Task, stdin: int, log: int, channel: int) -> NoReturn:
    """Be a worker, in a session of its own, to the end of the process."""
    from llmfit.runner import worker

    os.setsid()
    for source, target in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for each in {stdin, log} - {0, 1, 2}:
        os.close(each)
    try:
        code = worker.main([str(channel), task])
    except BaseException:  # noqa: BLE001 - the process ends by it, and says so last of all
        traceback.print_exc()
        code = 1
    worker.end(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
    os._exit(0)  # what it imported would take its time to say good-bye
