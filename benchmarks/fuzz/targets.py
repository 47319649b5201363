"""What is fuzzed: a reader, the files it reads, and cases of each kind for one of them.

A case is the content of one file, ``Target.file``, in a folder that ``furnish`` has filled. It
passes where ``run`` returns, and where it raises an LlmfitError.
"""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz import wholes
from benchmarks.fuzz.gguf_bytes import ARRAY, FLOAT32, INT32, STRING, UINT32, numbers, strings, text
from llmfit.errors import LlmfitError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from llmfit.planner import Machine
    from llmfit.store.store import Store


def _nothing(folder: Path) -> None:
    """A folder without other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader of files from strangers."""

    name: str
    file: str
    """The file that a case is the content of."""
    seeds: Callable[[], Sequence[bytes]]
    """Whole files, of which bytes are changed."""
    structured: Callable[[], SearchStrategy[bytes]]
    """Content of the right form with odd values in it."""
    run: Callable[[Path], None]
    """Reads the folder as llmfit does."""
    furnish: Callable[[Path], None] = _nothing
    """Puts the other files into the folder."""
    hot: int | None = None
    """The first bytes, where those are the ones that count."""
    padded_bytes: int | None = None
    """What the file is filled up to with zeros, which take no room; a case alone is shorter."""
    share: float = 1.0
    """Of the cases that an equal division would give; less where each takes long."""
    warm: Callable[[], None] = field(default=lambda: None)
    """Imports that no case is to pay for."""


# ---------------------------------------------------------------- JSON


def _read_json(folder: Path) -> None:
    from llmfit.foreign_json import read_json

    read_json(folder / "some.json")


def _any_json() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st

    from benchmarks.fuzz.values import as_json, odd_values

    return st.one_of(
        odd_values.map(as_json),
        st.dictionaries(st.text(max_size=4), odd_values, max_size=5).map(as_json),
        st.binary(max_size=40),
    )


# ---------------------------------------------------------------- weights' headers


def _tensor_shapes(folder: Path) -> None:
    """llmfit's own reading; what passes is read by the library too, or refused in its words."""
    from safetensors import SafetensorError, safe_open

    from llmfit.models import tensor_shapes

    shapes = tensor_shapes(folder)
    for file in folder.glob("*.safetensors"):
        with suppress(SafetensorError), safe_open(file, "numpy") as opened:  # e.g. unused bytes
            assert set(opened.keys()) <= set(shapes)


def _structured_safetensors() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import changed

    return changed([wholes.TENSORS], ["more", "__metadata__"]).map(
        lambda tensors: wholes.safetensors(tensors, wholes.TENSOR_BYTES)
    )


_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_INDEX = {"metadata": {"total_size": 128}, "weight_map": dict(zip("ab", _SHARDS, strict=True))}


def _shards(folder: Path) -> None:
    for name in _SHARDS:
        content = wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)
        (folder / name).write_bytes(content)
    (folder / "weights.bin").write_bytes(b"a pickle")


def _structured_index() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st

    from benchmarks.fuzz.values import as_json, changed

    names = st.sampled_from([
        "../model.safetensors", "/etc/passwd", "weights.bin", "a/b.safetensors", "..", "", "\x00",
        "..\\x.safetensors", "C:x.safetensors", "x" * 300 + ".safetensors", "gone.safetensors",
        *_SHARDS,
    ])  # fmt: skip
    odd = st.dictionaries(st.text(max_size=5), names, max_size=4).map(lambda m: {"weight_map": m})
    return st.one_of(changed([_INDEX], ["weight_map"]), odd).map(as_json)


# ---------------------------------------------------------------- GGUF


def _read_gguf(folder: Path) -> None:
    """The check of the header, and ggml's own reader for what passes it."""
    from llmfit.quantize.gguf_types import read_types

    read_types(folder / "model.gguf")


def _warm_gguf() -> None:
    from llmfit.decode.llama_log import llama_log
    from llmfit.quantize.gguf_types import _library

    llama_log()
    _library()


@functools.cache
def _gguf_header() -> bytes:
    whole = wholes.gguf()
    return whole.build()[: -len(whole.data)]


def _gguf_seeds() -> list[bytes]:
    import copy

    small = copy.deepcopy(wholes.gguf())
    few = [f"t{i}".encode() for i in range(4)]
    small.set("tokenizer.ggml.tokens", ARRAY, strings(few))
    small.set("tokenizer.ggml.token_type", ARRAY, numbers(INT32, "i", [1] * 4))
    small.set("tokenizer.ggml.merges", ARRAY, strings(few))
    small.set("general.alignment", UINT32, (32).to_bytes(4, "little"))
    header = small.build()[: -len(small.data)]
    return [header, header, _gguf_header()]


def _structured_gguf() -> SearchStrategy[bytes]:
    import copy
    import struct

    from hypothesis import strategies as st

    numbers_ = st.sampled_from(
        [0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    )

    @st.composite
    def files(draw: Any) -> bytes:
        file = copy.deepcopy(wholes.gguf())
        file.data = b""
        keys = [key.decode() for key in file.values]
        keys += ["split.count", "general.alignment", "llmfit.notes", "new.key"]
        for _ in range(draw(st.integers(0, 3))):
            key, kind = draw(st.sampled_from(keys)), draw(st.integers(0, 14))
            if kind == STRING:
                file.set(key, kind, text(draw(st.binary(max_size=20))))
            elif kind == ARRAY:
                inner = draw(st.sampled_from([UINT32, FLOAT32, STRING, ARRAY, 13]))
                count = draw(numbers_)
                file.set(key, kind, struct.pack("<IQ", inner, count) + draw(st.binary(max_size=40)))
            else:
                file.set_number(key, draw(numbers_), draw(st.sampled_from([0, 2, 4, 5, 6, 7, 10])))
                file.values[key.encode()] = (kind, file.values[key.encode()][1])
        for _ in range(draw(st.integers(0, 2))):
            tensor = draw(st.sampled_from(file.tensors))
            what = draw(st.sampled_from(["dims", "kind", "offset", "name", "many"]))
            if what == "dims":
                tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(numbers_)
            elif what == "kind":
                tensor.kind = draw(st.integers(0, 45))
            elif what == "offset":
                tensor.offset = draw(numbers_)
            elif what == "name":
                tensor.name = draw(st.binary(max_size=100))
            else:
                tensor.dims = tensor.dims * draw(st.integers(0, 5))
        if draw(st.booleans()) and draw(st.booleans()):
            file.counts = (draw(numbers_), draw(numbers_))
        file.version = draw(st.sampled_from([3, 3, 3, 3, 2, 1, 0, 4, 2**24]))
        return file.build()

    return files()


# ---------------------------------------------------------------- config.json


@functools.cache
def _machine() -> Machine:
    from llmfit.planner import find_machine

    return find_machine(gpu="RTX 4090", ram_gb=64, runs_dir=os.devnull)


def _predict(folder: Path) -> None:
    """``llmfit plan FOLDER``: facts, memory, context, speed, the text, and the record's JSON."""
    from llmfit.backends.registry import default_backends
    from llmfit.measure import settle_workload
    from llmfit.models import read_spec
    from llmfit.planner import predict_row
    from llmfit.records import ModelPlan, from_json, to_json
    from llmfit.report.plan import render_plan

    spec = read_spec(folder, name="model", source="local")
    machine = _machine()
    work, notes = settle_workload(None, None, spec)
    backends = (*default_backends(spec), "gguf:q2_k", "nf4:double")
    plan = ModelPlan(
        model=spec,
        parameters=spec.parameters,
        active_parameters=None if spec.shape is None else spec.shape.active_parameters,
        workload=work,
        gpu=machine.gpu,
        cpu=machine.cpu,
        gpu_budget_bytes=machine.gpu_budget_bytes,
        ram_budget_bytes=machine.ram_budget_bytes,
        kv_cache_dtype=None,
        rows=tuple(predict_row(spec, name, work, machine) for name in backends),
        notes=notes,
        command=None,
    )
    render_plan(plan, "table")
    assert from_json(ModelPlan, to_json(plan)) == plan


def _structured_configs(make: Callable[[], list[dict[str, Any]]]) -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    return changed(make(), wholes.EXTRA_KEYS).map(as_json)


def _as_files(make: Callable[[], list[dict[str, Any]]]) -> list[bytes]:
    return [json.dumps(each, indent=2).encode() for each in make()]


def _plan_gguf(folder: Path) -> None:
    """What a GGUF of the config would say, and hold with random weights; nothing is written."""
    from llmfit.foreign_json import read_json
    from llmfit.planning.architectures import require_shape
    from llmfit.quantize.gguf_rope import rope_tensors
    from llmfit.quantize.gguf_shape import read_shape
    from llmfit.quantize.gguf_synthetic import plan_synthetic

    about = read_shape(folder)
    config = read_json(folder / "config.json")
    shape = require_shape(config)
    name = next(iter(config["architectures"]))
    plan_synthetic(config, shape, architecture=name, file_type="q4_k_m")
    if about.head_dim <= 4096:  # the rest is an allocation that the disk's check comes before
        rope_tensors(about)


def _warm_torch() -> None:
    import torch

    torch.zeros(1)


def _build(folder: Path) -> None:
    """transformers' config and the model without values, as rows of random weights make them."""
    from llmfit.backends._hf import plan_config
    from llmfit.foreign_errors import LibraryErrors
    from llmfit.models import read_spec
    from llmfit.quantize._gptqmodel import empty_model
    from llmfit.records import Plan

    spec = read_spec(folder, name="model", source="local")
    plan = Plan(backend="sdpa", model=spec, device="cpu", weights="synthetic")
    with LibraryErrors("transformers cannot build it"):
        empty_model(plan_config(plan))


def _warm_models() -> None:
    import tempfile

    from benchmarks.fuzz.watch import quiet

    quiet()
    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        for config in wholes.small_configs():
            (Path(folder) / "config.json").write_bytes(json.dumps(config).encode())
            with suppress(LlmfitError):
                _build(Path(folder))


# ---------------------------------------------------------------- quantisation


def _quantized(folder: Path) -> None:
    """What a checkpoint says of its quantisation, and what the rows that load it make of it."""
    from llmfit.backends._packed import loadable
    from llmfit.models import read_spec
    from llmfit.quantization import stored_quantization

    spec = read_spec(folder, name="model", source="local")
    facts = stored_quantization(folder)
    if facts is not None and spec.quantization in ("gptq", "awq"):
        loadable(folder, facts, device="cpu")


def _with_weights(folder: Path) -> None:
    (folder / "config.json").write_bytes(json.dumps(wholes.SMALL).encode())
    content = wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)
    (folder / "model.safetensors").write_bytes(content)


# ---------------------------------------------------------------- tokenizers


def _vocabulary(folder: Path) -> None:
    from llmfit.quantize.gguf_vocab import read_vocabulary

    read_vocabulary(folder, vocab_size=wholes.VOCAB_SIZE)


def _tokenizer(folder: Path) -> None:
    """transformers' tokenizer, as every row loads it, and a text there and back."""
    from llmfit.backends._tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    tokenizer.decode(tokenizer.encode("Once upon a time, ab <s> é"))
    tokenizer.encode("ab", special=False)


def _both_tokenizers(folder: Path) -> None:
    _vocabulary(folder)
    _tokenizer(folder)


def _tokenizer_files(folder: Path) -> None:
    (folder / "config.json").write_bytes(json.dumps(wholes.SMALL).encode())
    (folder / "tokenizer.json").write_bytes(json.dumps(wholes.byte_level()).encode())
    (folder / "tokenizer_config.json").write_bytes(
        json.dumps(wholes.TOKENIZER_SETTINGS[0]).encode()
    )
    (folder / "own.py").write_text("raise SystemExit('a model ran code of its own')\n")


def _spm_files(folder: Path) -> None:
    (folder / "config.json").write_bytes(json.dumps(wholes.SMALL).encode())


def _warm_tokenizer() -> None:
    import tempfile

    from benchmarks.fuzz.watch import quiet

    quiet()
    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        _tokenizer_files(Path(folder))
        _tokenizer(Path(folder))


def _tokenizers() -> list[dict[str, Any]]:
    return [wholes.byte_level(), wholes.byte_fallback()]


def _structured_tokenizers() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    return changed(_tokenizers()).map(as_json)


def _structured_settings() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    keys = (
        "bos_token", "eos_token", "unk_token", "pad_token", "added_tokens_decoder", "auto_map",
        "chat_template", "tokenizer_class", "extra_special_tokens", "vocab_file", "tokenizer_file",
        "model_max_length", "padding_side", "extra_ids", "offset",
    )  # fmt: skip
    return changed(wholes.TOKENIZER_SETTINGS, keys).map(as_json)


def _structured_spm() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    @st.composite
    def models(draw: Any) -> bytes:
        proto = model_pb2.ModelProto()
        proto.ParseFromString(wholes.sentencepiece())
        for _ in range(draw(st.integers(0, 4))):
            piece = proto.pieces[draw(st.integers(0, len(proto.pieces) - 1))]
            piece.score = draw(st.floats(width=32))
            piece.type = draw(st.sampled_from([1, 2, 3, 4, 5, 6]))
            piece.piece = draw(st.text(max_size=10))
        proto.trainer_spec.model_type = draw(st.sampled_from([1, 2, 2, 2, 2, 3, 4]))
        proto.trainer_spec.bos_id = draw(st.sampled_from([-1, 1, 10**6, -(2**31), 2**31 - 1]))
        if draw(st.booleans()):
            del proto.pieces[draw(st.integers(0, 260)) :]
        return bytes(proto.SerializeToString())

    return models()


# ---------------------------------------------------------------- records and settings


@functools.cache
def _store() -> Store:
    import tempfile

    from llmfit.store.store import Store

    return Store(str(Path(tempfile.mkdtemp(prefix="llmfit-fuzz-store-")) / "store.db"))


def _recorded(folder: Path) -> None:
    """A comparison's JSON: found as a record, taken into the store, shown in every form."""
    from llmfit.keeping import Keeping
    from llmfit.lookup import find_record
    from llmfit.report import FORMATS, render
    from llmfit.store.exchange import import_runs

    file = folder / "comparison.json"
    comparison = find_record(
        file, Keeping(runs_dir=str(folder), store=str(folder / "none.db"))
    ).comparison
    if comparison is not None:
        for form in FORMATS:
            render(comparison, form)
    import_runs(_store(), [file])


def _warm_store() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        (Path(folder) / "comparison.json").write_text(wholes.comparison())
        _recorded(Path(folder))


def _structured_comparison() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    whole = json.loads(wholes.comparison())
    return changed([whole], ["runs", "rows", "model", "run_id"]).map(as_json)


def _night(folder: Path) -> None:
    from llmfit.nightly.config import read_config

    read_config(folder / "night.toml").cells()


def _structured_night() -> SearchStrategy[bytes]:
    """TOML of changed tables: what TOML has no form for is written as a text."""
    from benchmarks.fuzz.values import changed

    return changed([tomllib.loads(wholes.NIGHT.decode())], ["models", "workloads", "defaults"]).map(
        lambda table: "\n".join(_toml_lines(table)).encode("utf-8", "surrogatepass")
    )


def _toml_lines(table: dict[str, Any]) -> list[str]:
    return [f"{json.dumps(str(key))} = {_toml(value)}" for key, value in table.items()]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return str(value) if value != value or abs(value) == float("inf") else repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else json.dumps(str(value))


TARGETS: tuple[Target, ...] = (
    Target(
        name="JSON", file="some.json", run=_read_json, structured=_any_json,
        seeds=lambda: _as_files(lambda: [wholes.SMALL, wholes.QUANTIZATIONS[0]]),
    ),
    Target(
        name="safetensors header", file="model.safetensors", run=_tensor_shapes,
        seeds=lambda: [wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)],
        structured=_structured_safetensors,
    ),
    Target(
        name="index of shards", file="model.safetensors.index.json", run=_tensor_shapes,
        furnish=_shards, seeds=lambda: _as_files(lambda: [_INDEX]), structured=_structured_index,
    ),
    Target(
        name="GGUF header", file="model.gguf", run=_read_gguf, warm=_warm_gguf, seeds=_gguf_seeds,
        structured=_structured_gguf, hot=3000, padded_bytes=11_000_000,
    ),
    Target(
        name="config.json to predictions", file="config.json", run=_predict,
        seeds=lambda: _as_files(wholes.configs), share=2.0,
        structured=lambda: _structured_configs(wholes.configs),
        warm=lambda: _machine() and None,
    ),
    Target(
        name="config.json to GGUF metadata", file="config.json", run=_plan_gguf, warm=_warm_torch,
        seeds=lambda: _as_files(wholes.convertible_configs),
        structured=lambda: _structured_configs(wholes.convertible_configs),
    ),
    Target(
        name="config.json by transformers", file="config.json", run=_build, warm=_warm_models,
        seeds=lambda: _as_files(wholes.small_configs), share=0.5,
        structured=lambda: _structured_configs(wholes.small_configs),
    ),
    Target(
        name="quantization_config", file="config.json", run=_quantized, furnish=_with_weights,
        seeds=lambda: _as_files(wholes.quantized_configs),
        structured=lambda: _structured_configs(wholes.quantized_configs),
    ),
    Target(
        name="quantize_config.json", file="quantize_config.json", run=_quantized,
        furnish=_with_weights, seeds=lambda: _as_files(lambda: wholes.QUANTIZATIONS), share=0.5,
        structured=lambda: _structured_configs(lambda: wholes.QUANTIZATIONS),
    ),
    Target(
        name="tokenizer.json to GGUF vocabulary", file="tokenizer.json", run=_vocabulary,
        furnish=_tokenizer_files, seeds=lambda: _as_files(_tokenizers),
        structured=_structured_tokenizers,
    ),
    Target(
        name="tokenizer.model to GGUF vocabulary", file="tokenizer.model", run=_vocabulary,
        furnish=_spm_files, seeds=lambda: [wholes.sentencepiece()], structured=_structured_spm,
        warm=wholes.sentencepiece, share=0.5,
    ),
    Target(
        name="tokenizer.json by transformers", file="tokenizer.json", run=_tokenizer,
        furnish=_tokenizer_files, seeds=lambda: _as_files(_tokenizers), warm=_warm_tokenizer,
        structured=_structured_tokenizers,
    ),
    Target(
        name="tokenizer_config.json", file="tokenizer_config.json", run=_both_tokenizers,
        furnish=_tokenizer_files, seeds=lambda: _as_files(lambda: wholes.TOKENIZER_SETTINGS),
        structured=_structured_settings, warm=_warm_tokenizer,
    ),
    Target(
        name="comparison JSON", file="comparison.json", run=_recorded, warm=_warm_store,
        seeds=lambda: [wholes.comparison().encode()], structured=_structured_comparison,
    ),
    Target(
        name="nightly TOML", file="night.toml", run=_night, seeds=lambda: [wholes.NIGHT],
        structured=_structured_night,
    ),
)  # fmt: skip
