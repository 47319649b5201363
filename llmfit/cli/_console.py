"""What the verbs share at the terminal: width, colour, results on stdout, errors on stderr."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llmfit.errors import LlmfitError, StoreError

PIPE_WIDTH = 120
"""Columns where no terminal tells: wide enough for the whole table."""
_apart: TextIO | None = None
"""Stdout for results alone, while ``results_apart``."""


def tolerate_narrow_encodings() -> None:
    """Print what the terminal's encoding lacks (★, ±, –) as ``?`` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def results_apart() -> Iterator[None]:
    """Let only results reach stdout: what libraries print there joins stderr meanwhile.

    A library's word among JSON would make the whole unreadable.
    """
    global _apart
    before = sys.stdout
    before.flush()
    own = _is_standard(before)
    stream = _moved(before) if own else before
    _apart, sys.stdout = stream, sys.stderr
    try:
        yield
    finally:
        _apart, sys.stdout = None, before
        if own:
            if os.name == "posix":
                ctypes.CDLL(None).fflush(None)  # what C libraries hold back of theirs
            os.dup2(stream.fileno(), before.fileno())
            stream.close()


def _is_standard(stream: TextIO) -> bool:
    """True for the process's own stdout; not for one that a caller has put in its place."""
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


def _moved(stream: TextIO) -> TextIO:
    """A stream where stdout was, whose descriptor is stderr's from now on."""
    moved = os.fdopen(os.dup(1), "w", encoding=stream.encoding, errors="replace")
    os.dup2(2, 1)
    return moved


def results() -> TextIO:
    """Where results go: stdout."""
    return sys.stdout if _apart is None else _apart


def terminal_width() -> int:
    """Columns of the terminal: of COLUMNS, stdout, stderr (for a pager), or ``PIPE_WIDTH``."""
    told = os.environ.get("COLUMNS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            columns = os.get_terminal_size(stream.fileno() if stream else -1).columns
        except (OSError, ValueError):
            continue
        if columns > 0:
            return columns
    return PIPE_WIDTH


def is_terminal(stream: TextIO) -> bool:
    """True where the stream is a terminal that obeys control codes."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def wants_color(stream: TextIO) -> bool:
    """True for a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def quieten_libraries() -> None:
    """Keep the libraries' own warnings and bars off the terminal, in this process.

    Rows of a comparison write theirs to a log file; a verb that loads a model itself has none.
    """
    logging.disable(logging.WARNING)
    if not sys.warnoptions:  # python -W … asks for them
        warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def say(text: str) -> None:
    """A remark for people, on stderr; control codes in it are spelled out, secrets hidden.

    Where it cannot be written, as on a full disk, nobody is there to read it and work goes on.
    """
    from llmfit.redaction import known_secrets
    from llmfit.report._text import visible

    try:
        print(visible(known_secrets().hide(text), keep="\n"), file=sys.stderr, flush=True)
    except OSError:
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Let what is written to a stream that takes nothing any more go nowhere.

    The interpreter would fail on the same text again at its exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def complain(error: LlmfitError) -> None:
    """One error message on stderr, with the next thing to try on a line of its own."""
    from llmfit.report._text import plain

    say(f"llmfit: error: {error.message}")
    if error.hint is not None:
        say(f"Try: {plain(error.hint)}")


def emit(text: str) -> None:
    """Write a result to stdout; raises StoreError where that cannot be written."""
    try:
        results().write(text)
        results().flush()
    except BrokenPipeError:
        abandon(results())
        raise
    except OSError as exc:
        abandon(results())
        raise StoreError(f"cannot write the result to stdout: {exc.strerror}.") from exc


def write_file(path: Path, text: str) -> None:
    """Write a result to a file, whole or not at all; raises StoreError."""
    from llmfit.files import write_result

    try:
        write_result(path, text)
    except OSError as exc:
        raise StoreError(f"cannot write {path}: {exc.strerror}.", hint="another --out") from exc
