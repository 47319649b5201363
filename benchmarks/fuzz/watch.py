"""What holds a case to its limits in its own process: memory, time, and the files it opens."""

from __future__ import annotations

import logging
import os
import signal
import site
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

CASE_SECONDS = 5.0
"""Of the processor, more than any case takes; a file that takes longer could take for ever. What
waits and does not compute is for ``parent`` to end."""
CASE_BYTES = 2**30
"""Address space that a case may take beyond what its process has before it."""

_STARTS_SOMETHING = frozenset({
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
    "socket.getaddrinfo",
})  # fmt: skip
_SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/usr/", "/lib", "/etc/ld.so")
"""Where the interpreter and the C library look."""


class TooSlow(BaseException):
    """A case went on beyond its time. No Exception, so that nothing takes it for its own."""


class Watch:
    """Notes what a case opens outside its folder and the interpreter's own."""

    def __init__(self, folder: Path, *, also: tuple[Path, ...] = ()) -> None:
        repository = Path(__file__).resolve().parents[2]
        places = [folder, *also, repository / "llmfit", repository / "benchmarks"]
        # Where an installation in place keeps what it knows of itself.
        installed = tuple(
            f"{repository}{os.sep}{name}" for name in ("__editable__", "llmfit.egg-info")
        )
        places += [Path(sys.prefix), Path(sys.base_prefix), *map(Path, site.getsitepackages())]
        self._inside = (*(f"{place.resolve()}{os.sep}" for place in places), *installed)
        self._on = False
        self.outside: list[str] = []
        """What was opened or started elsewhere, by any case so far."""
        sys.addaudithook(self._heard)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hear what happens within. Raises TooSlow in it."""
        signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._on:
            return
        if event in _STARTS_SOMETHING:
            self.outside.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.normpath(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100
            if not path.startswith(self._inside + _SYSTEM):
                self.outside.append(f"open {path}")


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {CASE_SECONDS:g} s")


def limit_memory() -> None:
    """Let this process have ``CASE_BYTES`` more than it has."""
    import resource

    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    has = int(fields["VmSize"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (has + CASE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def quiet() -> None:
    """No warnings of libraries: each case would have its own."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
