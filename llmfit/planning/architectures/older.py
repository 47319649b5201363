"""Models before Llama whose shape fits no table: GPT-2, OPT, BLOOM, MPT, Falcon."""

from __future__ import annotations

from dataclasses import replace

from llmfit.foreign.facts import head_size
from llmfit.planning.architectures import _parts as parts
from llmfit.planning.architectures._facts import Facts
from llmfit.planning.architectures.dense import Traits, build, positions
from llmfit.shape import LayerShape, Matrix, ModelShape


def gpt2(facts: Facts) -> ModelShape:
    """GPT-2: transformers holds its matrices as ``Conv1D``, not as ``nn.Linear``."""
    traits = Traits(
        qkv_bias=True,
        out_bias=True,
        fused_qkv=True,
        mlp="plain",
        mlp_bias=True,
        four_times=True,
        layer_norms=True,
        extra=positions("n_positions"),
    )
    shape = build(facts, traits)
    return replace(shape, kinds=tuple(_without_linear(kind) for kind in shape.kinds))


def _without_linear(kind: LayerShape) -> LayerShape:
    matrices = tuple(replace(matrix, linear=False) for matrix in kind.matrices)
    return replace(kind, matrices=matrices)


def bloom(facts: Facts) -> ModelShape:
    """BLOOM: no positions, a norm behind the embedding, an MLP of four times the hidden size."""
    hidden = facts.number("hidden_size")
    layer = _layer(facts, width=4 * hidden, norms=4 * hidden, bias=True)
    return parts.model(facts, [layer] * facts.number("num_hidden_layers"), vectors=4 * hidden)


def mpt(facts: Facts) -> ModelShape:
    """MPT: no biases at all, norms included; an MLP of four times the hidden size."""
    hidden = facts.number("hidden_size")
    layer = _layer(facts, width=4 * hidden, norms=2 * hidden)
    return parts.model(facts, [layer] * facts.number("num_hidden_layers"), vectors=hidden)


def _layer(
    facts: Facts, *, width: int, norms: int, bias: bool = False, fused: bool = True
) -> LayerShape:
    """A key and a value for each query head, a plain MLP of ``width``, biases in all or in none."""
    hidden, heads = facts.number("hidden_size"), facts.number("num_attention_heads")
    attention = parts.attention(
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_size(hidden, heads),
        qkv_bias=bias,
        out_bias=bias,
        fused=fused,
    )
    return parts.layer(attention, parts.plain_mlp(hidden, width, bias=bias), norms=norms)


def opt(facts: Facts) -> ModelShape:
    """OPT: learned positions, two rows more than told; a narrower embedding where told so."""
    hidden = facts.number("hidden_size")
    bias, affine = facts.flag("enable_bias"), facts.flag("layer_norm_elementwise_affine")
    norm = 2 * hidden if affine else 0
    layer = _layer(facts, width=facts.number("ffn_dim"), norms=2 * norm, bias=bias, fused=False)
    last = facts.flag("do_layer_norm_before") and not facts.flag("_remove_final_layer_norm")
    shape = parts.model(
        facts,
        [layer] * facts.number("num_hidden_layers"),
        vectors=norm if last else 0,
        extra=positions("max_position_embeddings", more=2)(facts),
    )
    width = facts.number("word_embed_proj_dim", hidden)
    if width == hidden:
        return shape
    return replace(
        shape,
        embedding_size=width,
        extra=(
            *shape.extra,
            Matrix(name="token_embd_in", rows=hidden, columns=width),
            Matrix(name="output_in", rows=width, columns=hidden),
        ),
    )


def falcon(facts: Facts) -> ModelShape:
    """Falcon: one key for all heads (7B), grouped ones (40B, 180B), or one each; side by side."""
    hidden, heads = facts.number("hidden_size"), facts.number("num_attention_heads")
    new, bias = facts.flag("new_decoder_architecture"), facts.flag("bias")
    kv_heads = heads
    if new:
        kv_heads = facts.number("num_kv_heads", heads)
    elif facts.flag("multi_query"):
        kv_heads = 1
    attention = parts.attention(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_size(hidden, heads),
        qkv_bias=bias,
        out_bias=bias,
        fused=True,
    )
    if new and attention.attention is not None:
        repeated = replace(attention.attention, cached_heads=heads)
        attention = replace(attention, attention=repeated)
    norms = 2
    if facts.flag("parallel_attn"):
        norms = 2 if facts.number("num_ln_in_parallel_attn", 2 if new else 1) == 2 else 1
    width = facts.number("ffn_hidden_size", 4 * hidden)
    mlp = parts.plain_mlp(hidden, width, bias=bias)
    layer = parts.layer(attention, mlp, norms=norms * 2 * hidden)
    return parts.model(facts, [layer] * facts.number("num_hidden_layers"), vectors=2 * hidden)
