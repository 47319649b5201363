"""What a process prints, kept within bounds: its beginning and its end, whatever comes between.

    stdout and stderr of the process ─► pipe ─► thread here, secrets hidden ─┬► first MB ─► file
                                                                             └► last MB ─► its end

Libraries print what they like, some without end. A file that they wrote to themselves would fill
the disk; here what lies between is read, counted and dropped, and the process is never held up.
No secret that this process knows reaches the disk.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from llmfit.redaction import known_secrets

KEPT_BYTES = 1_000_000
"""Of the beginning, and as much of the end. A row's usual output is below 100 kB."""
_PIECE = 1 << 16
_LOG_LINES = 3
_TAIL_BYTES = 4096


class Output:
    """The reading end of a process's stdout and stderr; a context manager.

    Give ``fileno()`` to one process and call ``given`` once it has it. A file that cannot be
    written is given up, the end of what was printed is there all the same.
    """

    def __init__(self, path: Path | None = None) -> None:
        """``path`` is the log file, None for none."""
        self.printed_bytes = 0
        """How much was printed so far."""
        self._path = path
        self._file: IO[bytes] | None = None
        self._room = KEPT_BYTES
        self._end = bytearray()
        self._hidden = known_secrets().stream()
        self._read_end, self._write_end = os.pipe()
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._read, daemon=True, name="output")

    def __enter__(self) -> Output:
        if self._path is not None:
            with suppress(OSError):  # a log that cannot be kept ends no row
                self._file = self._path.open("wb", buffering=0)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading and close the file."""
        self.finish()
        for each in (self._read_end, self._wake, self._waker):
            os.close(each)

    def fileno(self) -> int:
        """What the process writes to."""
        return self._write_end

    def given(self) -> None:
        """Close this process's own copy of ``fileno()``, so that its end is seen."""
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    @property
    def left_out_bytes(self) -> int:
        """How much of it the log does not hold, once it is finished."""
        return max(0, self.printed_bytes - 2 * KEPT_BYTES)

    def finish(self) -> None:
        """Read what has been printed until now, though something may still hold the other end."""
        self.given()
        if not self._thread.is_alive():
            return
        os.write(self._waker, b"x")
        self._thread.join()

    def tail(self) -> str:
        """The last lines that were printed, in one; ends the reading."""
        self.finish()
        lines = self._end[-_TAIL_BYTES:].decode(errors="replace").replace("\r", "\n").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])

    def _read(self) -> None:
        """The thread: take what comes until the other end is closed, or ``finish`` is called."""
        waiting = select.poll()
        waiting.register(self._read_end, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        while self._wake not in dict(waiting.poll()) and self._take():
            pass
        os.set_blocking(self._read_end, False)
        with suppress(BlockingIOError):  # nothing is left of what was printed before the end
            for _ in range(KEPT_BYTES // _PIECE):  # and one that prints without end is not awaited
                if not self._take():
                    break
        self._keep(self._hidden.flush())
        self._close_file()

    def _take(self) -> bool:
        """Read one piece; False at the end."""
        piece = os.read(self._read_end, _PIECE)
        self._keep(self._hidden.feed(piece))
        return bool(piece)

    def _keep(self, piece: bytes) -> None:
        self.printed_bytes += len(piece)
        self._end += piece
        if len(self._end) > 2 * KEPT_BYTES:
            del self._end[:-KEPT_BYTES]
        self._write(piece[: self._room])
        self._room -= min(self._room, len(piece))

    def _close_file(self) -> None:
        """Write what the file lacks of the end."""
        beyond = self.printed_bytes - KEPT_BYTES
        if beyond > 0:
            if self.left_out_bytes:
                said = f"\n[llmfit: {self.left_out_bytes} bytes are left out here]\n"
                self._write(said.encode())
            self._write(bytes(self._end[-min(beyond, KEPT_BYTES) :]))
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, piece: bytes) -> None:
        if self._file is None or not piece:
            return
        try:
            self._file.write(piece)
        except OSError:  # the disk is full: what is printed goes on being read
            self._file.close()
            self._file = None
