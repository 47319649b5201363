"""What the verbs share at the terminal: width, colour, results on stdout, errors on stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

from llmfit.errors import LlmfitError, StoreError

PIPE_WIDTH = 120
"""Columns where no terminal tells: wide enough for the whole table."""


def tolerate_narrow_encodings() -> None:
    """Print what the terminal's encoding lacks (★, ±, –) as ``?`` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


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
    """A remark for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def complain(error: LlmfitError) -> None:
    """One error message on stderr, with the next thing to try on a line of its own."""
    from llmfit.report._text import visible

    message = visible(error.message, keep="\n")
    say(f"llmfit: error: {message}")
    if error.hint is not None:
        say(f"Try: {visible(error.hint)}")


def emit(text: str) -> None:
    """Write a result to stdout; raises StoreError where that cannot be written."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        # The interpreter would fail on the same text again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StoreError(f"cannot write the result to stdout: {exc.strerror}.") from exc


def write_file(path: Path, text: str) -> None:
    """Write a result to a file, whole or not at all; raises StoreError."""
    from llmfit.files import write_atomically

    try:
        if path.exists() and not path.is_file():  # a pipe or device cannot be replaced
            path.write_text(text, encoding="utf-8")
        else:
            write_atomically(path.resolve(), text)
    except OSError as exc:
        raise StoreError(f"cannot write {path}: {exc.strerror}.", hint="another --out") from exc
