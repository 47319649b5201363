"""The row ``stored``: formats that transformers reads by itself, run with the weights they mean."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import (
    IDS,
    block_linears,
    difference,
    halves,
    llama,
    logits,
    write,
    write_fp8,
)

from llmfit.backends._hf import HfModel
from llmfit.backends.registry import BACKENDS, ON_REQUEST, default_backends, get_backend
from llmfit.backends.stored import OWN_ROWS
from llmfit.decode.base import Window
from llmfit.errors import BackendUnavailable, UsageError
from llmfit.models import data_path, resolve
from llmfit.records import ModelSpec, Plan

transformers = pytest.importorskip("transformers")

TOKENIZER = data_path("embedded")
ROUNDING = 0.03
"""Of the logits' spread, as in test_old_layouts."""


def row(spec: ModelSpec, **options: Any) -> HfModel:
    plan = Plan(backend="stored", model=spec, device="cpu", **options)
    backend = get_backend("stored")
    assert backend.check(plan).skipped is None and backend.check(plan).unavailable is None
    backend.prepare(plan)
    loaded = backend.load(plan)
    assert isinstance(loaded, HfModel)
    return loaded


# ---------------------------------------------------------------- FP8 in blocks


def test_fp8_checkpoint_as_the_model(tmp_path: Path) -> None:
    """An FP8 model is a row, whose notes say that a CPU runs it unpacked."""
    model = llama()
    folder = write_fp8(tmp_path / "fp8", model, tokenizer_from=TOKENIZER)
    loaded = row(resolve(str(folder)))
    assert difference(logits(loaded.model), logits(model)) < ROUNDING
    assert loaded.info.kernel.linear == "Linear" and loaded.info.quantized_share == 0.0
    notes = " ".join(loaded.info.notes)
    linear = sum(layer.weight.numel() for layer in block_linears(model).values())
    share = linear / sum(parameter.numel() for parameter in model.parameters())
    assert f"{100 * share:.1f} % of parameters stored as fp8" in notes
    assert "unpacked to bfloat16" in notes and "only the weights are rounded" in notes


def test_fp8_checkpoint_beside_its_model(tmp_path: Path) -> None:
    """``--checkpoint stored=FOLDER`` gives the same row next to the unquantised model's."""
    base = write(
        tmp_path / "base", llama(), halves(llama()), tokenizer_from=TOKENIZER, quantization=None
    )
    model = llama()
    folder = write_fp8(tmp_path / "fp8", model, tokenizer_from=TOKENIZER)
    loaded = row(resolve(str(base)), checkpoint=str(folder))
    assert difference(logits(loaded.model), logits(model)) < ROUNDING
    with pytest.raises(UsageError, match="says nothing"):
        row(resolve(str(base)), checkpoint=str(base))


# ---------------------------------------------------------------- compressed-tensors


def compressed(folder: Path, preset: str) -> Path:
    """A checkpoint that the compressed-tensors library rounded, compressed and described."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = llama().to(torch.bfloat16)
    settings = QuantizationConfig(
        config_groups={"group_0": preset_name_to_scheme(preset, ["Linear"])},
        ignore=["lm_head"],
        quantization_status="compressed",
    )
    apply_quantization_config(model, settings)
    for layer in block_linears(model).values():
        how = layer.quantization_scheme.weights
        width = how.group_size or layer.in_features
        groups = layer.weight.data.reshape(layer.out_features, -1, width)
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), how)
        layer.weight_scale.data = scale.to(torch.bfloat16)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def dense_of(folder: Path) -> Any:
    """The float32 model that a symmetric compressed-tensors file means, by the format's definition.

    ``weight`` × ``weight_scale`` by row; or ``weight_packed``, whose int32 hold values of b bits
    from the lowest, each more by 2^(b−1), × ``weight_scale`` by group.
    """
    from safetensors.torch import load_file

    model, stored = llama(), load_file(folder / "model.safetensors")
    for name, layer in block_linears(model).items():
        scale = stored[f"{name}.weight_scale"].float()
        if f"{name}.weight" in stored:
            layer.weight.data = stored[f"{name}.weight"].float() * scale
            continue
        packed = stored[f"{name}.weight_packed"].to(torch.int64) % 2**32
        fields = layer.in_features // packed.shape[1]
        bits = 32 // fields
        shifts = torch.arange(fields) * bits
        codes = (packed[:, :, None] >> shifts) % 2**bits - 2 ** (bits - 1)
        groups = codes.reshape(*scale.shape, -1).float() * scale[:, :, None]
        layer.weight.data = groups.reshape(layer.weight.shape)
    return model


@pytest.mark.parametrize(
    ("preset", "least", "most"),
    [
        ("W4A16", 0.0, ROUNDING),
        ("W8A16", 0.0, ROUNDING),
        # Activations are rounded too, to 8 bits with a scale a token, which the dense model's
        # are not: 3 bits of mantissa, or 127 steps.
        ("FP8_DYNAMIC", 0.02, 0.10),
        ("W8A8", 0.01, 0.04),
    ],
)
def test_compressed_tensors(preset: str, least: float, most: float, tmp_path: Path) -> None:
    """Packed and plain layouts run with the weights that the file means, and its activations."""
    folder = compressed(tmp_path / "ct", preset)
    spec = resolve(str(folder))
    assert spec.quantization == "compressed-tensors"
    loaded = row(spec)
    found = difference(logits(loaded.model), logits(dense_of(folder)))
    assert least < found < most
    assert difference(logits(loaded.model), logits(llama())) > found, "it is quantised"
    assert "stored as compressed-tensors" in " ".join(loaded.info.notes)
    assert loaded.info.quantized_share == 0.0


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without compressed-tensors the row says which line installs it, by either way in."""
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)  # as if it were not there
    spec = spec_of(tmp_path / "m", {"quant_method": "compressed-tensors"})
    outcome = get_backend("stored").check(Plan(backend="stored", model=spec, device="cpu"))
    assert outcome.unavailable is not None and "pip install 'llmfit[stored]'" in outcome.unavailable
    plan = Plan(backend="stored", model=spec_of(tmp_path / "b", None), device="cpu",
                checkpoint=spec.path)  # fmt: skip
    with pytest.raises(BackendUnavailable, match="compressed-tensors"):
        get_backend("stored").load(plan)


# ---------------------------------------------------------------- MXFP4


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def mxfp4(folder: Path) -> tuple[Path, Path]:
    """A tiny gpt-oss with experts in MXFP4, and the folder of the same weights in bfloat16.

    32 values of E2M1 (sign in the highest bit) share a power of two, stored more by 127; two
    values to a byte, the first in the low half. Source: OCP Microscaling Formats 1.0, 2023.
    """
    config = transformers.GptOssConfig(
        vocab_size=512, hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=8, max_position_embeddings=128,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
        architectures=["GptOssForCausalLM"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config).eval()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    dense = halves(model)
    stored = dict(dense)
    for name in [key for key in dense if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = dense[name].shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32))
        power = torch.randint(120, 123, (experts, outputs, inputs // 32))
        weights = values[codes] * torch.exp2(power.float() - 127)[..., None]
        dense[name] = weights.reshape(experts, outputs, inputs).transpose(1, 2).bfloat16()
        del stored[name]
        stored[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = power.to(torch.uint8)
    said = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"
        ],
    }  # fmt: skip
    kind: dict[str, Any] = {"tokenizer_from": TOKENIZER}
    return (
        write(folder / "mxfp4", model, stored, quantization=said, **kind),
        write(folder / "dense", model, dense, quantization=None, **kind),
    )


def test_mxfp4_with_sinks_and_experts(tmp_path: Path) -> None:
    """gpt-oss: logits of the dense weights, to the bit; decode as generate; scores as forward."""
    folder, dense = mxfp4(tmp_path)
    loaded = row(resolve(str(folder)))
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        dense, dtype=torch.bfloat16, attn_implementation="eager"
    )
    wanted = logits(reference)
    assert torch.equal(logits(loaded.model), wanted)
    assert "stored as mxfp4" in loaded.info.notes[0]

    prompt = IDS[:, :20]  # longer than the sliding window
    decoder = loaded.decoder(batch=1, capacity=64)
    decoder.prefill(prompt.tolist())
    ours = decoder.tokens()
    for _ in range(23):
        decoder.step()
        ours += decoder.tokens()
    decoder.close()
    theirs = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    assert ours == theirs[0, 20:].tolist()

    ids = tuple(IDS[0].tolist())
    (score,) = loaded.score([Window(ids, 1)], batch_tokens=512)
    expected = wanted.log_softmax(-1)[:-1].gather(1, IDS[0, 1:, None])[:, 0]
    assert torch.allclose(torch.tensor(score.logprobs), expected, atol=1e-5)


# ---------------------------------------------------------------- which rows a model has


def spec_of(folder: Path, said: dict[str, Any] | None, **beside: dict[str, Any]) -> ModelSpec:
    write(folder, llama(), {}, tokenizer_from=TOKENIZER, quantization=said)
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return resolve(str(folder))


def test_an_ordinary_model_has_eight_rows(embedded: ModelSpec) -> None:
    """``stored`` is no row of an unquantised model, and says so when it is asked for."""
    assert default_backends(embedded) == tuple(
        name for name in BACKENDS if name not in (*ON_REQUEST, "stored", "offload")
    )
    outcome = get_backend("stored").check(Plan(backend="stored", model=embedded, device="cpu"))
    assert outcome.skipped is not None and "not stored quantised" in outcome.skipped


@pytest.mark.parametrize("method", ["compressed-tensors", "fp8", "mxfp4"])
def test_a_stored_model_has_its_row_first(method: str, tmp_path: Path) -> None:
    """The model's own row leads; every other one names the format as its reason."""
    spec = spec_of(tmp_path / "m", {"quant_method": method})
    first, *others = default_backends(spec)
    assert first == "stored" and len(others) == 8
    for name in others:
        outcome = get_backend(name).check(Plan(backend=name, model=spec, device="cpu"))
        assert outcome.skipped is not None and method in outcome.skipped


def test_methods_with_rows_of_their_own() -> None:
    """Each row that ``stored`` points to does load that method."""
    for method, name in OWN_ROWS.items():
        assert method in get_backend(name).loads_quantized
        assert method not in get_backend("stored").loads_quantized


@pytest.mark.parametrize(
    ("said", "beside", "method"),
    [
        ({"quant_method": "quanto", "weights": "int8"}, {}, "quanto"),
        ({"quant_method": "hqq"}, {}, "hqq"),
        ({"quant_method": "nobodys"}, {}, "nobodys"),
        ({"bits": 3}, {}, "unknown"),
        (None, {"hf_quant_config": {"quantization": {"quant_algo": "NVFP4"}}}, "modelopt"),
    ],
)
def test_other_formats_are_refused_by_name(
    said: dict[str, Any] | None, beside: dict[str, Any], method: str, tmp_path: Path
) -> None:
    """A format without a row is named, with what is loaded and what to take instead."""
    spec = spec_of(tmp_path / "m", said, **beside)
    assert spec.quantization == method
    outcome = get_backend("stored").check(Plan(backend="stored", model=spec, device="cpu"))
    assert outcome.skipped is not None
    assert method in outcome.skipped and "unquantised model" in outcome.skipped
    assert "compressed-tensors, fp8, mxfp4" in outcome.skipped
