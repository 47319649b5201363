"""Models with recurrent layers: Mamba, Mamba-2, gated delta rule, short convolutions, and hybrids.

Where the kernels of mamba-ssm are not installed, as here, transformers runs these layers by plain
PyTorch, whose scan holds float32 tensors of the size of the state for every token: those are what
``values`` counts, one float32 as two values of 16 bits.
"""

from __future__ import annotations

from llmfit.errors import ModelLoadError
from llmfit.foreign.facts import word
from llmfit.foreign.json import shortened
from llmfit.planning.architectures import _layers as windows
from llmfit.planning.architectures import _parts as parts
from llmfit.planning.architectures._facts import Facts, MissingFact
from llmfit.planning.architectures.dense import Traits, attention, dense_mlp
from llmfit.planning.architectures.experts import routed
from llmfit.shape import LayerShape, Matrix, ModelShape, State

_FLOAT32 = 2  # in values of 16 bits
_DELTA_CHUNK = 64
"""Tokens of a chunk. Source: transformers 5.23, torch_chunk_gated_delta_rule."""
_BIASES = Traits(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")


def _convolution(channels: int, kernel: int, *, bias: bool, name: str = "ssm_conv1d") -> parts.Part:
    """A filter of ``kernel`` tokens for each channel on its own."""
    matrix = Matrix(name=name, rows=channels, columns=kernel, linear=False)
    return parts.Part(matrices=(matrix,), vectors=channels if bias else 0)


def mamba1(
    *,
    hidden: int,
    inner: int,
    state: int,
    kernel: int,
    rank: int,
    bias: bool,
    conv_bias: bool,
    norms: int = 0,
) -> parts.Part:
    """Mamba's selective state space: ``state`` values for each of ``inner`` channels."""
    part = parts.joined(
        parts.linear("ssm_in", 2 * inner, hidden, bias=bias),
        _convolution(inner, kernel, bias=conv_bias),
        parts.linear("ssm_x", rank + 2 * state, inner),
        parts.linear("ssm_dt", inner, rank, bias=True),
        parts.Part(matrices=(Matrix(name="ssm_a", rows=inner, columns=state, linear=False),)),
        parts.linear("ssm_out", hidden, inner, bias=bias),
        parts.vectors(inner + norms),
        # Discretised A and B and their product with x; all that is projected and convolved.
        values=11 * inner + 3 * _FLOAT32 * inner * state,
    )
    return parts.with_state(part, State(elements=inner * (state + kernel)))


def mamba2(
    *,
    hidden: int,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    kernel: int,
    chunk: int,
    bias: bool,
    out_bias: bool,
    conv_bias: bool,
    norm: bool = True,
) -> parts.Part:
    """Mamba-2: heads with one decay each, scanned in chunks of tokens."""
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    part = parts.joined(
        parts.linear("ssm_in", inner + channels + heads, hidden, bias=bias),
        _convolution(channels, kernel, bias=conv_bias),
        parts.linear("ssm_out", hidden, inner, bias=out_bias),
        parts.vectors(3 * heads + (inner if norm else 0)),
        # The scores within a chunk, their decay and product; B and C for every head, as they are
        # and padded to chunks; x likewise, and what becomes of it.
        values=_FLOAT32 * (3 * chunk * heads + 4 * heads * state + 9 * inner),
    )
    return parts.with_state(part, State(elements=inner * state + channels * kernel))


def _mamba2_of(facts: Facts, *, inner: int | None = None, **other: bool) -> parts.Part:
    """Mamba-2 as Bamba, Granite 4 and Falcon-H1 name its sizes."""
    hidden, heads = facts.number("hidden_size"), facts.number("mamba_n_heads")
    inner = inner or facts.number("mamba_expand") * hidden
    return mamba2(
        hidden=hidden,
        heads=heads,
        head_dim=inner // heads,
        groups=facts.number("mamba_n_groups"),
        state=facts.number("mamba_d_state"),
        kernel=facts.number("mamba_d_conv"),
        chunk=facts.number("mamba_chunk_size"),
        bias=facts.flag("mamba_proj_bias"),
        out_bias=other.get("out_bias", facts.flag("mamba_proj_bias")),
        conv_bias=facts.flag("mamba_conv_bias"),
        norm=other.get("norm", True),
    )


def gated_delta(facts: Facts, *, split: bool) -> parts.Part:
    """Qwen's gated delta rule; ``split`` projects queries, gate and the two small parts apart."""
    hidden = facts.number("hidden_size")
    key_heads, value_heads = (
        facts.number("linear_num_key_heads"),
        facts.number("linear_num_value_heads"),
    )
    key_dim, value_dim = (
        facts.number("linear_key_head_dim"),
        facts.number("linear_value_head_dim"),
    )
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    kernel = facts.number("linear_conv_kernel_dim")
    if split:
        inward = [
            parts.linear("attn_qkv", channels, hidden),
            parts.linear("attn_gate", values, hidden),
            parts.linear("ssm_beta", value_heads, hidden),
            parts.linear("ssm_alpha", value_heads, hidden),
        ]
    else:
        inward = [
            parts.linear("ssm_in", channels + values, hidden),
            parts.linear("ssm_ba", 2 * value_heads, hidden),
        ]
    part = parts.joined(
        *inward,
        _convolution(channels, kernel, bias=False),
        parts.linear("ssm_out", hidden, values),
        parts.vectors(2 * value_heads + value_dim),
        # What is convolved; queries, keys and values for every head, as they are, weighed and
        # padded to chunks; the scores within a chunk, their decay and its inverse.
        values=2 * channels
        + _FLOAT32 * value_heads * (5 * key_dim + 5 * value_dim + 3 * _DELTA_CHUNK),
    )
    elements = value_heads * key_dim * value_dim + channels * kernel
    return parts.with_state(part, State(elements=elements))


def _rank(facts: Facts, key: str) -> int:
    """Mamba's rank of the time step: a sixteenth of the hidden size unless told."""
    told = facts.get(key)
    return -(-facts.number("hidden_size") // 16) if told in (None, "auto") else facts.number(key)


def mamba(facts: Facts) -> ModelShape:
    """Mamba and Falcon Mamba: nothing but selective state spaces."""
    hidden = facts.number("hidden_size")
    mixer = mamba1(
        hidden=hidden,
        inner=facts.number("intermediate_size", facts.number("expand") * hidden),
        state=facts.number("state_size"),
        kernel=facts.number("conv_kernel"),
        rank=_rank(facts, "time_step_rank"),
        bias=facts.flag("use_bias"),
        conv_bias=facts.flag("use_conv_bias"),
    )
    layer = parts.layer(mixer, None, norms=hidden)
    return parts.model(facts, [layer] * facts.number("num_hidden_layers"), vectors=hidden)


def mamba2_model(facts: Facts) -> ModelShape:
    """Mamba-2 alone."""
    hidden = facts.number("hidden_size")
    mixer = mamba2(
        hidden=hidden,
        heads=facts.number("num_heads"),
        head_dim=facts.number("head_dim"),
        groups=facts.number("n_groups"),
        state=facts.number("state_size"),
        kernel=facts.number("conv_kernel"),
        chunk=facts.number("chunk_size"),
        bias=facts.flag("use_bias"),
        out_bias=facts.flag("use_bias"),
        conv_bias=facts.flag("use_conv_bias"),
    )
    layer = parts.layer(mixer, None, norms=hidden)
    return parts.model(facts, [layer] * facts.number("num_hidden_layers"), vectors=hidden)


def jamba(facts: Facts) -> ModelShape:
    """Jamba: attention every so many layers, experts every so many others."""
    hidden, rank = facts.number("hidden_size"), _rank(facts, "mamba_dt_rank")
    state = facts.number("mamba_d_state")
    mamba_part = mamba1(
        hidden=hidden,
        inner=facts.number("mamba_expand") * hidden,
        state=state,
        kernel=facts.number("mamba_d_conv"),
        rank=rank,
        bias=facts.flag("mamba_proj_bias"),
        conv_bias=facts.flag("mamba_conv_bias"),
        norms=rank + 2 * state,
    )
    softmax, dense = attention(facts, Traits(), None), dense_mlp(facts, Traits())
    sparse = routed(facts, count="num_experts") if facts.count("num_experts") > 1 else dense

    def here(index: int, kind: str) -> bool:
        return index % facts.number(f"{kind}_layer_period") == facts.count(f"{kind}_layer_offset")

    layers = [
        parts.layer(
            softmax if here(index, "attn") else mamba_part,
            sparse if here(index, "expert") else dense,
            norms=2 * hidden,
        )
        for index in range(facts.number("num_hidden_layers"))
    ]
    return parts.model(facts, layers, vectors=hidden)


def bamba(facts: Facts) -> ModelShape:
    """Bamba: Mamba-2 with attention in ``attn_layer_indices``, an MLP behind either."""
    hidden, mixer = facts.number("hidden_size"), _mamba2_of(facts)
    softmax, mlp = attention(facts, _BIASES, None), dense_mlp(facts, _BIASES)
    attended = facts.items("attn_layer_indices") or []
    layers = [
        parts.layer(softmax if index in attended else mixer, mlp, norms=2 * hidden)
        for index in range(facts.number("num_hidden_layers"))
    ]
    return parts.model(facts, layers, vectors=hidden)


def falcon_h1(facts: Facts) -> ModelShape:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    hidden = facts.number("hidden_size")
    mixer = _mamba2_of(
        facts,
        inner=facts.maybe("mamba_d_ssm"),
        out_bias=facts.flag("projectors_bias"),
        norm=facts.flag("mamba_rms_norm"),
    )
    both = parts.side_by_side(attention(facts, _BIASES, None), mixer)
    layer = parts.layer(both, dense_mlp(facts, _BIASES), norms=2 * hidden)
    return parts.model(facts, [layer] * facts.number("num_hidden_layers"), vectors=hidden)


_RECURRENT = frozenset({"mamba", "mamba2", "linear_attention", "recurrent", "conv", "M"})
_SOFTMAX = frozenset({"attention", "full_attention", "*"})
_MLP = frozenset({"mlp", "-"})
_EXPERTS = frozenset({"moe", "E"})


def granite_hybrid(facts: Facts) -> ModelShape:
    """Granite 4: Mamba-2 or attention by ``layer_types``, experts, if any, beside a shared MLP."""
    hidden, mixer = facts.number("hidden_size"), _mamba2_of(facts)
    softmax = attention(facts, Traits(qkv_bias="attention_bias", out_bias="attention_bias"), None)
    width = facts.number("shared_intermediate_size")
    mlp = parts.gated_mlp(hidden, width, fused=True)
    if facts.count("num_local_experts"):
        mlp = parts.with_shared(routed(facts), mlp)
    types = windows.layer_types(facts, ["mamba"] * facts.number("num_hidden_layers"))
    layers = [
        parts.layer(mixer if each in _RECURRENT else softmax, mlp, norms=2 * hidden)
        for each in types
    ]
    return parts.model(facts, layers, vectors=hidden)


def nemotron_h(facts: Facts) -> ModelShape:
    """Nemotron-H: each layer is one of Mamba-2, attention, MLP or experts, behind one norm."""
    hidden = facts.number("hidden_size")
    types = [str(each) for each in facts.items("layers_block_type") or _pattern(facts)]
    if not types:
        raise MissingFact("layers_block_type")

    def layer(kind: str) -> LayerShape:
        if kind in _RECURRENT:
            return parts.layer(_nemotron_mamba(facts), None, norms=hidden)
        if kind in _SOFTMAX:
            return parts.layer(attention(facts, Traits(), None), None, norms=hidden)
        if kind in _EXPERTS:
            return parts.layer(None, _nemotron_experts(facts), norms=hidden)
        if kind in _MLP:
            traits = Traits(mlp="plain", mlp_bias="mlp_bias")
            return parts.layer(None, dense_mlp(facts, traits), norms=hidden)
        raise ModelLoadError(f"config.json has {shortened(kind)} among layers_block_type.")

    built = {kind: layer(kind) for kind in dict.fromkeys(types)}
    return parts.model(facts, [built[kind] for kind in types], vectors=hidden, can_tie=False)


def _pattern(facts: Facts) -> list[str]:
    """The layers as a word, a letter each: ``M-M*``; [] where it is not told."""
    key = "hybrid_override_pattern"
    told = facts.get(key)
    return [] if told is None else list(word(key, told))


def _nemotron_mamba(facts: Facts) -> parts.Part:
    return mamba2(
        hidden=facts.number("hidden_size"),
        heads=facts.number("mamba_num_heads"),
        head_dim=facts.number("mamba_head_dim"),
        groups=facts.number("n_groups"),
        state=facts.number("ssm_state_size"),
        kernel=facts.number("conv_kernel"),
        chunk=facts.number("chunk_size"),
        bias=facts.flag("use_bias"),
        out_bias=facts.flag("use_bias"),
        conv_bias=facts.flag("use_conv_bias"),
    )


def _nemotron_experts(facts: Facts) -> parts.Part:
    """Experts without a gate, on a narrower latent where one is told, beside a shared MLP."""
    hidden, bias = facts.number("hidden_size"), facts.flag("mlp_bias")
    latent, count = facts.maybe("moe_latent_size"), facts.number("n_routed_experts")
    mlp = parts.plain_experts(
        hidden=hidden,
        inputs=latent or hidden,
        width=facts.number("moe_intermediate_size"),
        count=count,
        active=min(count, facts.number("num_experts_per_tok")),
    )
    if latent is not None:
        mlp = parts.joined(
            mlp,
            parts.linear("ffn_latent_down", latent, hidden, bias=bias),
            parts.linear("ffn_latent_up", hidden, latent, bias=bias),
            values=mlp.values + latent,
        )
    width = facts.number("moe_shared_expert_intermediate_size")
    return parts.with_shared(mlp, parts.plain_mlp(hidden, width, bias=bias))


def _short_convolution(facts: Facts) -> parts.Part:
    """LFM 2: a gated convolution over few tokens; its state is those tokens."""
    hidden, bias = facts.number("hidden_size"), facts.flag("conv_bias")
    kernel = facts.number("conv_L_cache")
    part = parts.joined(
        parts.linear("shortconv.in_proj", 3 * hidden, hidden, bias=bias),
        _convolution(hidden, kernel, bias=bias, name="shortconv.conv"),
        parts.linear("shortconv.out_proj", hidden, hidden, bias=bias),
        values=6 * hidden,
    )
    return parts.with_state(part, State(elements=hidden * kernel))


def _lfm2_mixers(facts: Facts) -> list[parts.Part]:
    softmax = attention(facts, Traits(query_norms=True), None)
    layers = facts.number("num_hidden_layers")
    attended = facts.items("full_attn_idxs")
    by_index = [
        "full_attention" if attended is None or index in attended else "conv"
        for index in range(layers)
    ]
    convolution = _short_convolution(facts)
    types = windows.layer_types(facts, by_index)
    return [convolution if each in _RECURRENT else softmax for each in types]


def lfm2(facts: Facts) -> ModelShape:
    """LFM 2: short convolutions and attention; the MLP's width is adjusted as in Llama 1."""
    hidden = facts.number("hidden_size")
    width = facts.maybe("block_ff_dim") or facts.number("intermediate_size")
    if facts.flag("block_auto_adjust_ff_dim"):
        width, step = 2 * width // 3, facts.number("block_multiple_of")
        factor = facts.factor("block_ffn_dim_multiplier", 1.0)
        width = -(-int(factor * width) // step) * step
    mlp = parts.gated_mlp(hidden, width)
    layers = [parts.layer(mixer, mlp, norms=2 * hidden) for mixer in _lfm2_mixers(facts)]
    return parts.model(facts, layers, vectors=hidden)


def lfm2_moe(facts: Facts) -> ModelShape:
    """LFM 2 with experts behind its first, dense layers."""
    hidden, dense = facts.number("hidden_size"), dense_mlp(facts, Traits())
    sparse = routed(facts, width="moe_intermediate_size", count="num_experts")
    first = facts.count("num_dense_layers")
    layers = [
        parts.layer(mixer, dense if index < first else sparse, norms=2 * hidden)
        for index, mixer in enumerate(_lfm2_mixers(facts))
    ]
    return parts.model(facts, layers, vectors=hidden)


def _qwen_mixers(facts: Facts, *, split: bool) -> list[parts.Part]:
    """The delta rule in all but every fourth layer; its attention gates its own output."""
    softmax = attention(
        facts,
        Traits(
            qkv_bias="attention_bias",
            out_bias="attention_bias",
            query_norms=True,
            output_gate=True,
        ),
        None,
    )
    delta = gated_delta(facts, split=split)
    period = facts.number("full_attention_interval")
    types = windows.layer_types(facts, windows.one_in(facts, period))
    return [softmax if each == "full_attention" else delta for each in types]


def _qwen_experts(facts: Facts) -> parts.Part:
    return parts.with_shared(
        routed(facts, width="moe_intermediate_size", count="num_experts"),
        dense_mlp(facts, Traits(), "shared_expert_intermediate_size"),
        gate=True,
        shared_first=True,
    )


def qwen3_next(facts: Facts) -> ModelShape:
    """Qwen 3 Next: gated delta rule and attention, experts beside a shared one."""
    hidden, sparse = facts.number("hidden_size"), _qwen_experts(facts)
    dense, only_dense = dense_mlp(facts, Traits()), facts.items("mlp_only_layers") or []
    step = facts.number("decoder_sparse_step")
    layers = [
        parts.layer(
            mixer,
            sparse if (index + 1) % step == 0 and index not in only_dense else dense,
            norms=2 * hidden,
        )
        for index, mixer in enumerate(_qwen_mixers(facts, split=False))
    ]
    return parts.model(facts, layers, vectors=hidden)


def qwen3_5(facts: Facts) -> ModelShape:
    """Qwen 3.5: gated delta rule and attention, one MLP."""
    hidden, mlp = facts.number("hidden_size"), dense_mlp(facts, Traits())
    mixers = _qwen_mixers(facts, split=True)
    layers = [parts.layer(mixer, mlp, norms=2 * hidden) for mixer in mixers]
    return parts.model(facts, layers, vectors=hidden)


def qwen3_5_moe(facts: Facts) -> ModelShape:
    """Qwen 3.5 with experts in every layer."""
    hidden, mlp = facts.number("hidden_size"), _qwen_experts(facts)
    mixers = _qwen_mixers(facts, split=True)
    layers = [parts.layer(mixer, mlp, norms=2 * hidden) for mixer in mixers]
    return parts.model(facts, layers, vectors=hidden)


def minimax(facts: Facts) -> ModelShape:
    """MiniMax 01: lightning attention, which keeps a matrix a head, and attention, with experts."""
    hidden, heads = facts.number("hidden_size"), facts.number("num_attention_heads")
    head_dim = facts.number("head_dim", hidden // heads or None)
    width = heads * head_dim
    lightning = parts.joined(
        parts.linear("attn_qkv", 3 * width, hidden),
        parts.linear("attn_gate", width, hidden),
        parts.linear("attn_output", hidden, width),
        parts.vectors(width),
        values=6 * width,
    )
    lightning = parts.with_state(lightning, State(elements=heads * head_dim**2))
    softmax = attention(facts, Traits(), None)
    types = windows.layer_types(facts, windows.one_in(facts, 2, "linear_attention"))
    layers = [
        parts.layer(lightning if each in _RECURRENT else softmax, routed(facts), norms=2 * hidden)
        for each in types
    ]
    return parts.model(facts, layers, vectors=hidden)
