"""What libraries raise on a stranger's files, as our own error: there is no end to its kinds."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from llmfit.errors import LlmfitError, ModelLoadError
from llmfit.foreign.code import raise_if_code_was_refused

_LONGEST = 1_000
"""Characters of a library's error; some list every tensor of a model."""


class LibraryErrors:
    """A context in which a library reads files of a model, or what it has made of them.

    What it raises becomes an error of ``kind`` with ``what``, ``hint`` and its own words:
    transformers on a damaged config raises any of Python's errors, tokenizers a bare Exception,
    and Rust in either a panic, which pyo3 raises past every ``except Exception``. Where a
    ``folder`` is named, a refusal to run its code is told as such. Our own errors, Ctrl-C and
    exits pass.
    """

    def __init__(
        self,
        what: str,
        *,
        folder: str | None = None,
        hint: str | None = None,
        kind: type[ModelLoadError] = ModelLoadError,
    ) -> None:
        self._what, self._folder, self._hint, self._kind = what, folder, hint, kind

    def __enter__(self) -> None:
        """Nothing to be made."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise ModelLoadError in place of a library's error."""
        if value is None or isinstance(value, LlmfitError):
            return
        if isinstance(value, Exception):
            if self._folder is not None:
                raise_if_code_was_refused(Path(self._folder), value)
        elif not _is_panic(value):
            return
        said = f"{type(value).__name__}: {value}"[:_LONGEST]
        raise self._kind(f"{self._what}: {said}", hint=self._hint) from value


def _is_panic(error: BaseException) -> bool:
    """True for a panic of Rust; each library built with pyo3 has a class of its own for it."""
    kind = type(error)
    return (kind.__module__, kind.__name__) == ("pyo3_runtime", "PanicException")
