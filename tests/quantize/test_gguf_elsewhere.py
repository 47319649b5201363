"""GGUF files that another converter made: ready ones, and those of a llama.cpp checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import COMMON, MODELS, random_ids, save_model, save_tokenizer

from llmfit.backends.base import no_progress
from llmfit.backends.registry import get_backend
from llmfit.decode.base import Window
from llmfit.errors import QuantizationError, UsageError
from llmfit.models import read_spec
from llmfit.quantize.gguf import quantize
from llmfit.quantize.gguf_checkout import Checkout
from llmfit.quantize.gguf_convert import convert
from llmfit.records import Plan

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

REPOSITORY = Path(__file__).parents[2]
# A converter with llama.cpp's command line, for Llamas under another name.
STAND_IN = """
import argparse, json, shutil, tempfile
from pathlib import Path
import beside, within_gguf_py
from llmfit.quantize.gguf_convert import convert

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16"])
arguments = parser.parse_args()
print("reading", arguments.model)
with tempfile.TemporaryDirectory() as folder:
    copy = Path(shutil.copytree(arguments.model, Path(folder) / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    convert(copy, arguments.outfile, dtype=arguments.outtype)
with open(__file__ + ".log", "a") as log:
    log.write(arguments.outtype + "\\n")
"""


def plan_of(folder: Path, cache: Path, backend: str = "gguf:f32", **more: Any) -> Plan:
    """A plan for one row on one thread."""
    return Plan(
        backend=backend,
        model=read_spec(folder, name=folder.name, source="local"),
        device="cpu",
        threads=1,
        cache_dir=str(cache),
        **more,
    )


def require_scores(plan: Plan, model: Any, *, atol: float = 0.02) -> Any:
    """Load the row; its log-likelihoods are those of ``model``. The row's LoadInfo."""
    ids = tuple(random_ids(100))
    with get_backend(plan.backend).load(plan) as loaded:
        (score,) = loaded.score([Window(ids, 1)], batch_tokens=512)
        info = loaded.info
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    # K and V are kept in float16 there.
    np.testing.assert_allclose(score.logprobs, expected, atol=atol)
    return info


# ---------------------------------------------------------------- ready files


def write_gemma(model: Any, folder: Path, target: Path) -> None:
    """A first-generation Gemma as GGUF, which llmfit's converter does not know, by the gguf
    package and the names of llama.cpp's documentation."""
    config = model.config
    parts = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(target, "gemma")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(parts["vocab"], key=parts["vocab"].__getitem__)
    tokens += [f"<unused{i}>" for i in range(len(tokens), config.vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in parts["merges"]])
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"] + 1)
    for layer in range(config.num_hidden_layers):
        for ours, theirs in (
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            values = state[f"model.layers.{layer}.{theirs}.weight"]
            writer.add_tensor(f"blk.{layer}.{ours}.weight", values + (values.ndim == 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_made_elsewhere_of_an_architecture_without_converter(tmp_path: Path) -> None:
    """--checkpoint runs a file whose architecture llmfit cannot convert: scores equal those of
    transformers, in float32 and quantised by llama.cpp to a type of its own."""
    folder = tmp_path / "gemma"
    model = save_model(folder, "Gemma", {"head_dim": 16})
    assert "GemmaForCausalLM" in (
        get_backend("gguf").check(plan_of(folder, tmp_path)).skipped or ""
    )
    file, small = tmp_path / "theirs.gguf", tmp_path / "small.gguf"
    write_gemma(model, folder, file)
    info = require_scores(plan_of(folder, tmp_path, "gguf", checkpoint=str(file)), model)
    assert (info.artifact, info.quantize_s, info.dtype) == (str(file), None, "F32")
    quantize(file, small, "q5_1", threads=1, progress=no_progress)
    info = require_scores(plan_of(folder, tmp_path, "gguf", checkpoint=str(small)), model, atol=1.5)
    assert info.dtype.startswith("Q5_1")


# ---------------------------------------------------------------- a checkout's converter


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a llama.cpp checkout; its converter is the stand-in."""
    folder = tmp_path / "llama.cpp"
    (folder / "gguf-py").mkdir(parents=True)
    (folder / "gguf-py" / "within_gguf_py.py").write_text("")
    (folder / "beside.py").write_text("")
    (folder / "convert_hf_to_gguf.py").write_text(STAND_IN)
    return folder


def save_foreign(folder: Path) -> Any:
    """A Llama under a name that llmfit's converter does not know."""
    model = save_model(folder, "Llama", {})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["SomeOtherForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.slow
def test_the_converter_of_a_checkout(checkout: Path, tmp_path: Path) -> None:
    """An unknown architecture runs through the checkout's converter, which the row says; the
    file is made once, and anew when the checkout or the type changes."""
    folder, cache = tmp_path / "foreign", tmp_path / "cache"
    model = save_foreign(folder)
    backend = get_backend("gguf:f32")
    refusal = backend.check(plan_of(folder, cache)).skipped or ""
    assert "SomeOtherForCausalLM" in refusal
    assert "--checkpoint gguf=FILE" in refusal
    assert "--llama-cpp DIR" in refusal
    plan = plan_of(folder, cache, llama_cpp_dir=str(checkout))
    assert backend.check(plan).skipped is None
    info = require_scores(plan, model)
    assert f"converted by the llama.cpp checkout {checkout}" in info.notes
    assert info.quantize_s is not None
    assert require_scores(plan, model).quantize_s is None
    log = checkout / "convert_hf_to_gguf.py.log"
    assert log.read_text().split() == ["f32"]
    require_scores(
        plan_of(folder, cache, "gguf:q8_0", llama_cpp_dir=str(checkout)), model, atol=0.5
    )
    (checkout / "conversion").mkdir()
    (checkout / "conversion" / "other.py").write_text("# a newer checkout\n")
    assert require_scores(plan, model).quantize_s is not None
    assert log.read_text().split() == ["f32"] * 3


@pytest.mark.slow
def test_a_checkout_is_used_for_known_architectures_too(checkout: Path, tmp_path: Path) -> None:
    """Who names a checkout gets its converter, whatever the model is."""
    folder = tmp_path / "llama"
    model = save_model(folder, "Llama", {})
    info = require_scores(plan_of(folder, tmp_path, llama_cpp_dir=str(checkout)), model)
    assert any("checkout" in note for note in info.notes)
    assert (checkout / "convert_hf_to_gguf.py.log").is_file()


def test_failures_of_a_checkout_are_told(checkout: Path, tmp_path: Path) -> None:
    """What the converter said last is in the error, whether it fails or writes nothing, and a
    folder without a converter is refused before anything is loaded."""
    folder = tmp_path / "foreign"
    save_foreign(folder)
    script = checkout / "convert_hf_to_gguf.py"
    target = tmp_path / "x.gguf"
    script.write_text("raise NotImplementedError('Model SomeOtherForCausalLM is not supported')")
    with pytest.raises(QuantizationError, match=r"exit code 1.*SomeOtherForCausalLM is not supp"):
        Checkout.at(str(checkout)).convert(folder, target, dtype="f16")
    script.write_text("print('nothing to do')")
    with pytest.raises(QuantizationError, match=r"wrote no file.*nothing to do"):
        Checkout.at(str(checkout)).convert(folder, target, dtype="f16")
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(QuantizationError, match="SIGKILL"):
        Checkout.at(str(checkout)).convert(folder, target, dtype="f16")
    script.unlink()
    for wrong in (checkout, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"convert_hf_to_gguf\.py"):
            Checkout.at(str(wrong))
        plan = plan_of(folder, tmp_path, llama_cpp_dir=str(wrong))
        assert str(wrong) in (get_backend("gguf").check(plan).unavailable or "")


def test_the_converter_ends_with_its_parent(tmp_path: Path) -> None:
    """A converter whose parent is gone does not run on."""
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import time; print('here', flush=True); time.sleep(60)")
    child = subprocess.Popen(
        [sys.executable, "-m", "llmfit.quantize.gguf_checkout", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    start = time.monotonic()
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    assert time.monotonic() - start < 30
    child.stdout.close()


# ---------------------------------------------------------------- llama.cpp's own converter


@pytest.fixture(scope="module")
def llama_cpp_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's sources, as llama-cpp-python's own source distribution holds them."""
    folder = tmp_path_factory.mktemp("sources")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command += ["--dest", str(folder), "llama-cpp-python==0.3.36"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"llama-cpp-python's sources cannot be downloaded: {done.stderr[-200:]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (sources,) = folder.glob("*/vendor/llama.cpp")
    return sources


def save_with_llama2_tokenizer(
    folder: Path, family: str, changes: dict[str, Any], shared_data: Path
) -> Any:
    """A model with a tokenizer that llama.cpp's converter recognises."""
    model = save_model(folder, family, changes | {"vocab_size": 32_000})
    for file in folder.glob("tokenizer*"):
        file.unlink()
    shutil.copy(shared_data / "tokenizers" / "llama2" / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return model


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "llama tied",
        "phi3",
        "phi3 longrope beyond the trained context",
        "gemma2",
        "gemma3 two ropes",
        "mixtral",
    ],
)
def test_tensors_equal_those_of_llama_cpp(
    case: str, llama_cpp_sources: Path, shared_data: Path, tmp_path: Path
) -> None:
    """llama.cpp's own converter writes the same tensors, bit for bit, and no metadata that
    contradicts ours but of the tokenizer and the name."""
    folder = tmp_path / "model"
    save_with_llama2_tokenizer(folder, *MODELS[case], shared_data)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    convert(folder, ours, dtype="f16")
    Checkout.at(str(llama_cpp_sources)).convert(folder, theirs, dtype="f16")
    readers = [gguf.GGUFReader(file) for file in (ours, theirs)]
    mine, other = ({t.name: t for t in reader.tensors} for reader in readers)
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert tensor.tensor_type == other[name].tensor_type, name
        np.testing.assert_array_equal(tensor.data, other[name].data, err_msg=name)
    said, meant = ({k: f.contents() for k, f in r.fields.items()} for r in readers)
    for key in said.keys() & meant.keys():
        if not key.startswith(("GGUF.", "tokenizer.", "general.name")):
            assert said[key] == pytest.approx(meant[key]), key


@pytest.mark.network
@pytest.mark.slow
def test_llama_cpp_converts_what_llmfit_cannot(
    llama_cpp_sources: Path, shared_data: Path, tmp_path: Path
) -> None:
    """A row of an architecture without converter here runs through a real checkout."""
    folder = tmp_path / "olmo2"
    config = transformers.Olmo2Config(**COMMON | {"vocab_size": 32_000, "pad_token_id": 0})
    torch.manual_seed(0)
    model = transformers.Olmo2ForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    plan = plan_of(folder, tmp_path, llama_cpp_dir=str(llama_cpp_sources))
    with pytest.raises(QuantizationError, match=r"(?i)pre-tokenizer"):
        get_backend(plan.backend).load(plan)  # of a tokenizer that was made for tests
    gemma = tmp_path / "gemma"
    model = save_with_llama2_tokenizer(gemma, "Gemma", {"head_dim": 16}, shared_data)
    info = require_scores(plan_of(gemma, tmp_path, llama_cpp_dir=str(llama_cpp_sources)), model)
    assert f"converted by the llama.cpp checkout {llama_cpp_sources}" in info.notes
