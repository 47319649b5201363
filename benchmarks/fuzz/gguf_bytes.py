"""A GGUF file taken apart and put together again, so that one value of it can be made wrong.

    bytes ─► version, values, tensors, data ─► changed ─► bytes

Only for whole files; what is wrong is written, never read. Source: the GGUF specification.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

UINT8, UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 2, 4, 5, 6, 7, 8, 9, 10
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT = 32


@dataclass(slots=True)
class Tensor:
    """What a header says of a tensor."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int


@dataclass(slots=True)
class GgufBytes:
    """A file in its parts."""

    values: dict[bytes, tuple[int, bytes]]
    """Type and raw bytes by key."""
    tensors: list[Tensor]
    data: bytes
    version: int = 3
    counts: tuple[int, int] | None = field(default=None)
    """Tensors and values as the header claims them; None: as many as there are."""

    def set(self, key: str, kind: int, raw: bytes) -> None:
        """Put a value in the place of another one, or behind all."""
        self.values[key.encode()] = (kind, raw)

    def set_number(self, key: str, number: int, kind: int = UINT32) -> None:
        """Put a whole number; it wraps around where its type does not hold it."""
        size = _BYTES[kind]
        self.set(key, kind, (number % 2 ** (8 * size)).to_bytes(size, "little"))

    def build(self) -> bytes:
        """The file."""
        tensors, values = self.counts or (len(self.tensors), len(self.values))
        head = [b"GGUF", struct.pack("<IQQ", self.version, tensors, values)]
        for key, (kind, raw) in self.values.items():
            head += [text(key), struct.pack("<I", kind), raw]
        for tensor in self.tensors:
            count = len(tensor.dims)
            head += [text(tensor.name), struct.pack(f"<I{count}Q", count, *tensor.dims)]
            head.append(struct.pack("<IQ", tensor.kind, tensor.offset))
        header = b"".join(head)
        return header + bytes(-len(header) % _ALIGNMENT) + self.data


def text(content: bytes) -> bytes:
    """A string as GGUF has it."""
    return struct.pack("<Q", len(content)) + content


def strings(items: list[bytes]) -> bytes:
    """The raw bytes of an array of strings."""
    return struct.pack("<IQ", STRING, len(items)) + b"".join(map(text, items))


def numbers(kind: int, form: str, items: list[float]) -> bytes:
    """The raw bytes of an array of numbers; ``form`` is struct's letter for one of them."""
    return struct.pack(f"<IQ{len(items)}{form}", kind, len(items), *items)


def parse(content: bytes) -> GgufBytes:
    """Take a whole file apart."""
    reader = _Reader(content)
    reader.take(4)
    version, tensors, values = reader.unpack("<IQQ")
    found = {}
    for _ in range(values):
        key = reader.text()
        (kind,) = reader.unpack("<I")
        begin = reader.at
        reader.skip(kind)
        found[key] = (kind, content[begin : reader.at])
    told = [reader.tensor() for _ in range(tensors)]
    begin = -(-reader.at // _ALIGNMENT) * _ALIGNMENT
    return GgufBytes(values=found, tensors=told, data=content[begin:], version=version)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self._content[self.at - count : self.at]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> bytes:
        return self.take(*self.unpack("<Q"))

    def skip(self, kind: int) -> None:
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            inner, count = self.unpack("<IQ")
            for _ in range(count):
                self.skip(inner)
        else:
            self.take(_BYTES[kind])

    def tensor(self) -> Tensor:
        name = self.text()
        (count,) = self.unpack("<I")
        dims = list(self.unpack(f"<{count}Q"))
        kind, offset = self.unpack("<IQ")
        return Tensor(name, dims, kind, offset)
