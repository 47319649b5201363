"""Synthetic weights: random values in the layout of real ones, and nothing that would need text."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import write

from llmfit import Deployer
from llmfit.backends._hf import HfModel, load_causal_lm
from llmfit.backends._synthetic import Noise, NoTokenizer, spread
from llmfit.backends.registry import get_backend
from llmfit.errors import ModelLoadError, TaskUnavailable, UsageError
from llmfit.models import data_path, resolve
from llmfit.records import EvaluationSettings, ModelSpec, Plan, Workload
from llmfit.runner.isolate import run_isolated

PLAIN = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 256,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": PLAIN,
    "qwen2": {**PLAIN, "tie_word_embeddings": True},  # biases, a tied head
    "qwen2_moe": {**PLAIN, **EXPERTS},  # experts fused into one parameter
    "gemma2": {**PLAIN, "head_dim": 64, "tie_word_embeddings": True},  # no fused attention
    "gpt2": {"vocab_size": 512, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 128},
}  # fmt: skip
UNQUANTISED = [("bf16", name) for name in MODELS] + [("sdpa", "qwen2"), ("compiled", "llama")]
IDS = torch.arange(1, 40).unsqueeze(0)  # [1, 39]


def config_folder(folder: Path, model_type: str, **changes: Any) -> Path:
    """A folder with nothing but a config.json."""
    folder.mkdir(parents=True)
    kind = transformers.AutoConfig.for_model(model_type, **{**MODELS[model_type], **changes})
    architecture = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(kind)].__name__
    config = {**kind.to_dict(), "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def real_folder(folder: Path, model_type: str) -> Path:
    """The same model with weights as transformers initialises them, and a tokenizer."""
    config = transformers.AutoConfig.from_pretrained(config_folder(folder / "c", model_type))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    tensors = {name: each for name, each in model.state_dict().items() if name not in tied}
    return write(
        folder / "m", model, tensors, tokenizer_from=data_path("embedded"), quantization=None
    )


def load(backend: str, spec: ModelSpec, **facts: Any) -> HfModel:
    plan = Plan(backend=backend, model=spec, device="cpu", threads=1, **facts)
    loaded = get_backend(backend).load(plan)
    assert isinstance(loaded, HfModel)
    return loaded


def synthetic(backend: str, folder: Path, **facts: Any) -> HfModel:
    return load(backend, resolve(str(folder)), weights="synthetic", **facts)


def layout(model: Any) -> dict[str, tuple[object, ...]]:
    """What is in memory, without its values: class of every module, type and shape of tensors.

    bitsandbytes' statistics and the tensors that GPTQModel keeps beside its buffers are included.
    """
    found: dict[str, tuple[object, ...]] = {}
    for name, module in model.named_modules():
        found[name] = (type(module).__name__, module.training)
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            found[f"{kind} {name}"] = described(tensor)
            found[f"statistics {name}"] = (described(getattr(tensor, "SCB", None)),)
            state = getattr(tensor, "quant_state", None)
            if state is not None:
                found[f"state {name}"] = (
                    described(state.absmax), described(state.code), state.shape, state.dtype,
                    state.blocksize, state.quant_type, state.nested,
                )  # fmt: skip
    return found


def described(tensor: torch.Tensor | None) -> tuple[object, ...]:
    if tensor is None:
        return ()
    return (type(tensor).__name__, tensor.dtype, tuple(tensor.shape), tensor.device.type,
            tensor.requires_grad)  # fmt: skip


def facts(model: HfModel) -> tuple[object, ...]:
    info = model.info
    kernel = (info.kernel.linear, info.kernel.attention)
    return kernel, info.dtype, info.weights_bytes, info.quantized_share


def require_same_model(made: HfModel, real: HfModel) -> None:
    """The same modules, tensors, bytes and kernels, before and after a token was run."""
    assert layout(made.model) == layout(real.model)
    assert facts(made) == facts(real)
    for each in (made, real):
        with torch.inference_mode():
            logits = each.model(IDS, use_cache=False).logits
        assert torch.isfinite(logits).all()
    assert layout(made.model) == layout(real.model)


def require_decodes(model: HfModel) -> None:
    """Greedy decoding gives the tokens that whole passes over the growing text find likeliest."""
    decoder = model.decoder(batch=1, capacity=16)
    decoder.prefill([[5, 6, 7, 8]])
    tokens = [5, 6, 7, 8, *decoder.tokens()]
    for _ in range(4):
        decoder.step()
        tokens += decoder.tokens()
    decoder.close()
    with torch.inference_mode():
        logits = model.model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0].float()
    for place in range(4, len(tokens)):
        best = logits[place - 1].max()
        # Steps and one pass round differently: the token is the best, or as good as that.
        assert logits[place - 1, tokens[place]] >= best - 0.05


def spread_of(layer: Any) -> float:
    """Standard deviation of a linear layer's weights, as its own kernel applies them."""
    with torch.inference_mode():
        weights = layer(torch.eye(layer.in_features, dtype=torch.bfloat16)).float()
    assert abs(weights.mean()) < 0.1 * weights.std()
    return float(weights.std())


# ---------------------------------------------------------------- the same as real weights


@pytest.mark.parametrize(("backend", "model_type"), UNQUANTISED)
def test_unquantised_layout_is_that_of_real_weights(
    backend: str, model_type: str, tmp_path: Path
) -> None:
    """From a config alone come the modules, tensors and bytes that loading weights gives."""
    made = synthetic(backend, config_folder(tmp_path / "config", model_type))
    real = load(backend, resolve(str(real_folder(tmp_path / "real", model_type))))
    require_same_model(made, real)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("backend", ["int8", "nf4", "nf4:double"])
def test_bitsandbytes_layout_is_that_of_real_weights(
    backend: str, model_type: str, tmp_path: Path
) -> None:
    """The packed tensors and their statistics are those that quantising real weights gives."""
    pytest.importorskip("bitsandbytes")
    made = synthetic(backend, config_folder(tmp_path / "config", model_type))
    real = load(backend, resolve(str(real_folder(tmp_path / "real", model_type))))
    assert made.info.quantized_share is not None and made.info.quantized_share > 0.2
    require_same_model(made, real)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["gptq", "awq"])
def test_gptqmodel_layout_is_that_of_real_weights(
    backend: str, embedded: ModelSpec, tmp_path: Path
) -> None:
    """Packed tensors and kernel are those of a model quantised by GPTQModel.

    It is the embedded model's first layer.
    """
    pytest.importorskip("gptqmodel")
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.bfloat16)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    model.save_pretrained(tmp_path / "real")
    transformers.AutoTokenizer.from_pretrained(embedded.path).save_pretrained(tmp_path / "real")
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "real" / "config.json").read_bytes())
    made = synthetic(backend, folder)
    real = load(backend, resolve(str(tmp_path / "real")), cache_dir=str(tmp_path / "cache"))
    require_same_model(made, real)
    assert set(real.info.notes) <= set(made.info.notes)


@pytest.mark.parametrize("backend", ["gptq", "awq"])
def test_gptqmodel_layers_with_biases_and_odd_widths(backend: str, tmp_path: Path) -> None:
    """Layers that do not divide stay in bf16 and are named; biases are zero-centred, not noise.

    Widths of 256 and 516: q, k, v and o are quantised, the MLP is not.
    """
    pytest.importorskip("gptqmodel")
    folder = config_folder(tmp_path / "config", "qwen2", intermediate_size=516)
    made = synthetic(backend, folder)
    attention, mlp = made.model.model.layers[0].self_attn, made.model.model.layers[0].mlp
    assert type(attention.q_proj).__name__ == type(attention.o_proj).__name__ != "Linear"
    assert type(mlp.up_proj).__name__ == type(mlp.down_proj).__name__ == "Linear"
    assert "mlp.gate_proj, mlp.up_proj, mlp.down_proj" in " ".join(made.info.notes)
    assert attention.q_proj.bias.abs().max() < 0.1
    require_decodes(made)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("backend", ["bf16", "int8", "nf4", "nf4:double", "gptq", "awq"])
def test_weights_have_the_spread_that_they_were_made_for(backend: str, tmp_path: Path) -> None:
    """What a layer multiplies by, read off by its own kernel, has spread 0.5 ÷ √inputs.

    So the scales of every format stand for the same weights, and logits are of order one.
    """
    pytest.importorskip({"gptq": "gptqmodel", "awq": "gptqmodel"}.get(backend, "bitsandbytes"))
    made = synthetic(backend, config_folder(tmp_path / "config", "llama"))
    layer = made.model.model.layers[1]
    for linear in (layer.self_attn.q_proj, layer.mlp.down_proj):
        assert spread_of(linear) == pytest.approx(0.5 / math.sqrt(linear.in_features), rel=0.1)
    with torch.inference_mode():
        logits = made.model(IDS).logits.float()
    assert 0.1 < logits.std() < 2
    require_decodes(made)


def test_rows_differ_and_a_seed_makes_the_same_tensors() -> None:
    """Though a block is repeated, no two rows are equal; another seed makes other tensors."""

    def made(seed: int) -> list[torch.Tensor]:
        noise = Noise(device="cpu", seed=seed)
        return [
            noise.normal((1024, 4096), torch.bfloat16, spread(4096))[...],
            noise.nibbles((1024, 512), torch.int32, 1, 15)[...],
            noise.integers((1024, 4096), torch.int8, -127, 127)[...],
            noise.nibbles((1024, 4096), torch.uint8, 0, 15)[...],
        ]

    first, again, other = made(0), made(0), made(1)
    for tensor, same, different in zip(first, again, other, strict=True):
        assert torch.equal(tensor, same)
        assert not torch.equal(tensor, different)
        assert len(torch.unique(tensor.view(torch.uint8), dim=0)) == len(tensor)


def test_packed_fields_stay_in_their_range() -> None:
    """Every 4-bit field of a packed word is in the range asked for, and each value occurs."""
    words = Noise(device="cpu", seed=0).nibbles((1000, 8), torch.int32, 1, 15)[...]
    fields = torch.stack([words >> shift & 15 for shift in range(0, 32, 4)])
    assert set(fields.unique().tolist()) == set(range(1, 16))


# ---------------------------------------------------------------- no files, no text


@pytest.mark.slow
def test_a_row_of_a_catalogue_model_is_measured_and_not_scored(tmp_path: Path) -> None:
    """SmolLM2-135M, of which nothing is here: timed in a worker, no quality, and a note says so.

    Its published count is 134,515,008 parameters. The peak of memory stays below a bf16 copy of
    the weights that NF4 packs: 106,168,320 in linear layers at 2 bytes, 0.5625 packed.
    """
    pytest.importorskip("bitsandbytes")
    spec = resolve("HuggingFaceTB/SmolLM2-135M", weights=False)
    assert spec.source == "catalogue" and spec.parameters == 134_515_008
    plan = Plan(
        backend="nf4",
        model=spec,
        device="cpu",
        threads=1,
        weights="synthetic",
        workload=Workload(prompt_tokens=8, new_tokens=4, repeats=1, warmup=0),
        evaluation=EvaluationSettings(limit=2),
    )
    record = run_isolated(plan, log_path=tmp_path / "row.log")
    assert record.status == "ok", record.reason
    assert record.decode is not None and record.hellaswag is None and record.perplexity is None
    assert any("synthetic weights" in note and "quality" in note for note in record.notes)
    linear, other = 106_168_320, 134_515_008 - 106_168_320
    assert record.weights_bytes == pytest.approx(0.5625 * linear + 2 * other, rel=0.001)
    assert record.memory is not None and record.memory.peak_bytes is not None
    assert record.memory.peak_bytes < 2 * linear + 2 * other


def test_text_and_quality_are_refused(tmp_path: Path) -> None:
    """Random weights neither continue a text nor are scored, and the error says why."""
    folder = str(config_folder(tmp_path / "config", "llama"))
    with Deployer(folder, backend="sdpa", device="cpu", weights="synthetic") as deployed:
        with pytest.raises(UsageError, match="synthetic weights are random"):
            deployed.generate("Once")
        with pytest.raises(TaskUnavailable, match="synthetic"):
            deployed.evaluate()
        assert any("synthetic" in note for note in deployed.info.notes)
        timing = deployed.benchmark(Workload(prompt_tokens=8, new_tokens=4, repeats=2))
        assert timing.decode.tokens_per_s.median > 0


def test_there_is_no_tokenizer() -> None:
    """A synthetic model's tokenizer has no special tokens and refuses text both ways."""
    tokenizer = NoTokenizer()
    assert tokenizer.bos_id is None and tokenizer.eos_id is None
    with pytest.raises(UsageError, match="synthetic"):
        tokenizer.encode("Once")
    with pytest.raises(UsageError, match="synthetic"):
        tokenizer.decode([1])


def test_wrong_use_is_refused(tmp_path: Path, embedded: ModelSpec) -> None:
    """Wrong words and a checkpoint beside synthetic are refused; real weights never stand in."""
    with pytest.raises(UsageError, match="known are real, synthetic"):
        Deployer(weights="random")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weights of its own"):
        Deployer(backend="gptq", checkpoint=str(tmp_path), weights="synthetic")
    plan = Plan(backend="hqq", model=embedded, device="cpu", weights="synthetic")
    with pytest.raises(ModelLoadError, match="row hqq makes no synthetic weights"):
        load_causal_lm(embedded.path, plan, attention="sdpa")
    stored = dataclasses.replace(embedded, quantization="fp8")
    for backend in ("bf16", "gptq", "stored"):
        plan = Plan(backend=backend, model=stored, device="cpu", weights="synthetic")
        outcome = get_backend(backend).check(plan)
        assert outcome.skipped is not None and "synthetic weights" in outcome.skipped
