"""llama.cpp's log, kept off the terminal.

llama.cpp writes to stderr from C unless it is given a callback. Ours remembers the last lines,
so that an error can say what llama.cpp said.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_WARNING, _ERROR, _CONTINUED = 3, 4, 5
"""Source: enum ggml_log_level."""
_LONGEST = 1_000


class LlamaLog:
    """The process-wide log of llama.cpp: its last complaints, and a listener for all lines."""

    def __init__(self) -> None:
        self._complaints: deque[tuple[int, str]] = deque(maxlen=20)
        self._level = 0
        self._listener: Callable[[str], None] | None = None
        self.callback: Any = None
        """What C calls; it holds no reference, so this one keeps the object alive."""

    def receive(self, level: int, text: bytes, _: Any) -> None:
        """One message; called from C, possibly on another thread."""
        line = text.decode("utf-8", "replace").strip()
        if level != _CONTINUED:
            self._level = level
        if line and self._level in (_WARNING, _ERROR):
            self._complaints.append((self._level, line))
        if self._listener is not None:
            self._listener(line)

    def complaints(self, lines: int = 3) -> str:
        """The last errors, or else warnings, joined; "no reason given" where there are none."""
        errors = [line for level, line in self._complaints if level == _ERROR]
        said = " | ".join((errors or [line for _, line in self._complaints])[-lines:])
        return said[-_LONGEST:] or "no reason given"  # it may repeat a name out of the file

    def forget(self) -> None:
        """Drop the complaints, so that the next error tells only of what comes after."""
        self._complaints.clear()

    @contextmanager
    def listening(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Hand every line to ``listener`` meanwhile."""
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None


@functools.cache
def llama_log() -> LlamaLog:
    """The log; the first call starts llama.cpp's backend and takes its output off stderr."""
    import ctypes

    import llama_cpp

    log = LlamaLog()
    log.callback = llama_cpp.llama_log_callback(log.receive)
    llama_cpp.llama_log_set(log.callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return log
