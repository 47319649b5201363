"""The converter: llama.cpp computes, and tokenises, what transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.quantize.gguf_convert import convert
from llmfit.quantize.gguf_shape import read_shape

llama_cpp = pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")

# Both sides compute in float32, in another order of sums; logits here span about ±10.
TOLERANCE = 2e-3
# llama.cpp looks Gemma's GELU up in a table of float16 values.
GELU_TOLERANCE = 5e-3

COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
# For texts of 200 tokens: 6 of a head's 8 frequencies turn, in two stretches of the rope.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 12.0],
}
PHI3 = {"pad_token_id": 0, "eos_token_id": 0, "original_max_position_embeddings": 256}
PHI3_LONG = PHI3 | {
    "rope_parameters": LONGROPE,
    "partial_rotary_factor": 0.75,
    "max_position_embeddings": 1024,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
GEMMA3_ROPE = {
    "full_attention": LINEAR_ROPE | {"rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 8_000.0},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama untied, no grouped queries": ("Llama", {"num_key_value_heads": 4}),
    "llama head size apart": ("Llama", {"head_dim": 32}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "yarn rope": ("Llama", {"rope_parameters": YARN_ROPE}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral head size apart": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN_ROPE}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied, head size apart": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "phi3": ("Phi3", PHI3),
    "phi3 tied, no grouped queries": (
        "Phi3",
        PHI3 | {"tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "phi3 longrope within the trained context": ("Phi3", PHI3_LONG),
    "phi3 longrope beyond the trained context": (
        "Phi3",
        PHI3_LONG | {"original_max_position_embeddings": 128},
    ),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2 head size apart, no grouped queries": (
        "Gemma2",
        GEMMA | {"head_dim": 32, "query_pre_attn_scalar": 32, "num_key_value_heads": 4},
    ),
    "gemma2 tight caps": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2 its own layer types": (
        "Gemma2",
        GEMMA | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7}),
    "gemma3 two ropes": (
        "Gemma3",
        GEMMA | {"num_hidden_layers": 6, "rope_parameters": GEMMA3_ROPE},
    ),
    "gemma3 untied, its own layer types, capped": (
        "Gemma3",
        GEMMA
        | {
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention"],
            "final_logit_softcapping": 5.0,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral tied, three of eight experts": (
        "Mixtral",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    ),
}


def save_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """A small byte-level BPE tokenizer with GPT-2's regular expression."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then the other cat ran"], trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)


def save_model(folder: Path, family: str, changes: dict[str, Any]) -> Any:
    """Random weights, vectors included, so that no part of the mapping is invisible."""
    kind = {"Gemma3": "Gemma3Text"}.get(family, family)
    config = getattr(transformers, f"{kind}Config")(**COMMON | changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert parameter.std() > 0, name
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def llama_logits(file: Path, ids: list[int]) -> np.ndarray:
    """Logits [T, V] by llama-cpp-python's own class, float32 KV cache, no flash attention."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=max(256, len(ids)),
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    try:
        model.eval(ids)
        return np.array(model.scores[: len(ids)])
    finally:
        model.close()


def hf_logits(model: Any, ids: list[int]) -> np.ndarray:
    """Logits [T, V] by transformers in float32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("case", MODELS)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Every architecture, tied or not, biased or not, scaled or not, computes the same logits."""
    family, changes = MODELS[case]
    model = save_model(tmp_path, family, changes)
    convert(tmp_path, tmp_path / "m.gguf", dtype="f32")
    ids = torch.randint(0, 320, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = hf_logits(model, ids)
    assert np.abs(expected).max() > 1
    tolerance = GELU_TOLERANCE if family.startswith("Gemma") else TOLERANCE
    np.testing.assert_allclose(llama_logits(tmp_path / "m.gguf", ids), expected, atol=tolerance)


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
