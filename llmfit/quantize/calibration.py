"""Calibration text for GPTQ and AWQ, as token sequences."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from llmfit.errors import UsageError
from llmfit.files import expanded
from llmfit.models import data_path
from llmfit.texts import read_text

SEPARATOR = "<|endoftext|>"
"""On a line of its own it parts two documents."""
MIN_TOKENS = 1024
"""Fewer tokens than this say too little about a layer's inputs to weigh its columns."""

# Long documents are tokenised in pieces, so that of a large file only what is used is read
# through the tokenizer.
_PIECE = re.compile(r".{1,20000}(?:\s|$)|.{1,20000}", re.DOTALL)
_HINT = "--calibration FILE with a UTF-8 text file of some pages"


class Encoder(Protocol):
    """The one method of a tokenizer that is needed here."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``special`` the model's BOS is added."""
        ...


def calibration_file(file: str | None) -> Path:
    """The file that ``file`` names; None is the embedded text. Raises UsageError if absent."""
    path = data_path("calibration.txt") if file is None else expanded(file)
    if not path.is_file():
        raise UsageError(f"no calibration file {str(path)!r}.", hint=_HINT)
    return path


def load_calibration(
    file: str | None, tokenizer: Encoder, *, samples: int = 128, tokens: int = 512, seed: int
) -> list[list[int]]:
    """Up to ``samples`` sequences of ``tokens`` token ids from a text file (None: the embedded).

    Documents are drawn in an order that ``seed`` fixes and follow one another in a sequence.
    A text that is too short for ``samples`` gives fewer. Raises UsageError for a file that is
    missing, empty, not UTF-8, or of fewer than ``MIN_TOKENS`` tokens.
    """
    path = calibration_file(file)
    stream: list[int] = []
    for piece in _pieces(_read(path), seed):
        stream += tokenizer.encode(piece)
        if len(stream) >= samples * tokens:
            break
    if len(stream) < min(MIN_TOKENS, samples * tokens):
        raise UsageError(
            f"{path} has {len(stream)} tokens; calibration needs {MIN_TOKENS} at least.",
            hint=_HINT,
        )
    whole = min(samples, len(stream) // tokens)
    return [stream[i * tokens : (i + 1) * tokens] for i in range(whole)]


def _read(path: Path) -> str:
    try:
        text = read_text(path)
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {exc.start}: {exc.reason}).", hint=_HINT
        ) from exc
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.", hint=_HINT) from exc
    if not text.strip():
        raise UsageError(f"{path} is empty.", hint=_HINT)
    return text


def _pieces(text: str, seed: int) -> Iterator[str]:
    documents = re.split(rf"^{re.escape(SEPARATOR)}$", text, flags=re.MULTILINE)
    pieces = [piece for document in documents for piece in _PIECE.findall(document.strip())]
    random.Random(seed).shuffle(pieces)
    return iter(pieces)
