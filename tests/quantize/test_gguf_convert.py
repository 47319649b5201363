"""The converter: llama.cpp computes, and tokenises, what transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import (
    COMMON,
    LLAMA3_ROPE,
    MODELS,
    TOLERANCE,
    YARN_ROPE,
    hf_logits,
    llama_logits,
    random_ids,
    save_model,
    save_tokenizer,
    tolerance,
)

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.quantize.gguf_convert import convert
from llmfit.quantize.gguf_shape import read_shape

pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("case", MODELS)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Every architecture, tied or not, biased or not, scaled or not, computes the same logits."""
    family, changes = MODELS[case]
    model = save_model(tmp_path, family, changes)
    convert(tmp_path, tmp_path / "m.gguf", dtype="f32")
    ids = random_ids()
    expected = hf_logits(model, ids)
    assert np.abs(expected).max() > 1
    found = llama_logits(tmp_path / "m.gguf", ids)
    np.testing.assert_allclose(found, expected, atol=tolerance(family))


def test_logits_of_a_trained_model(shared_data: Path, tmp_path: Path) -> None:
    """stories260k's logits over a story are those of transformers."""
    folder = shared_data / "stories260k"
    convert(folder, tmp_path / "m.gguf", dtype="f32")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer((shared_data / "tinystories_sample.txt").read_text())["input_ids"][:512]
    np.testing.assert_allclose(
        llama_logits(tmp_path / "m.gguf", ids), hf_logits(model, ids), atol=TOLERANCE
    )


def test_shards_and_older_configs_give_the_same_file(tmp_path: Path) -> None:
    """A sharded checkpoint whose config has rope_theta and rope_scaling converts to equal bytes."""
    one, many = tmp_path / "one" / "m", tmp_path / "many" / "m"
    model = save_model(one, "Llama", {"rope_parameters": LLAMA3_ROPE})
    model.save_pretrained(many, max_shard_size="100KB")
    save_tokenizer(many)
    assert (many / "model.safetensors.index.json").is_file()
    config = json.loads((many / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (many / "config.json").write_text(json.dumps(config))
    for folder in (one, many):
        convert(folder, folder / "m.gguf", dtype="bf16")
    ids = list(range(1, 65))
    np.testing.assert_array_equal(
        llama_logits(one / "m.gguf", ids), llama_logits(many / "m.gguf", ids)
    )


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_types_hold_the_rounded_weights(dtype: Any, tmp_path: Path) -> None:
    """Matrices of the file are the checkpoint's, rounded to the type; vectors stay float32."""
    import gguf

    model = save_model(tmp_path, "Qwen3", {})
    convert(tmp_path, tmp_path / "m.gguf", dtype=dtype)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    down = tensors["blk.1.ffn_down.weight"]
    assert down.tensor_type.name == dtype.upper()
    values = gguf.quants.dequantize(down.data, down.tensor_type)
    torch_type = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    expected = model.model.layers[1].mlp.down_proj.weight.to(torch_type).float()
    np.testing.assert_array_equal(values, expected.detach().numpy())
    assert tensors["blk.1.attn_q_norm.weight"].tensor_type.name == "F32"


def test_progress_counts_tensors(tmp_path: Path) -> None:
    """Progress runs from 1 to the number of tensors."""
    save_model(tmp_path, "Llama", {})
    seen: list[tuple[str, int, int]] = []
    conversion = convert(
        tmp_path, tmp_path / "m.gguf", dtype="f16", progress=lambda *call: seen.append(call)
    )
    count = conversion.tensors
    assert seen == [("convert", done, count) for done in range(1, count + 1)]


def test_sliding_window_limits_the_context(tmp_path: Path) -> None:
    """Where attention slides, the file's context is the window, and a note says so."""
    save_model(tmp_path, "Mistral", {"sliding_window": 32})
    shape = read_shape(tmp_path)
    assert shape.context_length == 32
    assert "window of 32" in shape.notes[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM.*Qwen3ForCausalLM"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """An unsupported model is an error that names what is unsupported, not a wrong file."""
    save_model(tmp_path, "Llama", {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelLoadError, match=named):
        convert(tmp_path, tmp_path / "m.gguf", dtype="f32")


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping None"),
        ("gemma2", {"tie_word_embeddings": False}, "output matrix"),
        ("gemma2", {"hidden_activation": "silu"}, "silu"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50"),
        ("gemma3", {"use_bidirectional_attention": True}, "later tokens"),
        ("gemma3", {"sliding_window": None}, "sliding_window None"),
        ("phi3", {"head_dim": 32}, "4 heads of 32"),
        ("phi3", {"rope_parameters": YARN_ROPE}, "yarn"),
        ("mixtral", {"num_local_experts": 8}, "4 experts.*8"),
    ],
)
def test_what_a_graph_computes_in_another_way_is_refused(
    case: str, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """Settings that llama.cpp takes for granted, or does not know, are named where they differ."""
    save_model(tmp_path, *MODELS[case])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelLoadError, match=named):
        convert(tmp_path, tmp_path / "m.gguf", dtype="f32")


def test_query_scale_of_published_gemmas(shared_data: Path, tmp_path: Path) -> None:
    """A published Gemma-2 divides queries by √224, llama.cpp by √256: the file makes it up, and
    a 27B shape, for which llama.cpp takes the width per head, needs nothing."""
    folder = shared_data / "configs" / "google--gemma-2-9b-it"
    shape = read_shape(folder)
    assert shape.query_factor == pytest.approx((256 / 224) ** 0.5)
    assert "224" in shape.notes[0]
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 46, "hidden_size": 4608, "num_attention_heads": 32}
    config |= {"head_dim": 128, "query_pre_attn_scalar": 144, "layer_types": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path).query_factor == 1.0


def test_older_configs_of_phi3_give_the_same_file(tmp_path: Path) -> None:
    """Phi-3's scaling under the name that its first checkpoints have means the same."""
    save_model(tmp_path, *MODELS["phi3 longrope beyond the trained context"])
    convert(tmp_path, tmp_path / "new.gguf", dtype="bf16")
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {
            "type": "su",
            "long_factor": rope["long_factor"],
            "short_factor": rope["short_factor"],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert(tmp_path, tmp_path / "old.gguf", dtype="bf16")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_older_configs_of_gemma3_give_the_same_file(tmp_path: Path) -> None:
    """Configs from before transformers 5, with their defaults left out, mean the same."""
    changes = MODELS["gemma3 two ropes"][1]
    ropes = {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    changes = changes | {"rope_parameters": changes["rope_parameters"] | ropes}
    save_model(tmp_path, "Gemma3", changes)
    convert(tmp_path, tmp_path / "new.gguf", dtype="bf16")
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "layer_types", "tie_word_embeddings", "rms_norm_eps"):
        del config[key]
    config |= {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "sliding_window_pattern": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert(tmp_path, tmp_path / "old.gguf", dtype="bf16")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_the_language_model_of_a_multimodal_gemma3(tmp_path: Path) -> None:
    """Of Gemma 3 with a vision tower the language model is converted, which a note says."""
    text = COMMON | MODELS["gemma3"][1]
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    conversion = convert(tmp_path, tmp_path / "m.gguf", dtype="f32")
    assert "multimodal" in conversion.notes[0]
    ids = random_ids()
    found = llama_logits(tmp_path / "m.gguf", ids)
    np.testing.assert_allclose(found, hf_logits(model, ids), atol=tolerance("Gemma3"))


def test_qwen3_output_bias_is_refused(tmp_path: Path) -> None:
    """Qwen3 with attention_bias has a bias that llama.cpp does not add: an error names it."""
    save_model(tmp_path, "Qwen3", {"attention_bias": True})
    with pytest.raises(ModelLoadError, match=r"o_proj\.bias"):
        convert(tmp_path, tmp_path / "m.gguf", dtype="f32")


def test_float16_overflow_is_refused(tmp_path: Path) -> None:
    """A weight beyond 65504 is an error in f16, and no infinity in the file."""
    model = save_model(tmp_path, "Llama", {})
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="float16"):
        convert(tmp_path, tmp_path / "m.gguf", dtype="f16")


def test_missing_files_are_named(tmp_path: Path) -> None:
    """No config.json, no weights, no tokenizer: each is named."""
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        convert(tmp_path, tmp_path / "m.gguf", dtype="f32")
    save_model(tmp_path, "Llama", {})
    for name, error in (("tokenizer.json", ModelLoadError), ("model.safetensors", ModelNotFound)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(error, match=name.rpartition(".")[2]):
            convert(tmp_path, tmp_path / "m.gguf", dtype="f32")
        (tmp_path / name).write_bytes(content)
