"""The GPTQ and AWQ rows: quality kept, odd shapes named, the cache used, checkpoints taken."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from llmfit.backends._hf import HfModel
from llmfit.backends.registry import get_backend
from llmfit.errors import LlmfitError, ModelLoadError, UsageError
from llmfit.models import data_path, resolve
from llmfit.records import ModelSpec, Plan

pytest.importorskip("gptqmodel")
pytest.importorskip("optimum")
transformers = pytest.importorskip("transformers")

METHODS = ("gptq", "awq")
IDS = torch.arange(10, 50).unsqueeze(0)
KERNELS = {"gptq": "TorchAtenLinear", "awq": "TorchAtenAwqLinear"}


def load(
    backend: str,
    model: ModelSpec,
    cache: Path,
    *,
    checkpoint: str | None = None,
    calibration_file: str | None = None,
) -> HfModel:
    plan = Plan(
        backend=backend,
        model=model,
        device="cpu",
        checkpoint=checkpoint,
        calibration_file=calibration_file,
        cache_dir=str(cache),
    )
    loaded = get_backend(backend).load(plan)
    assert isinstance(loaded, HfModel)
    return loaded


def loss(model: HfModel, texts: list[str]) -> float:
    """Mean negative log-likelihood per token, in nats, of texts cut at the context length."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([model.tokenizer.encode(text)[: model.context_length]])
            scores = model.model(ids).logits.float().log_softmax(-1)[0, :-1]
            total -= scores.gather(1, ids[0, 1:, None]).sum().item()
            count += ids.shape[1] - 1
    return total / count


def logits_of_plain_transformers(folder: str) -> torch.Tensor:
    """Logits of ``IDS`` in a process of its own that has never heard of llmfit."""
    code = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
with torch.inference_mode():
    torch.save(model(torch.tensor(eval(sys.argv[3]))).logits, sys.argv[2])
assert not any(name.startswith("llmfit") for name in sys.modules)
"""
    # On two cores GPTQModel's thread pool needs to be told to have two threads.
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2"}
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        subprocess.run(
            [sys.executable, "-c", code, folder, file.name, repr(IDS.tolist())],
            env=environment,
            check=True,
            capture_output=True,
        )
        return torch.load(file.name)


def documents(file: Path) -> list[str]:
    return [text.strip() for text in file.read_text().split("<|endoftext|>") if text.strip()]


@pytest.fixture(scope="module")
def cache(artifact_cache: Path) -> Path:
    """The whole run's: the embedded model is quantised for other tests too."""
    return artifact_cache


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The embedded model's first layer as a model of its own: real weights, made in seconds."""
    folder = tmp_path_factory.mktemp("models") / "first-layer"
    source = data_path("embedded")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return resolve(str(folder))


# ---------------------------------------------------------------- quality


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_embedded_model_keeps_its_quality(method: str, cache: Path) -> None:
    """On unseen text the embedded model's loss rises by less than 3 %, and it does change."""
    texts = documents(data_path("text.txt"))[:100]
    reference = loss(load("sdpa", resolve(None), cache), texts)
    row = load(method, resolve(None), cache)
    assert 0 < abs(loss(row, texts) / reference - 1) < 0.03
    assert row.info.kernel.linear == KERNELS[method]
    assert row.info.quantized_share is not None and row.info.quantized_share > 0.8
    assert row.info.weights_bytes is not None


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_odd_widths_stay_in_bf16_and_are_named(method: str, cache: Path, shared_data: Path) -> None:
    """Of stories260k (widths 64 and 172) only attention is quantised, and the row says so."""
    text = shared_data / "tinystories_sample.txt"
    spec = resolve(str(shared_data / "stories260k"))
    row = load(method, spec, cache, calibration_file=str(text))
    # 5 layers of q and o (64 × 64), k and v (64 × 32), of 260,032 parameters in all.
    assert row.info.quantized_share == pytest.approx(5 * 2 * (64 * 64 + 64 * 32) / 260_032)
    notes = " ".join(row.info.notes)
    assert "group size 64" in notes
    assert "mlp.gate_proj, mlp.up_proj, mlp.down_proj" in notes
    assert row.info.kernel.linear.startswith(KERNELS[method])
    reference = loss(load("sdpa", spec, cache), documents(text))
    assert 0 < abs(loss(row, documents(text)) / reference - 1) < 0.10
    assert row.info.artifact is not None
    with torch.inference_mode():
        assert torch.equal(row.model(IDS).logits, logits_of_plain_transformers(row.info.artifact))


# ---------------------------------------------------------------- cache and checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_second_load_is_served_from_the_cache(method: str, cache: Path, small: ModelSpec) -> None:
    """The first load quantises, the second takes the same artifact, and computes the same."""
    first = load(method, small, cache)
    second = load(method, small, cache)
    assert first.info.quantize_s is not None and first.info.quantize_s > 0
    assert second.info.quantize_s is None
    assert first.info.artifact == second.info.artifact is not None
    with torch.inference_mode():
        assert torch.equal(first.model(IDS).logits, second.model(IDS).logits)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["checkpoint", "model"])
def test_checkpoints_of_other_tools_load(
    method: str, way: str, cache: Path, small: ModelSpec, tmp_path: Path
) -> None:
    """A checkpoint with the old tools' config keys loads, as --checkpoint and as the model."""
    made = load(method, small, cache)
    assert made.info.artifact is not None
    folder = tmp_path / "old"
    shutil.copytree(made.info.artifact, folder)
    (folder / "quantize_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False,
                 "sym": True, "damp_percent": 0.01, "model_file_base_name": "model"},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
                "version": "gemm", "modules_to_not_convert": None},
    }[method]  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    if way == "checkpoint":
        row = load(method, small, tmp_path / "empty", checkpoint=str(folder))
    else:
        row = load(method, resolve(str(folder)), tmp_path / "empty")
    assert row.info.quantize_s is None
    assert "ready checkpoint: 4 bits, group size 128" in row.info.notes
    with torch.inference_mode():
        assert torch.equal(row.model(IDS).logits, made.model(IDS).logits)


@pytest.mark.slow
def test_wrong_checkpoints_are_refused(cache: Path, small: ModelSpec) -> None:
    """An unquantised checkpoint, one of the other method and one of another model are named."""
    made = load("gptq", small, cache).info.artifact
    wider = dataclasses.replace(small, hidden_size=512)
    cases: list[tuple[str, ModelSpec, str | None, type[LlmfitError], str]] = [
        ("gptq", small, small.path, UsageError, "says nothing"),
        ("awq", small, made, UsageError, "says gptq"),
        ("gptq", wider, made, ModelLoadError, "hidden_size is 256, .* has 512"),
    ]
    for backend, model, checkpoint, error, message in cases:
        with pytest.raises(error, match=message):
            load(backend, model, cache, checkpoint=checkpoint)


@pytest.mark.parametrize("method", METHODS)
def test_quantised_models_of_other_methods_are_skipped(method: str, small: ModelSpec) -> None:
    """A model that another method has quantised is no source for this row."""
    other = dataclasses.replace(small, quantization="bitsandbytes_4bit")
    check = get_backend(method).check(Plan(backend=method, model=other, device="cpu"))
    assert check.skipped is not None and "bitsandbytes_4bit" in check.skipped


@pytest.mark.slow
def test_importing_gptqmodel_leaves_the_process_as_it_was() -> None:
    """Environment, threads, default dtype and autograd are the same before and after.

    No folder is made under /tmp whose name everyone knows.
    """
    code = """
import os, sys, torch, transformers
made = []
sys.addaudithook(lambda event, said: made.append(str(said[0])) if event == "os.mkdir" else None)
def state():
    return (dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist())
before = state()
from llmfit.quantize._gptqmodel import import_gptqmodel
import_gptqmodel()
assert state() == before, [pair for pair in zip(before, state()) if pair[0] != pair[1]]
assert made and not any("tokenicer" in folder for folder in made), made
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
