"""GGUF files of random weights: the layout of real ones, legal contents, and no traces."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import COMMON, MODELS, save_model

import llmfit
from llmfit.backends.base import no_progress
from llmfit.backends.registry import get_backend
from llmfit.decode.llama_cpp import LlamaCppDecoder, LlamaCppModel
from llmfit.errors import ModelLoadError, StoreError, UsageError
from llmfit.models import read_spec
from llmfit.planning import catalogue
from llmfit.planning.architectures import read_shape
from llmfit.planning.memory.gguf_mix import gguf_bytes
from llmfit.quantize.cache import ArtifactCache
from llmfit.quantize.gguf import FILE_TYPES, make_gguf
from llmfit.quantize.gguf_architectures import ARCHITECTURES
from llmfit.quantize.gguf_synthetic import plan_synthetic, write_synthetic
from llmfit.records import Plan, Workload

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
"""Rows that the blocks of K-quants divide."""
LLAMA: dict[str, Any] = {
    **COMMON,
    **WIDE,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
}
FAST_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name}, wide": (MODELS[name][0], MODELS[name][1] | WIDE)
        for name in ("llama tied", "llama3 rope", "llama biases", "qwen2", "qwen3", "phi3")
    },
    "mixtral of eight experts, wide": ("Mixtral", WIDE | {"num_local_experts": 8}),
    "gemma2": MODELS["gemma2"],
    "gemma3": MODELS["gemma3"],
}
CASES = FAST_CASES | MODELS


def write(config: dict[str, Any], file: Path, file_type: str = "q4_k_m", seed: int = 0) -> Path:
    """A synthetic file of the config's model."""
    shape = read_shape(config)
    assert shape is not None
    planned = plan_synthetic(
        config, shape, architecture=config["architectures"][0], file_type=file_type
    )
    write_synthetic(planned, file, name="random", seed=seed, progress=no_progress)
    return file


def layout(reader: Any) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Dimensions, type and bytes of every tensor."""
    return {
        tensor.name: (tuple(map(int, tensor.shape)), tensor.tensor_type.name, int(tensor.n_bytes))
        for tensor in reader.tensors
    }


def metadata(reader: Any) -> dict[str, Any]:
    """The metadata that says how to compute: all but names, notes and the vocabulary."""
    apart = ("GGUF.", "general.name", "tokenizer.", "llmfit.notes")
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(apart)
    }


@pytest.mark.parametrize(
    "case",
    [case if case in FAST_CASES else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_layout_is_that_of_a_real_model(case: str, tmp_path: Path) -> None:
    """A real model of the same config, converted and then quantised by llama.cpp, has the same
    tensors in the same types, and the same metadata."""
    family, changes = CASES[case]
    folder = tmp_path / "model"
    save_model(folder, family, changes)
    real = make_gguf(
        folder, "q4_k_m", cache=ArtifactCache(tmp_path / "c"), threads=1, progress=no_progress
    ).path
    config = json.loads((folder / "config.json").read_text("utf-8"))
    made = gguf.GGUFReader(write(config, tmp_path / "synthetic.gguf"))
    expected = gguf.GGUFReader(real)
    assert layout(made) == layout(expected)
    assert metadata(made) == metadata(expected)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_llama_cpp_decodes_every_type(file_type: str, tmp_path: Path) -> None:
    """llama.cpp loads the file, and its logits are finite, differ by token and are of the size of
    an untrained model's."""
    file = write(LLAMA, tmp_path / "synthetic.gguf", file_type)
    model = LlamaCppModel(file, threads=1)
    try:
        assert (model.vocab_size, model.layers, model.context_length) == (320, 3, 256)
        logits = last_logits(model, [5, 17, 300, 2])
        assert np.isfinite(logits).all()
        # The head's spread times √width: inputs are normed, so each logit has this deviation.
        assert logits.std() == pytest.approx(0.5, rel=0.25)
        assert not np.array_equal(logits, last_logits(model, [5, 17, 300, 3]))
    finally:
        model.close()


def last_logits(model: LlamaCppModel, ids: list[int]) -> np.ndarray:
    """Logits [V] after ``ids``."""
    decoder = LlamaCppDecoder(model, batch=1, capacity=16)
    try:
        decoder.prefill([ids])
        return decoder._context.logits(len(ids) - 1).copy()
    finally:
        decoder.close()


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "mixtral", "phi3, wide", "qwen3, wide"])
def test_every_family_decodes(case: str, tmp_path: Path) -> None:
    """Norms, soft caps, experts and fused matrices of random weights give finite logits too."""
    family, changes = CASES[case]
    save_model(tmp_path, family, changes)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    model = LlamaCppModel(write(config, tmp_path / "synthetic.gguf"), threads=1)
    try:
        logits = last_logits(model, [5, 17, 300, 2])
        assert np.isfinite(logits).all()
        assert logits.std() > 0.05
    finally:
        model.close()


@pytest.mark.parametrize("file_type", ["q2_k", "q4_k_m", "q8_0", "iq4_xs", "bf16"])
def test_values_are_noise_that_keeps_activations_in_size(file_type: str, tmp_path: Path) -> None:
    """Read back by the gguf package, weights have mean 0 and deviation ½ ÷ √columns, no row of a
    matrix equals another, and no matrix equals one of the same shape and type."""
    reader = gguf.GGUFReader(write(LLAMA, tmp_path / "synthetic.gguf", file_type))
    by_name = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    down, query = by_name["blk.1.ffn_down.weight"], by_name["blk.0.attn_q.weight"]
    for values in (down, query):
        spread = 0.5 / math.sqrt(values.shape[1])
        assert values.std() == pytest.approx(spread, rel=0.05)
        assert abs(values.mean()) < 0.02 * spread
        assert len(np.unique(values, axis=0)) == len(values)
    assert not np.array_equal(query, by_name["blk.1.attn_q.weight"])
    assert (by_name["output_norm.weight"] == 1).all()


def test_a_seed_determines_every_byte(tmp_path: Path) -> None:
    """The same seed gives the same file, another one another."""
    first = write(LLAMA, tmp_path / "1.gguf", seed=1).read_bytes()
    assert write(LLAMA, tmp_path / "2.gguf", seed=1).read_bytes() == first
    assert write(LLAMA, tmp_path / "3.gguf", seed=2).read_bytes() != first


def test_every_model_of_the_catalogue_that_can_be_converted_can_be_made() -> None:
    """Its tensors are all that llama.cpp asks for, and come to the bytes that are planned."""
    made = 0
    for entry in catalogue.entries():
        architecture = entry.config["architectures"][0]
        if architecture not in ARCHITECTURES:
            continue
        shape = read_shape(entry.config)
        assert shape is not None, entry.name
        planned = plan_synthetic(entry.config, shape, architecture=architecture, file_type="q4_k_m")
        size_bytes = sum(tensor.size_bytes for tensor in planned.tensors)
        assert size_bytes == gguf_bytes(shape, "q4_k_m"), entry.name
        made += 1
    assert made >= 60


def test_vectors_that_nobody_knows_are_refused() -> None:
    """A model with other norms or biases than llama.cpp has places for is no file, but an error."""
    shape = read_shape(LLAMA)
    assert shape is not None
    odd = replace(shape, kinds=(replace(shape.kinds[0], vectors=3 * 256),))
    with pytest.raises(ModelLoadError, match="768 values of norms and biases in layer 0"):
        plan_synthetic(LLAMA, odd, architecture="LlamaForCausalLM", file_type="q4_k_m")
    biased = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    shape = read_shape(biased | {"attention_bias": True})
    assert shape is not None
    with pytest.raises(ModelLoadError, match="a bias of the attention's output"):
        plan_synthetic(
            biased | {"attention_bias": True},
            shape,
            architecture="Qwen3ForCausalLM",
            file_type="q4_k_m",
        )


@pytest.mark.slow
def test_writing_holds_little_memory(tmp_path: Path) -> None:
    """A file of 390 MB, whose head alone has 168 MB, is written with less than 100 MB beside the
    libraries."""
    config = LLAMA | {"vocab_size": 100_000, "hidden_size": 2048, "intermediate_size": 8192}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = f"""
import json, resource, sys
from pathlib import Path
import gguf, llama_cpp, numpy.random, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_gguf_synthetic import write
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path({str(tmp_path)!r})
file = write(json.loads((folder / "config.json").read_text()), folder / "made.gguf")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(file.stat().st_size, (after - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size_bytes, held_bytes = map(int, done.stdout.split())
    assert size_bytes > 3.9e8
    assert held_bytes < 1e8


# ---------------------------------------------------------------- the row


def plan_of(folder: Path, cache: Path, **more: Any) -> Plan:
    """A row of synthetic weights of a folder that holds a config.json and nothing else."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return Plan(
        backend="gguf",
        model=read_spec(folder, name="random", source="local"),
        device="cpu",
        weights="synthetic",
        threads=1,
        cache_dir=str(cache),
        **more,
    )


def test_row_needs_a_config_and_leaves_nothing(tmp_path: Path) -> None:
    """From a config.json alone comes a model that decodes; the row says that its weights are
    random, and no file of it remains."""
    plan = plan_of(tmp_path / "model", tmp_path / "cache")
    stages: list[str] = []
    backend = get_backend("gguf")
    backend.prepare(plan)
    model = backend.load(plan, lambda stage, done, total: stages.append(stage))
    try:
        assert stages[0] == "make" and stages[-1] == "load"
        assert plan.model.shape is not None
        assert model.info.weights_bytes == gguf_bytes(plan.model.shape, "q4_k_m")
        assert model.info.kernel.linear == "llama.cpp Q4_K/Q6_K"
        assert model.info.artifact is None
        assert model.info.quantize_s is not None
        assert any("synthetic weights" in note for note in model.info.notes)
        left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert left == []
        decoder = model.decoder(batch=2, capacity=12)
        decoder.prefill([[1, 2, 3], [4, 5]])
        decoder.step()
        assert all(0 <= token < 320 for token in decoder.tokens())
        decoder.close()
        with pytest.raises(UsageError, match="synthetic weights are random"):
            model.tokenizer.encode("text")
    finally:
        model.close()


def test_row_is_skipped_where_it_makes_no_sense(tmp_path: Path) -> None:
    """Beside a checkpoint, and for a model that llmfit writes no GGUF of, the row says why."""
    plan = plan_of(tmp_path / "model", tmp_path / "cache")
    backend = get_backend("gguf")
    assert backend.check(plan).skipped is None
    with_file = replace(plan, checkpoint=str(tmp_path / "other.gguf"))
    assert "exclude each other" in (backend.check(with_file).skipped or "")
    other = replace(plan, model=replace(plan.model, architecture="BloomForCausalLM"))
    assert "BloomForCausalLM" in (backend.check(other).skipped or "")


# ---------------------------------------------------------------- the folder that is used once


def test_scratch_is_gone_afterwards_also_after_an_error(tmp_path: Path) -> None:
    """The folder exists inside the block only, whatever happens there."""
    cache = ArtifactCache(tmp_path / "cache")
    with pytest.raises(ModelLoadError), cache.scratch("gguf", 1) as folder:
        (folder / "file").write_bytes(b"1")
        raise ModelLoadError("broken")
    assert not folder.exists()
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_scratch_of_a_dead_process_is_swept_and_a_live_one_is_not(tmp_path: Path) -> None:
    """``sweep`` takes what a crash left, and lets a process that is still writing go on."""
    root = tmp_path / "cache"
    _die_in_scratch(root)
    cache = ArtifactCache(root)
    with cache.scratch("gguf", 1) as live:
        cache.sweep()
        assert list(root.glob(".making-*")) == [live]
    assert list(root.glob(".making-*")) == []


@pytest.mark.slow
def test_a_comparison_clears_what_a_killed_row_left(user_folders: Path) -> None:
    """A row that is killed for its memory while it loads a synthetic file of gigabytes leaves it;
    the comparison removes it once a row has ended, whichever row that is."""
    root = user_folders / "artifacts"
    _die_in_scratch(root)
    compared = llmfit.compare(
        backends=("bf16",),
        weights="synthetic",
        workload=Workload(prompt_tokens=4, new_tokens=2, repeats=1),
        cache_dir=str(root),
    )
    assert [row.status for row in compared.rows] == ["ok"]
    assert list(root.glob(".making-*")) == []


def _die_in_scratch(root: Path) -> None:
    """A process that is killed while a file of its is in the cache's scratch folder."""
    code = f"""
import os
from pathlib import Path
from llmfit.quantize.cache import ArtifactCache
with ArtifactCache(Path({str(root)!r})).scratch("gguf", 1) as folder:
    (folder / "file").write_bytes(b"1")
    os._exit(9)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert len(list(root.glob(".making-*/file"))) == 1


def test_scratch_asks_for_room_first(tmp_path: Path) -> None:
    """A file that the disk has no room for is refused before a byte is written."""
    cache = ArtifactCache(tmp_path / "cache")
    with (
        pytest.raises(StoreError, match=r"are needed in .* are free") as caught,
        cache.scratch("gguf", 10**18),
    ):
        pass
    assert "--cache-dir" in str(caught.value)
