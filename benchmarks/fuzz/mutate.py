"""Bytes of a whole file made wrong in a few places, by a seed."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence

_INTEGERS = (0, 1, 7, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_VALUE = re.compile(rb'[:,=\[]\s*("(?:[^"\\]|\\.)*"|-?[\d.eE+]+|true|false|null)(?=\s*[,\]}\n])')
_VALUES = (
    b"null", b"true", b"false", b"NaN", b"-Infinity", b"0", b"-1", b"1", b"2", b"0.5", b"1e300",
    b"1e999", b"2147483647", b"9223372036854775808", b"1000000000000000", b"9" * 64, b'""', b'"x"',
    b'"32000"', b'"../x"', b'"\\ud83d"', b'"\\u0000"', b"[]", b"[0]", b"[[]]", b'["x"]', b"{}",
    b'{"type":"BPE"}',
)  # fmt: skip
_WORDS = (
    b"null", b"true", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"1e-999", b"2147483648",
    b"9223372036854775808", b"1000000000000000", b"9" * 65, b"9" * 5000, b'"32000"', b'""', b"[]",
    b"{}", b"[" * 100, b"[" * 200_000, b'{"a":' * 100, b"\\ud800", b"\\u0000", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\x00", b"../", b"/etc/passwd", b",", b":", b'"', b"\\", b"\n", b"]", b"}",
)  # fmt: skip


def mutated(seeds: Sequence[bytes], draw: random.Random, *, hot: int | None) -> bytes:
    """One of ``seeds`` with one to six changes, all within its first ``hot`` bytes or anywhere."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        if not data:
            break
        reach = len(data) if hot is None else min(hot, len(data))
        _CHANGES[draw.randrange(len(_CHANGES))](data, draw.randrange(reach), draw, seeds)
    return bytes(data)


def _bit(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    data[at] ^= 1 << draw.randrange(8)


def _byte(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    data[at] = draw.randrange(256)


def _integer(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    width = draw.choice(tuple(_WIDTHS))
    number = draw.choice(_INTEGERS) % 2 ** (8 * width)
    data[at : at + width] = struct.pack(_WIDTHS[width], number)


def _cut(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    del data[at : at + draw.choice((1, 2, 8, 40, 1000))]


def _end(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    del data[at + 1 :]


def _double(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    data[at:at] = data[at : at + draw.choice((1, 8, 40, 400))]


def _word(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    data[at:at] = draw.choice(_WORDS)


def _number(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    """The next number in a text becomes another value."""
    found = _NUMBER.search(data, at, at + 4096)
    if found is not None:
        data[found.start() : found.end()] = draw.choice(_WORDS)


def _splice(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    other = draw.choice(seeds)
    begin = draw.randrange(max(1, len(other)))
    length = draw.choice((8, 64, 512))
    data[at : at + length] = other[begin : begin + length]


def _value(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    """The next value in a text becomes another one, so that most often the form holds."""
    found = _VALUE.search(data, at, at + 4096)
    if found is not None:
        data[found.start(1) : found.end(1)] = draw.choice(_VALUES)


_CHANGES = (
    _bit, _byte, _integer, _cut, _end, _double, _word, _number, _splice,
    _value, _value, _value, _value, _value,
)  # fmt: skip
