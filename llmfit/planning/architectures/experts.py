"""Mixtures of experts with ordinary attention: which layers have them, and of what kind."""

from __future__ import annotations

from dataclasses import replace

from llmfit.foreign.facts import whole_number
from llmfit.planning.architectures import _layers as windows
from llmfit.planning.architectures import _parts as parts
from llmfit.planning.architectures._facts import Facts
from llmfit.planning.architectures.dense import Traits, build, dense_mlp
from llmfit.shape import ModelShape

_BIASES = Traits(qkv_bias="attention_bias", out_bias="attention_bias")


def routed(
    facts: Facts,
    *,
    width: str = "intermediate_size",
    count: str = "num_local_experts",
    active: str = "num_experts_per_tok",
    biases: bool = False,
    linear_router: bool = False,
    weights_in_32_bits: bool = False,
) -> parts.Part:
    """The experts of a layer, by the config's keys."""
    total = facts.number(count)
    return parts.experts(
        hidden=facts.number("hidden_size"),
        width=facts.number(width),
        count=total,
        active=min(total, facts.number(active, total)),
        biases=biases,
        linear_router=linear_router,
        weights_in_32_bits=weights_in_32_bits,
    )


def _in_every_layer(facts: Facts, mlp: parts.Part) -> list[parts.Part]:
    return [mlp] * facts.number("num_hidden_layers")


def _after_the_first(facts: Facts, mlp: parts.Part, traits: Traits) -> list[parts.Part]:
    """Experts from layer ``first_k_dense_replace`` on; an MLP before."""
    dense, first = dense_mlp(facts, traits), facts.count("first_k_dense_replace")
    return [mlp if index >= first else dense for index in range(facts.number("num_hidden_layers"))]


def shared(facts: Facts, *, width: str, count: str, bias: bool = False) -> parts.Part:
    """``count`` experts that every token meets, as one MLP."""
    hidden, number = facts.number("hidden_size"), facts.count(count)
    return (
        parts.gated_mlp(hidden, number * facts.number(width), bias=bias) if number else parts.Part()
    )


def mixtral(facts: Facts) -> ModelShape:
    """Mixtral: experts in every layer."""
    return build(facts, Traits(windows=windows.everywhere), _in_every_layer(facts, routed(facts)))


def phimoe(facts: Facts) -> ModelShape:
    """Phi 3.5 MoE: layer norms with biases, of the head too by a switch."""
    traits = Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        layer_norms=True,
        head_bias="lm_head_bias",
        windows=windows.everywhere,
    )
    return build(facts, traits, _in_every_layer(facts, routed(facts, linear_router=True)))


def granite_moe(facts: Facts) -> ModelShape:
    """Granite MoE, and its kin with a shared MLP where its width is told."""
    mlp = routed(facts)
    if width := facts.count("shared_intermediate_size"):
        fused = parts.gated_mlp(facts.number("hidden_size"), width, fused=True)
        mlp = parts.with_shared(mlp, fused)
    return build(facts, _BIASES, _in_every_layer(facts, mlp))


def olmoe(facts: Facts) -> ModelShape:
    """OLMoE and FlexOlmo: norms over all heads' queries and keys."""
    traits = Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", query_norms=True, norm_of="heads"
    )
    return build(facts, traits, _in_every_layer(facts, routed(facts, count="num_experts")))


def _qwen_layers(facts: Facts, mlp: parts.Part, traits: Traits) -> list[parts.Part]:
    """Experts in every ``decoder_sparse_step``-th layer that ``mlp_only_layers`` does not name."""
    dense, only_dense = dense_mlp(facts, traits), facts.items("mlp_only_layers") or []
    step = facts.number("decoder_sparse_step")
    return [
        mlp if (index + 1) % step == 0 and index not in only_dense else dense
        for index in range(facts.number("num_hidden_layers"))
    ]


def qwen2_moe(facts: Facts) -> ModelShape:
    """Qwen 1.5 and 2 with experts, one of them shared behind a gate."""
    mlp = parts.with_shared(
        routed(facts, width="moe_intermediate_size", count="num_experts"),
        dense_mlp(facts, Traits(), "shared_expert_intermediate_size"),
        gate=True,
        shared_first=True,
    )
    traits = Traits(qkv_bias="qkv_bias", windows=windows.every_second_of_the_first)
    return build(facts, traits, _qwen_layers(facts, mlp, traits))


def qwen3_moe(facts: Facts) -> ModelShape:
    """Qwen 3 with experts."""
    traits = Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms=True,
        windows=windows.everywhere_if_used,
    )
    mlp = routed(facts, width="moe_intermediate_size", count="num_experts")
    return build(facts, traits, _qwen_layers(facts, mlp, traits))


def gpt_oss(facts: Facts) -> ModelShape:
    """gpt-oss: biases everywhere, also of the experts; sinks; a window in every second layer."""
    traits = Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        windows=windows.alternating(2),
        more=lambda facts: facts.number("num_attention_heads"),
    )
    return build(facts, traits, _in_every_layer(facts, routed(facts, biases=True)))


def _all_experts(facts: Facts) -> parts.Part:
    """Llama 4's: transformers runs all of them on each token, most weighed by nothing.

    At their fullest they hold the token's copies, the fused output, activated half and product.
    """
    mlp = routed(facts, linear_router=True)
    each = 4 * facts.number("intermediate_size") + facts.number("hidden_size")
    return replace(mlp, values=facts.number("num_local_experts") * (each + 2))


def llama4(facts: Facts) -> ModelShape:
    """Llama 4: experts beside a shared one, in ``moe_layers`` or every so many layers."""
    layers = range(facts.number("num_hidden_layers"))
    step = facts.number("interleave_moe_layer_step")
    told = facts.items("moe_layers")
    sparse = list(layers[step - 1 :: step]) if told is None else told
    mlp = parts.with_shared(_all_experts(facts), dense_mlp(facts, Traits()))
    dense = dense_mlp(facts, Traits(), "intermediate_size_mlp")
    traits = Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", windows=windows.llama4_chunks
    )
    return build(facts, traits, [mlp if index in sparse else dense for index in layers])


def ernie4_5_moe(facts: Facts) -> ModelShape:
    """ERNIE 4.5: experts between two layers; a correction bias for each."""
    traits = Traits(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", head_bias="use_bias"
    )
    mlp = routed(facts, width="moe_intermediate_size", count="moe_num_experts", active="moe_k")
    beside = shared(
        facts,
        width="moe_intermediate_size",
        count="moe_num_shared_experts",
        bias=facts.flag("use_bias"),
    )
    mlp = parts.with_shared(mlp, beside, shared_first=True)
    corrected = parts.joined(mlp, parts.vectors(facts.number("moe_num_experts")), values=mlp.values)
    dense, step = dense_mlp(facts, traits), facts.number("moe_layer_interval")
    first, layers = facts.count("moe_layer_start_index"), facts.number("num_hidden_layers")
    to_the_end = facts.get("moe_layer_end_index") in (None, -1)
    last = layers - 1 if to_the_end else facts.count("moe_layer_end_index")
    mlps = [
        corrected if (index + 1) % step == 0 and first <= index <= last else dense
        for index in range(layers)
    ]
    return build(facts, traits, mlps)


def hunyuan_moe(facts: Facts) -> ModelShape:
    """HunYuan: experts beside a shared MLP of the same width; as many active as each layer says."""
    layers, count = facts.number("num_hidden_layers"), facts.number("num_experts")
    if isinstance(facts.get("moe_topk"), list):
        active = [whole_number("moe_topk", each) for each in facts.items("moe_topk") or ()]
    else:
        active = [facts.number("moe_topk")] * layers
    beside = dense_mlp(facts, Traits())
    mlps = [
        parts.with_shared(
            parts.experts(
                hidden=facts.number("hidden_size"),
                width=facts.number("intermediate_size"),
                count=count,
                active=min(count, each),
                linear_router=True,
                weights_in_32_bits=True,
            ),
            beside,
            shared_first=True,
        )
        for each in active
    ]
    traits = Traits(qkv_bias="attention_bias", out_bias="attention_bias", query_norms=True)
    return build(facts, traits, mlps)


def minimax_m2(facts: Facts) -> ModelShape:
    """MiniMax M2: norms over all heads' queries and keys."""
    traits = Traits(query_norms=True, norm_of="heads")
    return build(facts, traits, _in_every_layer(facts, routed(facts, weights_in_32_bits=True)))


def _beside_shared(facts: Facts) -> parts.Part:
    return parts.with_shared(
        routed(
            facts, width="moe_intermediate_size", count="n_routed_experts", weights_in_32_bits=True
        ),
        shared(facts, width="moe_intermediate_size", count="n_shared_experts"),
    )


def glm4_moe(facts: Facts) -> ModelShape:
    """GLM 4.5 and 4.6: the first layers dense, then experts beside shared ones."""
    traits = Traits(qkv_bias="attention_bias", query_norms="use_qk_norm")
    return build(facts, traits, _after_the_first(facts, _beside_shared(facts), traits))


def dots1(facts: Facts) -> ModelShape:
    """dots.llm1: the first layers dense, then experts beside shared ones; norms of queries."""
    traits = Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms=True,
        windows=windows.after_the_first_where_told,
    )
    return build(facts, traits, _after_the_first(facts, _beside_shared(facts), traits))


def exaone_moe(facts: Facts) -> ModelShape:
    """EXAONE MoE: dense or sparse by ``mlp_layer_types``, else the first layers dense."""
    traits = Traits(query_norms=True, windows=windows.exaone)
    mlp = parts.with_shared(
        routed(facts, width="moe_intermediate_size", count="num_experts", weights_in_32_bits=True),
        shared(facts, width="moe_intermediate_size", count="num_shared_experts"),
    )
    told = facts.items("mlp_layer_types")
    if told is None:
        return build(facts, traits, _after_the_first(facts, mlp, traits))
    dense = dense_mlp(facts, traits)
    return build(facts, traits, [mlp if each == "sparse" else dense for each in told])
