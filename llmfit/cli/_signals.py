"""Ctrl-C, a kill and a terminal that is closed: one way to stop, which clears up.

SIGINT, SIGTERM, SIGHUP ─► Interrupt, once ─► what runs is stopped, what is finished is kept
                                                           └─► exit code 128 + the signal's
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from types import FrameType, TracebackType
from typing import Any

from llmfit.cli._console import results

INTERRUPTED = 130
"""What a verb returns that was interrupted and has said so: 128 + SIGINT, as shells have it."""
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_PATIENCE_S = 10
"""How long clearing up is left alone; it takes a second or two."""


_FINGERS_S = 1.0
"""Signals so soon after one are the same wish, from impatient fingers."""


class Interrupt(KeyboardInterrupt):
    """A signal that asks this process to end."""


class Interrupts:
    """Turns signals into one ``Interrupt``; a context manager for the main thread.

    Those that follow do not disturb the clearing up, a terminal sends as many as keys are pressed;
    after ``_PATIENCE_S`` one ends the process at once. Where a library swallowed the first, the
    next one counts. What was ignored from the start, as by nohup, stays so.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._raised: weakref.ref[Interrupt] | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):
                self._before[number] = before
                signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back what was there; in a process that ends for a signal, ignore the next ones."""
        for number, before in self._before.items():
            signal.signal(number, before if self._number is None else signal.SIG_IGN)

    def exit_code(self, code: int = INTERRUPTED) -> int:
        """``code``, or of an interruption the code that tells by which signal."""
        if code != INTERRUPTED or self._number is None:
            return code
        return 128 + self._number

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminals()
        under_way = self._raised is not None and self._raised() is not None
        since = time.monotonic() - self._since
        if under_way and since > _PATIENCE_S:
            os._exit(self.exit_code())
        if under_way or (self._raised is not None and since < _FINGERS_S):
            return
        raised = Interrupt(signal.Signals(number).name)
        self._raised, self._since = weakref.ref(raised), time.monotonic()
        try:
            raise raised
        finally:
            del raised  # its traceback holds this frame: it would keep itself alive

    def _leave_terminals(self) -> None:
        """Let what is still written to a terminal that is gone go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        if 1 in self._terminals:
            os.dup2(nowhere, results().fileno())
        os.close(nowhere)


def open_standard_streams() -> None:
    """Give a process that was started with a standard stream closed one that can be written to.

    Else the first file that it opens would take the stream's number. Results cannot be written
    there: stdout is opened for reading, which makes an error of it. Remarks go nowhere.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(_null(0, os.O_RDONLY), encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = os.fdopen(_null(1, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(_null(2, os.O_WRONLY), "w", encoding="utf-8")


def _null(descriptor: int, flags: int) -> int:
    """The null device as ``descriptor``, which children inherit."""
    opened = os.open(os.devnull, flags)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    os.set_inheritable(descriptor, True)
    return descriptor
