"""Checkpoints as AutoGPTQ, AutoAWQ and GPTQModel wrote them load in our rows.

The old layouts are packed by ``packing`` from their definitions, so the dense model with the same
weights is a closed form, to which the rows' logits must come as close as bfloat16 allows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packing import Integers, awq_tensors, gptq_tensors, random_integers
from small_models import block_linears, difference, halves, llama, logits, write

from llmfit.backends._hf import HfModel
from llmfit.backends.registry import get_backend
from llmfit.errors import ModelLoadError
from llmfit.models import data_path, resolve
from llmfit.records import ModelSpec, Plan

pytest.importorskip("gptqmodel")
pytest.importorskip("optimum")
transformers = pytest.importorskip("transformers")

TOKENIZER = data_path("embedded")
ROUNDING = 0.03
"""Of the logits' spread. bfloat16 keeps 8 bits; a wrong zero or order moves logits by over 1."""
GPTQ = {"damp_percent": 0.01, "true_sequential": True}


def row(method: str, spec: ModelSpec, **options: Any) -> HfModel:
    plan = Plan(backend=method, model=spec, device="cpu", **options)
    backend = get_backend(method)
    assert backend.check(plan).skipped is None
    loaded = backend.load(plan)
    assert isinstance(loaded, HfModel)
    return loaded


def packed(method: str, **kind: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A dense float32 model, and the same model's tensors in the method's old layout."""
    model = llama()
    tensors: dict[str, torch.Tensor] = {}
    for seed, (name, layer) in enumerate(block_linears(model).items()):
        matrix: Integers = random_integers(layer.in_features, layer.out_features, seed=seed, **kind)
        layer.weight.data = torch.from_numpy(matrix.dense().T.copy())
        fields = gptq_tensors(matrix) if method == "gptq" else awq_tensors(matrix)
        tensors |= {f"{name}.{key}": torch.from_numpy(value) for key, value in fields.items()}
    own = {f"{name}.weight" for name in block_linears(model)}
    tensors |= {key: value for key, value in halves(model).items() if key not in own}
    return model, tensors


# ---------------------------------------------------------------- AutoGPTQ


@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("act_order", [False, True], ids=["plain", "act-order"])
@pytest.mark.parametrize(
    "bits", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (8, 3, 2))]
)
def test_autogptq_folders_load(bits: int, act_order: bool, sym: bool, tmp_path: Path) -> None:
    """quantize_config.json beside a config.json that says nothing, the file named as then."""
    group = 128
    model, tensors = packed("gptq", bits=bits, group=group, sym=sym, act_order=act_order)
    folder = write(
        tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER, quantization=None,
        name=f"gptq_model-{bits}bit-{group}g.safetensors",
    )  # fmt: skip
    said = {
        **GPTQ, "bits": bits, "group_size": group, "desc_act": act_order, "sym": sym,
        "static_groups": False, "model_name_or_path": None, "model_file_base_name": None,
    }  # fmt: skip
    (folder / "quantize_config.json").write_text(json.dumps(said))
    before = sorted(path.name for path in folder.iterdir())
    spec = resolve(str(folder))
    assert spec.quantization == "gptq"
    loaded = row("gptq", spec)
    assert difference(logits(loaded.model), logits(model)) < ROUNDING
    assert f"{bits} bits, group size 128" in " ".join(loaded.info.notes)
    assert sorted(path.name for path in folder.iterdir()) == before, "the folder stays as it was"


@pytest.mark.slow
@pytest.mark.parametrize("group", [32, -1])
def test_autogptq_config_without_format_loads(group: int, tmp_path: Path) -> None:
    """A quantization_config of before ``checkpoint_format`` means the first layout; any group."""
    model, tensors = packed("gptq", bits=4, group=group, sym=False, act_order=False)
    said = {**GPTQ, "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False,
            "sym": False}  # fmt: skip
    folder = write(tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER, quantization=said)
    loaded = row("gptq", resolve(str(folder)))
    assert difference(logits(loaded.model), logits(model)) < ROUNDING
    kernel = {32: "TorchAtenLinear", -1: "TorchLinear"}[group]
    assert loaded.info.kernel.linear == kernel


# ---------------------------------------------------------------- AutoAWQ


@pytest.mark.parametrize("place", ["beside", "inside"])
@pytest.mark.parametrize("group", [128, 64, -1])
def test_autoawq_folders_load(place: str, group: int, tmp_path: Path) -> None:
    """The GEMM layout, described by quant_config.json or by config.json."""
    model, tensors = packed("awq", bits=4, group=group, sym=False, act_order=False)
    inside = {"quant_method": "awq", "zero_point": True, "group_size": group, "bits": 4,
              "version": "gemm"}  # fmt: skip
    folder = write(
        tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER,
        quantization=inside if place == "inside" else None,
    )  # fmt: skip
    if place == "beside":
        said = {"zero_point": True, "q_group_size": group, "w_bit": 4, "version": "GEMM"}
        (folder / "quant_config.json").write_text(json.dumps(said))
    spec = resolve(str(folder))
    assert spec.quantization == "awq"
    loaded = row("awq", spec)
    assert difference(logits(loaded.model), logits(model)) < ROUNDING


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_layers_left_alone_are_seen_in_the_file(method: str, tmp_path: Path) -> None:
    """A layer that is stored unquantised is loaded so, though no config names it."""
    model, tensors = packed(method, bits=4, group=128, sym=True, act_order=False)
    name = "model.layers.1.mlp.down_proj"
    kept = block_linears(model)[name].weight
    kept.data = torch.randn_like(kept) * 0.02
    tensors = {key: value for key, value in tensors.items() if not key.startswith(name)}
    tensors[f"{name}.weight"] = kept.detach().to(torch.bfloat16)
    said = {"quant_method": method, "bits": 4, "group_size": 128, "zero_point": True}
    folder = write(tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER, quantization=said)
    loaded = row(method, resolve(str(folder)))
    assert type(loaded.model.get_submodule(name)) is torch.nn.Linear
    assert difference(logits(loaded.model), logits(model)) < ROUNDING


# ---------------------------------------------------------------- other rows, other layouts


def test_other_rows_say_why_they_are_skipped(tmp_path: Path) -> None:
    """An old folder is no source for the rows that quantise by themselves."""
    model, tensors = packed("awq", bits=4, group=128, sym=False, act_order=False)
    folder = write(tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER, quantization=None)
    (folder / "quant_config.json").write_text('{"w_bit": 4, "q_group_size": 128}')
    spec = resolve(str(folder))
    # Counted from the shape: the packed tensors say less.
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    for name in ("bf16", "nf4", "gptq", "gguf", "stored"):
        outcome = get_backend(name).check(Plan(backend=name, model=spec, device="cpu"))
        assert outcome.skipped is not None and "awq" in outcome.skipped


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin layout"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"}, "bitblas layout"),
        ({"quant_method": "gptq", "bits": 5}, "5 bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*up_proj": {"bits": 8}}}, "up_proj"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv layout"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv_fast"}, "gemv_fast layout"),
        ({"quant_method": "awq", "bits": 8, "version": "gemm"}, "8 bits"),
    ],
)
def test_unknown_layouts_are_refused_by_name(
    said: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """What no kernel here reads is named, with what to take instead, and never loaded as noise."""
    method = said["quant_method"]
    model, tensors = packed(method, bits=4, group=128, sym=True, act_order=False)
    folder = write(
        tmp_path / "odd", model, tensors, tokenizer_from=TOKENIZER,
        quantization={"group_size": 128, "desc_act": False, **said},
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match=says) as caught:
        row(method, resolve(str(folder)))
    assert caught.value.hint is not None and "unquantised" in caught.value.hint


def test_pickles_are_refused(tmp_path: Path) -> None:
    """A checkpoint in a .bin file is not read, and the message says which file and why."""
    model, tensors = packed("gptq", bits=4, group=128, sym=True, act_order=False)
    folder = write(tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER, quantization=None)
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.bin")
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    with pytest.raises(ModelLoadError, match=r"pickle \(gptq_model-4bit-128g\.bin\)"):
        row("gptq", resolve(str(folder)))


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    """A checkpoint that lacks a tensor is refused, where transformers would make one up."""
    model, tensors = packed("gptq", bits=4, group=128, sym=True, act_order=False)
    del tensors["model.layers.1.mlp.up_proj.scales"]
    said = {**GPTQ, "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    folder = write(tmp_path / "old", model, tensors, tokenizer_from=TOKENIZER, quantization=said)
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp\.up_proj\.scales"):
        row("gptq", resolve(str(folder)))


# ---------------------------------------------------------------- GPTQModel


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("partly", [False, True], ids=["all-layers", "dynamic"])
def test_gptqmodels_own_checkpoints_load(
    method: str, partly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What GPTQModel quantises and saves gives its own loader's logits, by either way in."""
    from llmfit.quantize._gptqmodel import import_gptqmodel

    monkeypatch.chdir(tmp_path)  # it writes logs into the folder that it runs in
    gptqmodel = import_gptqmodel()
    from gptqmodel.quantization import AWQConfig, GPTQConfig

    base = write(
        tmp_path / "base", llama(), halves(llama()), tokenizer_from=TOKENIZER, quantization=None
    )
    kind = {"gptq": GPTQConfig, "awq": AWQConfig}[method]
    settings = kind(
        bits=4,
        group_size=128,
        sym=method == "gptq",
        dynamic={r"-:.*layers\.1\.mlp\.down_proj$": {}} if partly else None,
        offload_to_disk_path=str(tmp_path / "offload"),
    )
    random = torch.Generator().manual_seed(0)
    sequences = [torch.randint(512, (64,), generator=random).tolist() for _ in range(8)]
    theirs = gptqmodel.GPTQModel.load(str(base), settings, device="cpu", dtype=torch.bfloat16)
    theirs.quantize(
        [{"input_ids": ids, "attention_mask": [1] * 64} for ids in sequences],
        backend=gptqmodel.BACKEND(f"{method}_torch"),
    )
    folder = tmp_path / "quantised"
    theirs.save(str(folder))
    for file in TOKENIZER.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())

    reference = gptqmodel.GPTQModel.load(str(folder), device="cpu", dtype=torch.bfloat16).model
    dense = logits(llama())
    ways = (
        row(method, resolve(str(folder))),
        row(method, resolve(str(base)), checkpoint=str(folder)),
    )
    for loaded in ways:
        assert difference(logits(loaded.model), logits(reference)) < 0.005
        assert 0.05 < difference(logits(loaded.model), dense) < 0.6, "it is quantised, and alike"
