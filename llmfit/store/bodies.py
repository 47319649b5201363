"""A record as bytes, and back: its JSON, compressed."""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec

from llmfit.errors import StoreError
from llmfit.records import from_json

T = TypeVar("T")
_LARGEST_BYTES = 2**28
"""Of a record's JSON: more is no record, and is not unpacked."""


def packed(record: object) -> bytes:
    """The record's bytes."""
    return zlib.compress(msgspec.json.encode(record))


def unpacked(kind: type[T], body: bytes, *, source: str) -> T:
    """The record of ``packed`` bytes; raises StoreError naming ``source`` where they are none."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(body, _LARGEST_BYTES)
    except zlib.error as exc:
        raise StoreError(f"{source} is damaged: {exc}.") from exc
    if not unpacker.eof:
        raise StoreError(f"{source} is damaged: it is cut off, or larger than any record.")
    return from_json(kind, text, source=source)
