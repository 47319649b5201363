"""Nemotron-NAS (DeciLM): a Llama whose every layer a search shaped on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.facts import finite_number, mapping
from llmfit.foreign.json import shortened
from llmfit.planning.architectures import _parts as parts
from llmfit.planning.architectures._facts import Facts
from llmfit.shape import LayerShape, ModelShape


def nemotron_nas(facts: Facts) -> ModelShape:
    """Layers by ``block_configs``: attention, a linear map or nothing; likewise the MLP."""
    blocks = facts.items("block_configs") or []
    layers = [_layer(facts, block) for block in blocks]
    return parts.model(facts, layers, vectors=facts.number("hidden_size"))


def _layer(facts: Facts, block: Any) -> LayerShape:
    if not isinstance(block, Mapping) or not {"attention", "ffn"} <= block.keys():
        raise ModelLoadError(
            f"config.json has a block of block_configs without attention and ffn: "
            f"{shortened(block)}."
        )
    hidden = facts.number("hidden_size")
    attention, ffn = (Facts(mapping(key, block[key])) for key in ("attention", "ffn"))
    halves = (_attention(facts, attention), _mlp(facts, ffn))
    return parts.layer(*halves, norms=hidden * sum(half is not None for half in halves))


def _attention(facts: Facts, block: Facts) -> parts.Part | None:
    hidden, heads = facts.number("hidden_size"), facts.number("num_attention_heads")
    bias = facts.flag("attention_bias")
    if block.flag("no_op"):
        return None
    if block.flag("replace_with_linear"):
        return parts.linear("attn_output", hidden, hidden, bias=bias)
    return parts.attention(
        hidden=hidden,
        heads=heads,
        kv_heads=heads // block.number("n_heads_in_group"),
        head_dim=facts.number("head_dim", hidden // heads or None),
        qkv_bias=bias,
        out_bias=bias,
        window=block.maybe("window_length"),
    )


def _mlp(facts: Facts, block: Facts) -> parts.Part | None:
    hidden, bias = facts.number("hidden_size"), facts.flag("mlp_bias")
    if block.flag("no_op"):
        return None
    if block.flag("replace_with_linear"):
        return parts.linear("ffn_up", hidden, hidden, bias=bias)
    factor = finite_number("ffn_mult", block.get("ffn_mult"))
    # Two thirds of the width that a plain MLP would have, up to a multiple of 256.
    # Source: NVIDIA, modeling_decilm.py, _ffn_mult_to_intermediate_size.
    width = -(-int(2 * factor * hidden / 3) // 256) * 256
    return parts.gated_mlp(hidden, width, bias=bias)
