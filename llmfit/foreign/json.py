"""JSON from strangers in bounded memory: config.json, indexes of shards, tokenizers, headers.

    bytes ─► size ─► UTF-8 ─► number of values ─► object ─► depth, whole characters

Each bound is checked before what it bounds is made. NaN, Infinity and the last of equal keys are
taken, as transformers takes them from the same files. A link is followed, since a hub snapshot
is made of links and one in any other folder is its owner's; a pipe or device is never opened.
What is wrong is a ModelLoadError that names the file.
"""

from __future__ import annotations

import json
import re
import reprlib
import stat
from pathlib import Path
from typing import Any, BinaryIO

from llmfit.errors import ModelLoadError

LARGEST_CONFIG_BYTES = 16 * 2**20
"""Of a config and its like. Most have some kB; those that list every tensor's format, megabytes."""
LARGEST_TABLE_BYTES = 128 * 2**20
"""Of tokenizer.json and indexes of shards: four times the largest known, Gemma 3's 33 MB."""
MOST_VALUES = 10_000_000
"""Values of one file: below 1 GB in memory, where ``[[],[],`` would grow to twenty times its
bytes. Gemma 3's tokenizer.json has two and a half million."""
DEEPEST = 64
"""Objects and lists within one another. Tokenizers have ten; what walks them calls itself."""
_MOST_DIGITS = 64
"""Of a whole number, which then converts to a float. int(1e30) is usual for "no limit"."""
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""The escape of one half of a UTF-16 pair."""

JsonObject = dict[str, Any]


def read_json(file: Path, *, largest: int = LARGEST_CONFIG_BYTES) -> JsonObject:
    """The JSON object in a regular file of at most ``largest`` bytes.

    Raises ModelLoadError naming the file.
    """
    return parse_object(read_bytes(file, largest=largest), source=str(file))


def read_bytes(file: Path, *, largest: int) -> bytes:
    """The content of a regular file of at most ``largest`` bytes. Raises ModelLoadError."""
    try:
        with open_regular(file) as stream:
            data = stream.read(largest + 1)
    except OSError as exc:
        raise ModelLoadError(f"{file} cannot be read: {exc.strerror}.") from exc
    if len(data) > largest:
        raise ModelLoadError(
            f"{file} has more than {largest} bytes, which no file of its kind has.",
            hint="download it again",
        )
    return data


def open_regular(file: Path) -> BinaryIO:
    """The opened file. Raises ModelLoadError for a pipe, which would be waited for, or a device."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise ModelLoadError(f"{file} is no regular file.")
    return file.open("rb")


def parse_object(data: bytes, *, source: str) -> JsonObject:
    """The JSON object that ``data`` holds. Raises ModelLoadError naming ``source``."""
    values = sum(data.count(mark) for mark in (b"[", b"{", b",", b":"))
    if values > MOST_VALUES:
        raise ModelLoadError(f"{source} holds up to {values} values; {MOST_VALUES} are read.")
    try:
        content = json.loads(data.decode(), parse_int=_whole_number)
        if _HALF_CHARACTER.search(data):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise ModelLoadError(f"{source} holds half a character: {exc.reason}.") from exc
    except UnicodeDecodeError as exc:
        raise ModelLoadError(
            f"{source} is not UTF-8: {exc.reason} at byte {exc.start}.", hint="download it again"
        ) from exc
    except RecursionError as exc:
        raise _too_deep(source) from exc
    except ValueError as exc:
        raise ModelLoadError(f"{source} is not readable JSON: {exc}.") from exc
    if not isinstance(content, dict):
        raise ModelLoadError(f"{source} holds a {type(content).__name__}, not a JSON object.")
    _require_flat(content, source)
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _require_flat(content: JsonObject, source: str) -> None:
    """Raise ModelLoadError where objects and lists lie too deep within one another."""
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return
    raise _too_deep(source)


def _too_deep(source: str) -> ModelLoadError:
    return ModelLoadError(f"{source} is nested more than {DEEPEST} deep.")


def shortened(value: object, length: int = 60) -> str:
    """``value`` as an error shows it: a text or number in some ``length``, of a list the first."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = length
    return short.repr(value)
