"""Gemma 3n and 4: every layer has token embeddings of its own, and late layers share a cache."""

from __future__ import annotations

from dataclasses import replace

from llmfit.foreign.facts import whole_number
from llmfit.planning.architectures import _layers as windows
from llmfit.planning.architectures import _parts as parts
from llmfit.planning.architectures._facts import Facts
from llmfit.planning.architectures.dense import Traits, attention
from llmfit.planning.architectures.experts import routed
from llmfit.shape import LayerShape, Matrix, ModelShape

_TRAITS = Traits(qkv_bias="attention_bias", out_bias="attention_bias", query_norms=True)


def gemma3n(facts: Facts) -> ModelShape:
    """Gemma 3n: four residual streams predicted and corrected, a low-rank path beside attention."""
    hidden = facts.number("hidden_size")
    sees = windows.alternating(5)(facts)
    layers = [
        parts.layer(_attention(facts, index, window), _mlp3n(facts, index), norms=4 * hidden)
        for index, window in enumerate(sees)
    ]
    inputs = facts.number("altup_num_inputs")
    stream = Matrix(
        name="altup_proj", rows=hidden, columns=hidden, count=inputs - 1, active=inputs - 1
    )
    own = _own_embeddings(facts)
    return parts.model(
        facts,
        layers,
        vectors=hidden + own.vectors,
        extra=(*own.matrices, stream, replace(stream, name="altup_unembd_proj")),
    )


def _attention(facts: Facts, index: int, window: int | None) -> parts.Part:
    """The attention of one layer; the last ones read the cache of a layer before them."""
    part = attention(facts, _TRAITS, window)
    own = facts.number("num_hidden_layers") - facts.count("num_kv_shared_layers")
    return _without_keys(facts, part) if index >= own else part


def _without_keys(facts: Facts, part: parts.Part) -> parts.Part:
    """Attention that makes no keys and values, and so caches none."""
    if part.attention is None:
        return part
    biases = 0
    if facts.flag("attention_bias"):
        biases = part.attention.kv_heads * (part.attention.key_dim + part.attention.value_dim)
        biases = biases if any(m.name == "attn_v" for m in part.matrices) else biases // 2
    return replace(
        part,
        matrices=tuple(m for m in part.matrices if m.name not in ("attn_k", "attn_v")),
        vectors=part.vectors - biases - part.attention.key_dim,  # nor a norm of the keys
        attention=replace(part.attention, cached_heads=0),
    )


def _mlp3n(facts: Facts, index: int) -> parts.Part:
    """The MLP with what stands around it: streams, the low-rank path, the layer's embeddings."""
    hidden, inputs = facts.number("hidden_size"), facts.number("altup_num_inputs")
    rank = facts.number("laurel_rank")
    if isinstance(facts.get("intermediate_size"), list):
        widths = facts.per_layer("intermediate_size") or []
        width = whole_number("intermediate_size", widths[index])
    else:
        width = facts.number("intermediate_size")
    mlp = parts.gated_mlp(hidden, width)
    return parts.joined(
        mlp,
        parts.linear("altup_correct_coef", inputs, inputs),
        parts.linear("altup_predict_coef", inputs**2, inputs),
        parts.linear("altup_router", inputs, hidden),
        parts.linear("laurel_l", rank, hidden),
        parts.linear("laurel_r", hidden, rank),
        _own_input(facts),
        parts.vectors(3 * hidden),  # the correction's scale, the router's norm, the path's norm
        values=mlp.values + inputs * hidden,
    )


def _own_input(facts: Facts) -> parts.Part:
    """How a layer's own embedding of the token enters its stream."""
    hidden, size = facts.number("hidden_size"), facts.count("hidden_size_per_layer_input")
    if size == 0:
        return parts.Part()
    return parts.joined(
        parts.linear("inp_gate", size, hidden),
        parts.linear("proj", hidden, size),
        parts.vectors(hidden),
    )


def _own_embeddings(facts: Facts) -> parts.Part:
    """The table of all layers' embeddings, a lookup, and the projection that joins them."""
    size = facts.count("hidden_size_per_layer_input")
    if size == 0:
        return parts.Part()
    hidden, values = facts.number("hidden_size"), facts.number("num_hidden_layers") * size
    rows = facts.number("vocab_size_per_layer_input")
    return parts.Part(
        matrices=(
            Matrix(name="per_layer_token_embd", rows=rows, columns=values, linear=False),
            Matrix(name="per_layer_model_proj", rows=values, columns=hidden),
        ),
        vectors=size,
    )


def gemma4(facts: Facts) -> ModelShape:
    """Gemma 4: wider heads where a layer sees everything, experts beside the MLP by a switch."""
    hidden, own = facts.number("hidden_size"), _own_embeddings(facts)
    types = windows.layer_types(facts, windows.one_in(facts, 6))
    types[-1] = "full_attention"  # its code sees to that
    layers = [_layer4(facts, index, kind) for index, kind in enumerate(types)]
    return parts.model(facts, layers, vectors=hidden + own.vectors, extra=own.matrices)


def _layer4(facts: Facts, index: int, kind: str) -> LayerShape:
    hidden, sees_all = facts.number("hidden_size"), kind == "full_attention"
    shared = index >= facts.number("num_hidden_layers") - facts.count("num_kv_shared_layers")
    part = (
        _global_attention(facts)
        if sees_all
        else attention(facts, _TRAITS, facts.maybe("sliding_window"))
    )
    part = _without_keys(facts, part) if shared else part
    width = facts.number("intermediate_size")
    mlp = parts.gated_mlp(
        hidden, 2 * width if shared and facts.flag("use_double_wide_mlp") else width
    )
    norms = 4
    if facts.flag("enable_moe_block"):
        sparse = routed(
            facts,
            width="moe_intermediate_size",
            count="num_experts",
            active="top_k_experts",
            linear_router=True,
        )
        scales = hidden + facts.number("num_experts")
        mlp = parts.joined(
            mlp,
            sparse,
            parts.vectors(scales),
            values=max(mlp.values, sparse.values + hidden),
        )
        norms = 7
    mlp = parts.joined(mlp, _own_input(facts), values=mlp.values)
    return parts.layer(part, mlp, norms=norms * hidden)


def _global_attention(facts: Facts) -> parts.Part:
    """Attention over everything: a head size of its own, keys that may serve as values too."""
    same = facts.flag("attention_k_eq_v")
    heads = facts.number("num_attention_heads")
    kv_heads = facts.number("num_key_value_heads", heads)
    if same:
        kv_heads = facts.number("num_global_key_value_heads", kv_heads)
    bias, head_dim = facts.flag("attention_bias"), facts.number("global_head_dim")
    part = parts.attention(
        hidden=facts.number("hidden_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=bias,
        out_bias=bias,
        normed=True,
        vectors=2 * head_dim,
    )
    if not same:
        return part
    return replace(
        part,
        matrices=tuple(matrix for matrix in part.matrices if matrix.name != "attn_v"),
        vectors=part.vectors - (kv_heads * head_dim if bias else 0),
    )
