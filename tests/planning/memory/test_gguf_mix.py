"""llama.cpp's type for every tensor, against its own quantiser and its published sizes."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import FTYPES, MXFP4_MOE, full_name, gguf, quantized, write_gguf

from llmfit.planning.architectures import read_shape
from llmfit.planning.memory.gguf_mix import gguf_bytes, gguf_read_bytes, tensor_types
from llmfit.planning.memory.gguf_mixtures import BLOCKS, FILE_TYPES
from llmfit.quantize.gguf import FILE_TYPES as OFFERED
from llmfit.shape import LayerShape, Matrix, ModelShape

BASE: Mapping[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 17,  # of 16 parts and of 8, the first is one layer and two
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
KEYS: Mapping[str, int | float] = {
    "feed_forward_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A config, and what llama.cpp is told of the same model."""

    config: Mapping[str, Any]
    architecture: str = "llama"
    keys: Mapping[str, int | float]

    def shape(self) -> ModelShape:
        """The model's shape with matrices of few rows, as rules go by columns only."""
        shape = read_shape({**BASE, **self.config})
        assert shape is not None
        return replace(shape, kinds=tuple(_short(kind) for kind in shape.kinds))


def _short(kind: LayerShape) -> LayerShape:
    # attn_kv_b is stored as two matrices whose sizes follow from its rows.
    cut = (
        matrix if matrix.name == "attn_kv_b" else replace(matrix, rows=min(matrix.rows, 8))
        for matrix in kind.matrices
    )
    return replace(kind, matrices=tuple(cut))


def _llama(**changes: Any) -> Case:
    kv_heads = changes.get("num_key_value_heads", BASE["num_key_value_heads"])
    return Case(
        config={"model_type": "llama", **changes},
        keys={**KEYS, "attention.head_count_kv": kv_heads},
    )


def _experts(count: int) -> Mapping[str, int | float]:
    return {**KEYS, "expert_count": count, "expert_used_count": 2}


CASES: Mapping[str, Case] = {
    "four queries share a key": _llama(),
    "two queries share a key, tied": _llama(num_key_value_heads=4, tie_word_embeddings=True),
    "80 layers with shared keys, the 70B": _llama(num_hidden_layers=80),
    "80 layers without, the 65B": _llama(num_hidden_layers=80, num_key_value_heads=8),
    "rows of 96 and 172": _llama(hidden_size=96, intermediate_size=172, num_hidden_layers=9),
    "rows of 96 and 160, tied": _llama(
        hidden_size=96, intermediate_size=160, num_hidden_layers=9, tie_word_embeddings=True
    ),
    "qwen2 of 80 layers": Case(
        config={"model_type": "qwen2", "num_hidden_layers": 80}, architecture="qwen2", keys=KEYS
    ),
    "qwen3 of 80 layers": Case(
        config={"model_type": "qwen3", "num_hidden_layers": 80}, architecture="qwen3", keys=KEYS
    ),
    "eight experts": Case(
        config={"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
        keys=_experts(8),
    ),
    "four experts": Case(
        config={"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        keys=_experts(4),
    ),
    "phi3, fused matrices": Case(
        config={"model_type": "phi3"},
        architecture="phi3",
        keys={
            **KEYS,
            "rope.dimension_count": 32,
            "rope.scaling.original_context_length": 128,
        },
    ),
    "gemma2, tied": Case(
        config={"model_type": "gemma2", "sliding_window": 64, "head_dim": 32},
        architecture="gemma2",
        keys={**KEYS, "attention.sliding_window": 64},
    ),
    "falcon": Case(
        config={
            "model_type": "falcon",
            "multi_query": True,
            "new_decoder_architecture": False,
            "parallel_attn": True,
            "bias": False,
            "num_hidden_layers": 32,
        },
        architecture="falcon",
        keys={
            "feed_forward_length": 1024,
            "attention.head_count": 8,
            "attention.head_count_kv": 1,
            "attention.layer_norm_epsilon": 1e-5,
        },
    ),
    "deepseek, latent attention and shared experts": Case(
        config={
            "model_type": "deepseek_v3",
            "num_hidden_layers": 9,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "n_shared_experts": 1,
            "first_k_dense_replace": 2,
            "kv_lora_rank": 256,
            "q_lora_rank": 256,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
        architecture="deepseek2",
        keys={
            **_experts(4),
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "expert_feed_forward_length": 256,
            "leading_dense_block_count": 2,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.0,
            "attention.kv_lora_rank": 256,
            "attention.q_lora_rank": 256,
            "attention.key_length": 320,
            "attention.value_length": 256,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
            "rope.scaling.yarn_log_multiplier": 0.1,
        },
    ),
    "qwen3 next, first layer without attention": Case(
        config={
            "model_type": "qwen3_next",
            "num_hidden_layers": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "shared_expert_intermediate_size": 256,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "linear_conv_kernel_dim": 4,
        },
        architecture="qwen3next",
        keys={
            **_experts(4),
            "expert_feed_forward_length": 256,
            "expert_shared_feed_forward_length": 256,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 256,
            "ssm.state_size": 64,
            "ssm.time_step_rank": 4,
            "ssm.group_count": 2,
        },
    ),
    "mamba, rows of 16": Case(
        config={
            "model_type": "mamba",
            "state_size": 16,
            "time_step_rank": 16,
            "expand": 2,
            "conv_kernel": 4,
        },
        architecture="mamba",
        keys={
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 512,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 16,
        },
    ),
    "gpt-oss, rows of 288": Case(
        config={
            "model_type": "gpt_oss",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "hidden_size": 288,
            "intermediate_size": 288,
            "sliding_window": 64,
        },
        architecture="gpt-oss",
        keys={
            **_experts(4),
            "expert_feed_forward_length": 288,
            "attention.sliding_window": 64,
        },
    ),
}


def _require_same(case: Case, file_types: Mapping[str, int], folder: Path, imatrix: bool) -> None:
    shape = case.shape()
    source, target = folder / "source.gguf", folder / "target.gguf"
    write_gguf(source, shape, case.architecture, case.keys)
    for file_type, ftype in file_types.items():
        stored = quantized(source, target, ftype, shape, imatrix=imatrix)
        chosen = tensor_types(shape, file_type)
        assert chosen is not None
        assert {full_name(tensor): tensor.type for tensor in chosen} == {
            name: tensor.type for name, tensor in stored.items()
        }, file_type
        vectors = shape.vectors + sum(layer.vectors for layer in shape.of_layers())
        tensors = sum(tensor.size_bytes for tensor in stored.values())
        assert gguf_bytes(shape, file_type) == tensors + 4 * vectors, file_type


SLOW_CASES = {"80 layers without, the 65B", "qwen3 of 80 layers", "four experts", "eight experts",
              "deepseek, latent attention and shared experts"}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_CASES else name for name in CASES],
)
def test_types_and_bytes_are_those_of_llama_cpps_quantiser(name: str, tmp_path: Path) -> None:
    """Tensor by tensor, for every file type that llmfit makes and gpt-oss's own, llama.cpp
    chooses the same."""
    floats = ("f32", "f16", "bf16")
    made = {kind: ftype for kind, ftype in OFFERED.items() if kind not in floats}
    made["mxfp4_moe"] = MXFP4_MOE
    if "80 layers" in name:  # their rule turns Q3_K and Q4_K into another type, only those
        made = {kind: made[kind] for kind in ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m")}
    _require_same(CASES[name], made, tmp_path, imatrix=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "four queries share a key",
        "two queries share a key, tied",
        "rows of 96 and 172",
        "eight experts",
        "four experts",
        "falcon",
    ],
)
def test_types_that_need_an_importance_matrix(name: str, tmp_path: Path) -> None:
    """IQ1 to IQ3 and Q2_K_S, which are planned only, are chosen as llama.cpp does with one."""
    _require_same(CASES[name], FTYPES, tmp_path, imatrix=True)


def test_published_sizes_of_llama_3_1_8b(shared_data: Path) -> None:
    """llama.cpp's README lists 24 file types: sizes agree to its two decimals, bits per weight
    to its four. ``-s`` shows the table."""
    config = shared_data / "configs" / "meta-llama--Meta-Llama-3.1-8B" / "config.json"
    shape = read_shape(json.loads(config.read_text("utf-8")))
    assert shape is not None
    with (shared_data / "measured_memory.tsv").open(encoding="utf-8") as stream:
        rows = [
            row
            for row in csv.DictReader(stream, delimiter="\t")
            if row["method"].startswith("gguf-")
        ]
    assert len(rows) == 48
    for row in rows:
        size = gguf_bytes(shape, row["method"].removeprefix("gguf-").lower())
        assert size is not None
        of_file = row["kind"] == "file_size"
        predicted = size / 2**30 if of_file else 8 * size / shape.parameters
        published = float(row["value"])
        sys.stdout.write(
            f"{row['method']:14} {row['unit']:10} published {published:8.4f} "
            f"predicted {predicted:8.4f} {100 * (predicted / published - 1):+.3f} %\n"
        )
        assert predicted == pytest.approx(published, abs=0.0051 if of_file else 0.000_051)


def test_blocks_are_ggufs() -> None:
    """Values and bytes of each block are those that the gguf package reads files by."""
    assert set(OFFERED) <= FILE_TYPES
    for kind, block in BLOCKS.items():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert sizes == (block.values, block.size_bytes)


def test_a_step_reads_all_but_the_embedding() -> None:
    """Of a dense model one token reads every tensor, of the embedding a row; a tied one is read
    whole for the logits too."""
    shape = read_shape({**BASE, "model_type": "llama"})
    assert shape is not None
    size = gguf_bytes(shape, "q8_0")
    row = 256 // 32 * 34
    assert size is not None
    assert gguf_read_bytes(shape, "q8_0") == size - 31 * row
    assert gguf_read_bytes(shape, "q8_0", batch=3) == size - 29 * row
    tied = replace(shape, tied=True)
    whole = gguf_bytes(tied, "q8_0")
    assert whole == size - 32 * row
    assert gguf_read_bytes(tied, "q8_0") == whole + row


def test_a_batch_reads_more_experts() -> None:
    """One token reads the active experts; independent choices of many tokens, nearly all."""
    mixtral = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = read_shape({**BASE, **mixtral})
    assert shape is not None
    experts = 17 * 3 * 8 * 256 * 512 * 2  # float16
    rest = (gguf_bytes(shape, "f16") or 0) - experts - 32 * 512
    assert gguf_read_bytes(shape, "f16") == rest + 512 + experts // 4
    two = 2 - 2 / 8 * 2 / 8 * 8 / 2  # of 8 experts, 2 chosen twice: 2 + 2 − 2 · 2/8 differ
    assert gguf_read_bytes(shape, "f16", batch=2) == rest + 1024 + round(experts * two / 4)
    assert gguf_read_bytes(shape, "f16", batch=200) == rest + 200 * 512 + experts


def test_a_type_that_is_not_known_has_no_size() -> None:
    """A file type that llama.cpp does not have, or not any more, is unknown and not guessed."""
    shape = read_shape({**BASE, "model_type": "llama"})
    assert shape is not None
    assert gguf_bytes(shape, "q4_2") is None
    assert gguf_read_bytes(shape, "q4_2") is None
    assert tensor_types(shape, "q4_2") is None


def test_state_matrices_stay_in_float32() -> None:
    """Mamba's convolution and state matrix are kept exact, its projections quantised."""
    layer = LayerShape(
        matrices=(
            Matrix(name="ssm_in", rows=1024, columns=256),
            Matrix(name="ssm_conv1d", rows=512, columns=4, linear=False),
            Matrix(name="ssm_a", rows=512, columns=16, linear=False),
        ),
        vectors=256,
    )
    shape = ModelShape(hidden_size=256, vocab_size=32, tied=True, kinds=(layer,), layers=(0,))
    types = {tensor.name: tensor.type for tensor in tensor_types(shape, "q4_k_m") or ()}
    assert types == {
        "token_embd": "Q6_K",
        "ssm_in": "Q4_K",
        "ssm_conv1d": "F32",
        "ssm_a": "F32",
    }
