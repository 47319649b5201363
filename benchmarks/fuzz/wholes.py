"""Whole files, from which the cases are made: each passes, and most are small."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fuzz.gguf_bytes import GgufBytes, parse
from llmfit.models import data_path
from llmfit.planning import catalogue
from llmfit.planning.architectures import FAMILIES
from llmfit.planning.architectures._families import DEFAULTS
from llmfit.quantize.gguf_architectures import ARCHITECTURES
from llmfit.records import to_json
from llmfit.testing import make_comparison, make_record, make_server

Config = dict[str, Any]
VOCAB_SIZE = 300

SMALL: Config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB_SIZE, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip
EXTRA_KEYS = (
    "head_dim", "layer_types", "rope_scaling", "rope_parameters", "sliding_window", "text_config",
    "quantization_config", "num_experts", "num_local_experts", "num_experts_per_tok",
    "architectures", "model_type", "vocab_size", "vision_config", "is_encoder_decoder", "dtype",
    "n_positions", "n_ctx", "attention_types", "block_configs", "hybrid_override_pattern",
    "moe_layers", "mlp_layer_types", "moe_topk", "no_rope_layers", "sliding_window_pattern",
    "attn_layer_indices", "mlp_only_layers", "tie_word_embeddings", "auto_map", "num_labels",
    "id2label", "pad_token_id", "eos_token_id", "hidden_act", "rms_norm_eps", "attention_dropout",
    "num_nextn_predict_layers", "initializer_range", "max_position_embeddings",
)  # fmt: skip


@functools.cache
def configs() -> list[Config]:
    """A config of every model of the catalogue, and of every family by its defaults alone."""
    families = [{"model_type": name, **DEFAULTS.get(name, {})} for name in FAMILIES]
    return [SMALL, *(dict(entry.config) for entry in catalogue.entries()), *families]


_SMALLER: Config = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB_SIZE, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "max_position_embeddings": 256, "n_positions": 256,
}  # fmt: skip


@functools.cache
def small_configs() -> list[Config]:
    """Every family by its defaults, its sizes small; and a model with a part for images."""
    families = [config for config in configs() if "architectures" not in config]
    small = [
        {key: _SMALLER.get(key, value) for key, value in config.items()} for config in families
    ]
    both = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text", **_SMALLER},
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32,
                          "intermediate_size": 64, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
    }  # fmt: skip
    return [SMALL, both, *small]


@functools.cache
def convertible_configs() -> list[Config]:
    """Those that llmfit converts to GGUF, with each kind of rope scaling."""
    found = [c for c in configs() if (c.get("architectures") or [""])[0] in ARCHITECTURES]
    ropes = (
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )  # fmt: skip
    named = [{**SMALL, "architectures": [name], **ARCHITECTURES[name].defaults}
             for name in ARCHITECTURES]  # fmt: skip
    return [*found, *named, *({**SMALL, "rope_scaling": rope} for rope in ropes)]


QUANTIZATIONS: list[Config] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True,
     "dynamic": {"-:.*lm_head": {}}, "checkpoint_format": "gptq", "meta": {"quantizer": ["x:1"]}},
    {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm",
     "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "type": "int"}, "targets": ["Linear"]}}},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    {"w_bit": 4, "q_group_size": 128, "zero_point": True},
    {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}},
]  # fmt: skip


def quantized_configs() -> list[Config]:
    """Configs of models that are stored quantised."""
    return [{**SMALL, "quantization_config": each} for each in QUANTIZATIONS]


# ---------------------------------------------------------------- tokenizers


@functools.cache
def byte_level() -> Config:
    """The embedded model's tokenizer, cut to ``VOCAB_SIZE`` tokens."""
    content = json.loads((data_path("embedded") / "tokenizer.json").read_text("utf-8"))
    model = content["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < VOCAB_SIZE}
    kept = model["vocab"].keys()
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in kept]
    return content


@functools.cache
def byte_fallback() -> Config:
    """A tokenizer in the manner of Llama 2's."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {piece: 259 + i for i, piece in enumerate(("▁", "a", "b", "ab", "▁a", "▁ab", "c"))}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
            for i, token in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
                  "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                  "merges": ["a b", "▁ a", "▁a b"]},
    }  # fmt: skip


TOKENIZER_SETTINGS: list[Config] = [
    {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>",
     "eos_token": "<|endoftext|>", "clean_up_tokenization_spaces": False, "model_max_length": 1024,
     "chat_template": "{% for m in messages %}{{ m }}{% endfor %}"},
    {"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<s>", "special": True},
     "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}}, "add_bos_token": True},
    {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    {"fast_tokenizer_files": ["tokenizer.4.0.0.json", "../tokenizer.0.json"],
     "extra_special_tokens": ["<a>", "<b>"], "model_max_length": 10**30},
    {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "eos_token": "</s>"},
    {"tokenizer_class": "PegasusTokenizer", "offset": 103},
]  # fmt: skip


@functools.cache
def sentencepiece() -> bytes:
    """A SentencePiece model of the BPE kind with ``VOCAB_SIZE`` pieces at most."""
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    proto = model_pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.normalizer_spec.remove_extra_whitespaces = False
    kinds = {0: 2, 1: 3, 2: 3}
    for token, token_id in byte_fallback()["model"]["vocab"].items():
        kind = 6 if 3 <= token_id < 259 else kinds.get(token_id, 1)
        proto.pieces.add(piece=token, score=-float(token_id), type=kind)
    return bytes(proto.SerializeToString())


# ---------------------------------------------------------------- weights


def safetensors(tensors: Config, data_bytes: int) -> bytes:
    """A safetensors file of a header and zeros."""
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(data_bytes)


TENSORS: Config = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [5, 4], "data_offsets": [0, 40]},
    "model.layers.0.mlp.up_proj.qweight": {"dtype": "I32", "shape": [2, 8],
                                           "data_offsets": [40, 104]},
    "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [104, 120]},
    "scalar": {"dtype": "I64", "shape": [], "data_offsets": [120, 128]},
}  # fmt: skip
TENSOR_BYTES = 128


@functools.cache
def gguf() -> GgufBytes:
    """The embedded model as llmfit converts it, its tensors' data left to be filled with zeros."""
    from llmfit.quantize.gguf_convert import convert

    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        file = Path(folder) / "model.gguf"
        convert(data_path("embedded"), file, dtype="f16")
        return parse(file.read_bytes())


# ---------------------------------------------------------------- records and settings


@functools.cache
def comparison() -> str:
    """A comparison of three rows with all that they can hold."""
    return to_json(make_comparison([make_record(name) for name in ("bf16", "nf4", "gguf")]))


def server() -> str:
    """A server's figures."""
    return to_json(make_server(model="org/m", backend="awq", notes=("a note",), saturation=2))


NIGHT = b"""
title = "night"
machine = "here"
time_limit_h = 2.5
baseline = "history"

[defaults]
backends = ["bf16", "gguf:q8_0"]
tasks = []
ram_gb = 8.0
row_time_limit_s = 600.0

[workloads.short]
prompt_tokens = 32
new_tokens = 8
repeats = 3

[[models]]
model = "embedded"

[[models]]
model = "embedded"
name = "second"
weights = "synthetic"
workloads = ["short"]
checkpoints = { gptq = "./there" }
"""
