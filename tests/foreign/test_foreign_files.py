"""Headers from strangers: real files pass, and mutated bytes end in our error."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llmfit.errors import ModelLoadError
from llmfit.foreign.files import check_gguf, check_index, safetensors_shapes
from llmfit.models import count_parameters, data_path, read_spec
from llmfit.quantize.gguf_tensors import open_tensors

TENSORS = {
    "a": torch.zeros(3, 4),
    "b": torch.zeros(5, dtype=torch.bfloat16),
    "c": torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
    "d": torch.zeros((), dtype=torch.int64),
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file by the safetensors library."""
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GGUF by the gguf library: values of all kinds, plain and quantised tensors."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 3)
    writer.add_float64("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "hello")
    writer.add_array("a.words", ["x", "yy", "zzz"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("plain", np.zeros((4, 32), dtype=np.float32))
    blocks = np.zeros((2, 34), dtype=np.uint8)
    writer.add_tensor("packed", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_real_safetensors_file_passes(weights: Path) -> None:
    """With the shapes that were saved; the embedded model's too."""
    assert safetensors_shapes(weights) == {key: tuple(t.shape) for key, t in TENSORS.items()}
    assert count_parameters(data_path("embedded")) == sum(
        tensor.numel() for tensor in _tensors(data_path("embedded") / "model.safetensors")
    )


def _tensors(path: Path) -> list[torch.Tensor]:
    with safe_open(path, "pt") as opened:
        return [opened.get_tensor(key) for key in opened.keys()]  # noqa: SIM118


def test_a_real_gguf_passes(model: Path) -> None:
    """As the gguf library writes it."""
    check_gguf(model)


HEADERS: list[tuple[object, str]] = [
    ([1], "not a JSON object"),
    ({"a": 3}, "is no object"),
    ({"a": {"dtype": "F32", "shape": [1]}}, "data_offsets None"),
    ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "F99"),
    ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "-1"),
    ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "True"),
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "claims bytes 0 to 4"),
    ({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}, "claims bytes"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "claims bytes 4 to 0"),
    (
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        },
        "overlap at byte 2",
    ),
]


@pytest.mark.parametrize(("header", "said"), HEADERS, ids=[said for _, said in HEADERS])
def test_a_header_that_does_not_fit_is_refused(header: object, said: str, tmp_path: Path) -> None:
    """With the file's name and what it claims."""
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelLoadError, match=r"x\.safetensors") as refused:
        safetensors_shapes(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", struct.pack("<Q", 2**63), struct.pack("<Q", 2**60) + b"{}",
     struct.pack("<Q", 4) + b"\xff\xfe{}", struct.pack("<Q", 200_000) + b"[" * 200_000],
    ids=["empty", "short", "8 EB", "1 EB", "no UTF-8", "deep"],
)  # fmt: skip
def test_absurd_safetensors_allocate_nothing(content: bytes, tmp_path: Path) -> None:
    """A header of 8 EB, a thousand brackets deep, or not text."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"x\.safetensors"):
        safetensors_shapes(path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        r"..\x",
        "C:x",
        "a\0b",
        "gone.safetensors",
    ],
)
def test_an_index_names_only_files_beside_it(name: str, tmp_path: Path) -> None:
    """No way up, no absolute path, no folder, nothing that is not there."""
    (tmp_path / "a.safetensors").write_bytes(b"")
    index = tmp_path / "model.safetensors.index.json"
    check_index(index, {"weight_map": {"w": "a.safetensors"}})
    with pytest.raises(ModelLoadError, match=r"names the shard"):
        check_index(index, {"weight_map": {"w": "a.safetensors", "v": name}})
    for wrong in ([name], {"w": 3}, {"w": ["a.safetensors"]}, None):
        with pytest.raises(ModelLoadError, match="no weight_map"):
            check_index(index, {"weight_map": wrong})


def test_an_index_names_no_pickle(tmp_path: Path) -> None:
    """transformers reads a shard of another name with torch.load, safetensors asked for or not."""
    (tmp_path / "weights.bin").write_bytes(b"")
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ModelLoadError, match=r"no \.safetensors file"):
        check_index(index, {"weight_map": {"w": "weights.bin"}})


def test_the_converter_reads_only_shards_beside_the_index(weights: Path, tmp_path: Path) -> None:
    """The way to GGUF checks an index as the others do: nothing outside is opened."""
    inside = tmp_path / "model"
    inside.mkdir()
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ModelLoadError, match="not a file of its own folder"), ExitStack() as stack:
        open_tensors(inside, stack)
    shutil.move(weights, inside / "part.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    with ExitStack() as stack:
        assert set(open_tensors(inside, stack)) == set(TENSORS)


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    """transformers would put it on the model without being asked."""
    shutil.copytree(data_path("embedded"), tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"adapter beside the model \(adapter_config\.json\)"):
        read_spec(tmp_path / "model", name="model", source="local")


def test_what_is_no_regular_file_is_never_waited_for(tmp_path: Path) -> None:
    """A pipe in the place of weights, of a GGUF or of an index."""
    for name in ("a.safetensors", "a.gguf"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ModelLoadError, match=r"a\.safetensors is no regular file"):
        safetensors_shapes(tmp_path / "a.safetensors")
    with pytest.raises(ModelLoadError, match=r"a\.gguf is no regular file"):
        check_gguf(tmp_path / "a.gguf")


def _gguf(*parts: bytes, tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, values)
    return head + b"".join(parts) + bytes(64)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


GGUFS = {
    "magic": b"GGML" + bytes(64),
    "ends": b"GGUF\x03",
    "version 99": _gguf(version=99),
    "claims 18446744073709551615 tensors": _gguf(tensors=2**64 - 1),
    "values": _gguf(values=2**60),
    "a name of": _gguf(struct.pack("<Q", 2**62), values=1),
    "a value of": _gguf(_text(b"k"), struct.pack("<IQ", 8, 2**62), values=1),
    "an array of": _gguf(_text(b"k"), struct.pack("<IIQ", 9, 8, 2**60), values=1),
    "unknown type 77": _gguf(_text(b"k"), struct.pack("<I", 77), values=1),
    "an alignment of 0": _gguf(
        _text(b"general.alignment"), struct.pack("<II", 4, 0), values=1
    ),
    "1000 dimensions": _gguf(_text(b"t"), struct.pack("<I", 1000), tensors=1),
    "beyond the file's end": _gguf(
        _text(b"t"), struct.pack("<IQIQ", 1, 10**15, 0, 0), tensors=1
    ),
    "the shape": _gguf(_text(b"t"), struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0), tensors=1),
    "unknown type 9999": _gguf(_text(b"t"), struct.pack("<IQIQ", 1, 1, 9999, 0), tensors=1),
}  # fmt: skip


@pytest.mark.parametrize("said", GGUFS)
def test_an_absurd_gguf_is_refused(said: str, tmp_path: Path) -> None:
    """Before llama.cpp sees it, and with nothing allocated for what it claims."""
    path = tmp_path / "x.gguf"
    path.write_bytes(GGUFS[said])
    with pytest.raises(ModelLoadError, match=r"x\.gguf") as refused:
        check_gguf(path)
    assert said in str(refused.value) or said == "magic"


def test_a_name_is_shown_in_a_line(tmp_path: Path) -> None:
    """One of 65,000 bytes, as a GGUF and an index may have, in a message of some hundred."""
    path = tmp_path / "x.gguf"
    path.write_bytes(_gguf(_text(b"\x1b" * 65_000), struct.pack("<I", 1000), tensors=1))
    with pytest.raises(ModelLoadError, match="1000 dimensions") as refused:
        check_gguf(path)
    assert len(str(refused.value)) < 400 and "\x1b" not in str(refused.value)
    with pytest.raises(ModelLoadError, match="names the shard") as refused:
        check_index(tmp_path / "i.json", {"weight_map": {"w": "x" * 65_000}})
    assert len(str(refused.value)) < 400


def _mutations(content: bytes, count: int, seed: int) -> list[bytes]:
    """The content with some bytes changed, cut off, or doubled, most of them in its header."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        data = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = min(int(draw.expovariate(1 / 120)), len(data) - 1)
            kind = draw.randrange(4)
            if kind == 0:
                data[at] = draw.randrange(256)
            elif kind == 1:
                data[at : at + 8] = struct.pack("<Q", draw.choice((0, 1, 2**31, 2**63, 2**64 - 1)))
            elif kind == 2:
                del data[at + 1 :]
            else:
                data[at:at] = data[at : at + draw.randint(1, 40)]
        made.append(bytes(data))
    return made


def _only_our_error(check: Callable[[Path], object], path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        check(path)
    except ModelLoadError as exc:
        assert path.name in str(exc)
        return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_what_passes_mutated_opens_in_the_library_too(weights: Path, seed: int) -> None:
    """600 mutations: each is refused by us, or taken by safetensors as well."""
    taken = 0
    path = weights.with_name("mutated.safetensors")
    for data in _mutations(weights.read_bytes(), 200, seed):
        if _only_our_error(safetensors_shapes, path, data):
            taken += 1
            try:
                with safe_open(path, "pt") as opened:
                    assert set(opened.keys()) == set(safetensors_shapes(path))
            except SafetensorError as exc:  # it also wants every byte of the file used
                assert "incomplete" in str(exc).lower() or "offset" in str(exc).lower()
    assert taken < 200


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_gguf_is_refused_or_whole(model: Path, seed: int) -> None:
    """1,500 mutations: no other error, no hang."""
    path = model.with_name("mutated.gguf")
    found = [
        _only_our_error(check_gguf, path, d) for d in _mutations(model.read_bytes(), 500, seed)
    ]
    assert 0 < sum(found) < 500
