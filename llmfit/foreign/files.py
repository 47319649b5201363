"""Files from strangers, looked at before any library opens them: headers alone, in bounded memory.

    *.safetensors ─► header's size, types, places of all tensors ─► shapes
    *.index.json  ─► names of files in the same folder
    *.json        ─► what libraries read themselves: configs, the tokenizer's files
    *.gguf        ─► counts, strings, types, places of all tensors

Nothing is allocated that the file's own size does not cover, and nothing outside is opened. What
is wrong is a ModelLoadError that names the file and what it claims.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import (
    LARGEST_TABLE_BYTES,
    MOST_VALUES,
    open_regular,
    parse_object,
    read_json,
    shortened,
)

LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header at most; the library's own bound."""
_SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of a value. Source: the safetensors crate's ``Dtype``."""
_MOST_DIMENSIONS = 8
_MOST_TENSORS = 10_000_000

_CONFIGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
_SETTINGS = "tokenizer_config.json"
_MADE_TOKENS = frozenset({"extra_ids", "_extra_ids", "offset", "num_madeup_words"})
"""Keys of T5, Pegasus and XGLM. Source: transformers 5.23, their tokenizers."""
_MOST_MADE_TOKENS = 2**16
_TABLES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_ADAPTER = "adapter_config.json"

Shapes = dict[str, tuple[int, ...]]


def check_configs(folder: Path) -> None:
    """Raise ModelLoadError for a damaged config: libraries read them without any bound."""
    for name in _CONFIGS:
        if (folder / name).exists():
            read_json(folder / name)


def check_tokenizer(folder: Path) -> None:
    """As ``check_configs``, and for the tokenizer's own files.

    Of some numbers in its settings transformers makes as many tokens, a text for each.
    """
    check_configs(folder)
    settings = folder / _SETTINGS
    for key, value in read_json(settings).items() if settings.exists() else ():
        if type(value) is int and key in _MADE_TOKENS and value > _MOST_MADE_TOKENS:
            raise ModelLoadError(
                f"{settings} has {key} = {value}, a number up to {_MOST_MADE_TOKENS} is needed."
            )
    for name in _TABLES:
        if (folder / name).exists():
            read_json(folder / name, largest=LARGEST_TABLE_BYTES)


def require_no_adapter(folder: Path) -> None:
    """Raise ModelLoadError where an adapter lies beside a model.

    transformers puts it on the model unasked, reads it as a pickle where it is one, and imports
    modules that its config names; llama.cpp's rows would be of the model without it.
    """
    if (folder / _ADAPTER).exists():
        raise ModelLoadError(
            f"{folder} holds an adapter beside the model ({_ADAPTER}).",
            hint="the model with its adapter merged, or the folder without its files",
        )


def safetensors_shapes(file: Path) -> Shapes:
    """Name and shape of every tensor of a safetensors file, all of whose places were checked.

    Raises ModelLoadError.
    """
    try:
        size = file.stat().st_size
        with open_regular(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size - 8, LARGEST_HEADER):
                raise ModelLoadError(
                    f"{file} is damaged: its header claims {length} bytes, the file has {size}."
                )
            header = parse_object(stream.read(length), source=f"the header of {file}")
    except OSError as exc:
        raise ModelLoadError(f"{file} cannot be read: {exc.strerror}.") from exc
    header.pop("__metadata__", None)
    data_bytes = size - 8 - length
    shapes, places = {}, []
    for name, entry in header.items():
        shapes[name], place = _tensor(file, name, entry, data_bytes)
        places.append(place)
    places.sort()
    for (_, end), (begin, _) in pairwise(places):
        if begin < end:
            raise ModelLoadError(f"{file} is damaged: two of its tensors overlap at byte {begin}.")
    return shapes


def _tensor(
    file: Path, name: str, entry: object, data_bytes: int
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """A tensor's shape and place, which have to fit each other and the file."""
    if not isinstance(entry, dict):
        raise ModelLoadError(f"{file} is damaged: its tensor {shortened(name)} is no object.")
    shape, place = _whole(entry.get("shape")), _whole(entry.get("data_offsets"))
    bits = _SAFETENSORS_BITS.get(str(entry.get("dtype")))
    if shape is None or place is None or len(place) != 2 or bits is None:
        raise ModelLoadError(
            f"{file} is damaged: its tensor {shortened(name)} has dtype "
            f"{shortened(entry.get('dtype'))}, shape {shortened(entry.get('shape'))} and "
            f"data_offsets {shortened(entry.get('data_offsets'))}."
        )
    begin, end = place
    if not begin <= end <= data_bytes or 8 * (end - begin) != math.prod(shape) * bits:
        raise ModelLoadError(
            f"{file} is damaged: its tensor {shortened(name)} of shape {shortened(list(shape))} "
            f"claims bytes {begin} to {end} of {data_bytes}."
        )
    return shape, (begin, end)


def _whole(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers that are not negative; None for anything else."""
    if not isinstance(value, list) or len(value) > 64:
        return None
    if any(type(n) is not int or not 0 <= n < 2**63 for n in value):
        return None
    return tuple(value)


def check_index(file: Path, index: Mapping[str, Any], *, ending: str = ".safetensors") -> None:
    """Raise ModelLoadError where an index names anything but files beside it with that ``ending``.

    A shard of another kind would be read as a pickle.
    """
    shards = index.get("weight_map")
    names = shards.values() if isinstance(shards, dict) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelLoadError(f"{file} is damaged: it has no weight_map of file names.")
    for name in set(names):
        said = f"{file} names the shard {shortened(name)}"
        inside = name not in ("", ".", "..") and "\0" not in name and len(name) < 256
        if not inside or any(kind(name).name != name for kind in (PurePosixPath, PureWindowsPath)):
            raise ModelLoadError(f"{said}, which is not a file of its own folder.")
        if not name.endswith(ending):
            raise ModelLoadError(f"{said}, which is no {ending} file.")
        if not (file.parent / name).is_file():
            raise ModelLoadError(f"{said}, which is not there.", hint="download it again")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors that a model's weights are in, sorted: those that transformers would read.

    That is what an index names, else ``model.safetensors``, else all there are: Mistral's models
    have their weights once more, under other names, in ``consolidated.safetensors``. Raises
    ModelLoadError for an index that names files elsewhere, or that are not there.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    shards: set[str] = set()
    for index in indices:
        content = read_json(index, largest=LARGEST_TABLE_BYTES)
        check_index(index, content)
        shards |= set(content["weight_map"].values())
    if indices:
        return tuple(folder / shard for shard in sorted(shards))
    whole = folder / "model.safetensors"
    return (whole,) if whole.is_file() else tuple(sorted(folder.glob("*.safetensors")))


# ---------------------------------------------------------------- GGUF

_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value by its type. Source: the GGUF specification."""
_STRING, _ARRAY = 8, 9
_DEEPEST_ARRAY = 4
_MOST_KEYS = 65_536
_VERSIONS = (2, 3)
_ALIGNMENT_KEY, _UINT32 = b"general.alignment", 4
_PARTS_KEY, _UINT16 = b"split.count", 2
_PART = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")
"""How llama.cpp names the first of several files. Source: llama.cpp, llama_split_path."""


class _Gguf:
    """A GGUF header that is read from the front, never beyond the file's end."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._size = file.stat().st_size
        self._items = 0
        self.parts = 1
        """Files that the model is split into."""

    def check(self) -> None:
        """Read all of it. Raises ModelLoadError."""
        if self._take(4) != b"GGUF":
            raise ModelLoadError(f"{self._file} is not a GGUF file.")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise self._damaged(f"it is of version {version}, known are {_VERSIONS}")
        tensors, values = self._number("<Q"), self._number("<Q")
        # Each takes some bytes at least, so neither count can exceed the file.
        within = tensors <= _MOST_TENSORS and values <= _MOST_KEYS
        if not within or tensors * 24 + values * 13 > self._size:
            raise self._damaged(f"it claims {tensors} tensors and {values} values")
        alignment = 32
        for _ in range(values):
            key = self._text()
            kind = self._number("<I")
            if key == _ALIGNMENT_KEY and kind == _UINT32:
                alignment = self._number("<I")
            elif key == _PARTS_KEY and kind == _UINT16:
                self.parts = self._number("<H")
            else:
                self._skip_value(kind)
        if not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise self._damaged(f"it claims an alignment of {alignment} bytes")
        self._check_tensors(tensors, alignment)

    def _check_tensors(self, count: int, alignment: int) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        found: list[tuple[str, int, int]] = []
        for _ in range(count):
            name = shortened(self._text().decode(errors="replace"))
            dimensions = self._number("<I")
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise self._damaged(f"its tensor {name} claims {dimensions} dimensions")
            shape = [self._number("<Q") for _ in range(dimensions)]
            kind, offset = self._number("<I"), self._number("<Q")
            try:
                block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (KeyError, ValueError) as exc:
                raise self._damaged(f"its tensor {name} is of the unknown type {kind}") from exc
            values = math.prod(shape)
            if not 0 < values < 2**63 or shape[0] % block or offset % alignment:
                raise self._damaged(f"its tensor {name} claims the shape {shape} at {offset}")
            found.append((name, offset, values // block * block_bytes))
        begin = -(-self._stream.tell() // alignment) * alignment
        for name, offset, size in found:
            if begin + offset + size > self._size:
                raise self._damaged(
                    f"its tensor {name} claims {size} bytes at {offset}, beyond the file's end"
                )

    def _skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _VALUE_BYTES:
            self._skip(_VALUE_BYTES[kind])
        elif kind == _STRING:
            self._skip(self._number("<Q"))
        elif kind == _ARRAY and depth < _DEEPEST_ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _VALUE_BYTES:
                self._skip(count * _VALUE_BYTES[inner])
                return
            self._items += count
            if self._items > MOST_VALUES or count * 8 > self._size:
                raise self._damaged(f"it claims an array of {count} values")
            for _ in range(count):
                self._skip_value(inner, depth + 1)
        else:
            raise self._damaged(f"it holds a value of the unknown type {kind}")

    def _text(self) -> bytes:
        length = self._number("<Q")
        if length > 2**16:
            raise self._damaged(f"it claims a name of {length} bytes")
        return self._take(length)

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _take(self, count: int) -> bytes:
        taken = self._stream.read(count)
        if len(taken) != count:
            raise self._damaged("it ends within its header")
        return taken

    def _skip(self, count: int) -> None:
        if count > self._size - self._stream.tell():
            raise self._damaged(f"it claims a value of {count} bytes, beyond its end")
        self._stream.seek(count, 1)

    def _damaged(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._file} is damaged: {what}.", hint="download it again")


def check_gguf(file: Path) -> tuple[Path, ...]:
    """The files of a model of which ``file`` is the only one, or the first; all were checked.

    Raises ModelLoadError where a header does not fit its file, before native code reads it.
    llama.cpp opens a model's other files by itself.
    """
    parts = _check_one(file)
    name = _PART.fullmatch(file.name)
    if parts < 2:
        return (file,)
    if name is None or int(name[2]) != parts:
        raise ModelLoadError(
            f"{file} is one of {parts} files of a model, of which the first is to be named.",
            hint=f"--checkpoint gguf=…-00001-of-{parts:05}.gguf",
        )
    files = tuple(
        file.with_name(f"{name[1]}-{part:05}-of-{parts:05}.gguf") for part in range(1, parts + 1)
    )
    for other in files[1:]:
        _check_one(other)
    return files


def _check_one(file: Path) -> int:
    """The number of files that a checked file's model is split into. Raises ModelLoadError."""
    try:
        with open_regular(file) as stream:
            header = _Gguf(file, stream)
            header.check()
    except OSError as exc:
        raise ModelLoadError(f"{file} cannot be read: {exc.strerror}.") from exc
    return header.parts
