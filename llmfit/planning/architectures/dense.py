"""Models with one MLP in every layer, from Llama's kin to those before it, as a table of traits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from llmfit.errors import ModelLoadError
from llmfit.planning.architectures import _layers as windows
from llmfit.planning.architectures import _parts as parts
from llmfit.planning.architectures._facts import Facts
from llmfit.shape import Matrix, ModelShape

Switch = bool | str
"""Always, never, or as the config's key of this name says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The widths that attention needs."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int

    @staticmethod
    def of(facts: Facts) -> Sizes:
        """As most configs tell them; a head's size is the hidden size's share unless told."""
        hidden, heads = facts.number("hidden_size"), facts.number("num_attention_heads")
        return Sizes(
            hidden=hidden,
            heads=heads,
            kv_heads=facts.number("num_key_value_heads", heads),
            head_dim=facts.number("head_dim", hidden // heads or None),
        )

    @property
    def queries(self) -> int:
        """Values of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Values of all heads' keys, or values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What tells a family from Llama: RMS norms, grouped queries, a gated MLP, no biases."""

    qkv_bias: Switch = False
    out_bias: Switch = False
    mlp_bias: Switch = False
    fused_qkv: bool = False
    """One matrix for queries, keys and values."""
    one_kv_head: Switch = False
    output_gate: bool = False
    mlp: Literal["gated", "fused", "plain"] = "gated"
    """Three matrices; two, gate and up as one; or two without a gate."""
    four_times: bool = False
    """The MLP is four times as wide as the hidden size where no width is told."""
    query_norms: Switch = False
    """Norms of queries and of keys …"""
    norm_of: Literal["head", "heads"] = "head"
    """… over the size of a head, which all heads share, or with values of every head's own."""
    layer_norms: bool = False
    """Norms with a bias: two vectors each."""
    norms: int | Callable[[Facts], int] = 2
    """Norms of the hidden size in a layer."""
    last_norm: bool = True
    head_bias: Switch = False
    rotated_in_32_bits: bool = False
    """Rotary positions are applied in float32."""
    windows: windows.Windows = windows.nowhere
    more: Callable[[Facts], int] = field(default=lambda _: 0)
    """Values of other one-dimensional parameters in a layer."""
    extra: Callable[[Facts], tuple[Matrix, ...]] = field(default=lambda _: ())
    """Matrices outside the layers."""


def build(facts: Facts, traits: Traits, mlps: Sequence[parts.Part] | None = None) -> ModelShape:
    """The model of a family with these traits; ``mlps`` are each layer's where they differ."""
    hidden, norm = facts.number("hidden_size"), 2 if traits.layer_norms else 1
    windows_ = traits.windows(facts)
    mlps = [dense_mlp(facts, traits)] * len(windows_) if mlps is None else mlps
    if len(mlps) != len(windows_):
        raise ModelLoadError(f"config.json tells {len(mlps)} MLPs for {len(windows_)} layers.")
    norms = traits.norms if isinstance(traits.norms, int) else traits.norms(facts)
    layers = [
        parts.layer(attention(facts, traits, window), mlp, norms=norms * norm * hidden)
        for window, mlp in zip(windows_, mlps, strict=True)
    ]
    last = norm * hidden if traits.last_norm else 0
    head_bias = facts.number("vocab_size") if _on(facts, traits.head_bias) else 0
    return parts.model(facts, layers, vectors=last + head_bias, extra=traits.extra(facts))


def attention(facts: Facts, traits: Traits, window: int | None) -> parts.Part:
    """The attention of a layer that sees ``window`` tokens."""
    sizes, norm = Sizes.of(facts), 2 if traits.layer_norms else 1
    if _on(facts, traits.one_kv_head):
        sizes = replace(sizes, kv_heads=1)
    query_norms = 0
    if _on(facts, traits.query_norms):
        per_head = 2 * sizes.head_dim
        query_norms = norm * (per_head if traits.norm_of == "head" else sizes.queries + sizes.keys)
    return parts.attention(
        hidden=sizes.hidden,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        qkv_bias=_on(facts, traits.qkv_bias),
        out_bias=_on(facts, traits.out_bias),
        fused=traits.fused_qkv,
        output_gate=traits.output_gate,
        normed=query_norms > 0,
        rotated_in_32_bits=traits.rotated_in_32_bits,
        window=window,
        vectors=query_norms + traits.more(facts),
    )


def dense_mlp(facts: Facts, traits: Traits, key: str = "intermediate_size") -> parts.Part:
    """The MLP of the width that the config has under ``key``."""
    hidden, bias = facts.number("hidden_size"), _on(facts, traits.mlp_bias)
    width = facts.number(key, 4 * hidden if traits.four_times else None)
    if traits.mlp == "plain":
        return parts.plain_mlp(hidden, width, bias=bias)
    return parts.gated_mlp(hidden, width, bias=bias, fused=traits.mlp == "fused")


def _on(facts: Facts, switch: Switch) -> bool:
    return switch if isinstance(switch, bool) else facts.flag(switch)


def positions(key: str, *, more: int = 0) -> Callable[[Facts], tuple[Matrix, ...]]:
    """Learned positions: a row for each of ``key`` positions and ``more``."""

    def matrices(facts: Facts) -> tuple[Matrix, ...]:
        rows, hidden = facts.number(key) + more, facts.number("hidden_size")
        return (Matrix(name="position_embd", rows=rows, columns=hidden, linear=False),)

    return matrices


def _one_if(key: str) -> Callable[[Facts], int]:
    """One norm for both halves of a layer that run side by side, where ``key`` says they do."""
    return lambda facts: 1 if facts.flag(key) else 2


_LLAMA = Traits(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_GPT_J = Traits(
    mlp="plain", mlp_bias=True, four_times=True, layer_norms=True, norms=1, head_bias=True
)

TRAITS: dict[str, Traits] = {
    # Llama's kin: RMS norms and a gated MLP.
    "llama": _LLAMA,
    "internlm3": _LLAMA,
    "granite": _LLAMA,
    "helium": Traits(qkv_bias="attention_bias", mlp_bias="mlp_bias"),
    "seed_oss": Traits(
        qkv_bias="attention_bias", out_bias="attention_out_bias", mlp_bias="mlp_bias"
    ),
    "smollm3": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        windows=windows.without_rope,
    ),
    "ernie4_5": Traits(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", rotated_in_32_bits=True
    ),
    "mistral": Traits(windows=windows.everywhere),
    "ministral": Traits(windows=windows.by_type),
    "ministral3": Traits(windows=windows.everywhere),
    "cwm": Traits(mlp_bias="mlp_bias", windows=windows.all_but_every_fourth_from_the_first),
    "qwen2": Traits(qkv_bias=True, windows=windows.after_the_first),
    "qwen3": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms=True,
        windows=windows.after_the_first,
    ),
    "hunyuan_v1_dense": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", query_norms=True
    ),
    "exaone4": Traits(query_norms=True, windows=windows.exaone),
    "olmo2": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms=True,
        norm_of="heads",
        rotated_in_32_bits=True,
    ),
    "olmo3": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms=True,
        norm_of="heads",
        rotated_in_32_bits=True,
        windows=windows.alternating(4),
    ),
    "olmo": Traits(qkv_bias="attention_bias", out_bias="attention_bias", norms=0, last_norm=False),
    "phi3": Traits(fused_qkv=True, mlp="fused", windows=windows.everywhere),
    "glm": Traits(qkv_bias="attention_bias", mlp="fused"),
    "glm4": Traits(qkv_bias="attention_bias", mlp="fused", norms=4),
    "bitnet": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        more=lambda facts: facts.number("hidden_size") + facts.number("intermediate_size"),
    ),
    # Gemma: heads wider than the hidden size's share, up to four norms.
    "gemma": Traits(qkv_bias="attention_bias", out_bias="attention_bias"),
    "gemma2": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        norms=4,
        windows=windows.alternating(2),
    ),
    "vaultgemma": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", windows=windows.alternating(2)
    ),
    "gemma3_text": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms=True,
        norms=4,
        windows=windows.alternating(),
    ),
    # Command: attention and MLP side by side behind one norm, which has no bias.
    "cohere": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_norms="use_qk_norm",
        norm_of="heads",
        norms=1,
    ),
    "cohere2": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        norms=1,
        windows=windows.alternating(),
    ),
    # RMS norms and an MLP without a gate.
    "arcee": Traits(
        qkv_bias="attention_bias", out_bias="attention_bias", mlp="plain", mlp_bias="mlp_bias"
    ),
    "nanochat": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp="plain",
        norms=0,
        last_norm=False,
    ),
    "apertus": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp="plain",
        query_norms=True,
        more=lambda _: 2,  # the activation's two parameters
    ),
    # Layer norms.
    "nemotron": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp="plain",
        mlp_bias="mlp_bias",
        layer_norms=True,
    ),
    "stablelm": Traits(
        qkv_bias="use_qkv_bias",
        layer_norms=True,
        norms=_one_if("use_parallel_residual"),
        more=lambda facts: (
            Sizes.of(facts).queries + Sizes.of(facts).keys if facts.flag("qk_layernorm") else 0
        ),
    ),
    "starcoder2": Traits(
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp="plain",
        mlp_bias="use_bias",
        layer_norms=True,
        windows=windows.everywhere,
    ),
    "phi": Traits(
        qkv_bias=True,
        out_bias=True,
        mlp="plain",
        mlp_bias=True,
        layer_norms=True,
        norms=1,
        query_norms="qk_layernorm",
        head_bias=True,
    ),
    "persimmon": Traits(
        qkv_bias=True,
        out_bias=True,
        fused_qkv=True,
        mlp="plain",
        mlp_bias=True,
        layer_norms=True,
        query_norms="qk_layernorm",
    ),
    "gpt_neox": Traits(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        fused_qkv=True,
        mlp="plain",
        mlp_bias=True,
        layer_norms=True,
    ),
    "gpt_bigcode": Traits(
        qkv_bias=True,
        out_bias=True,
        fused_qkv=True,
        one_kv_head="multi_query",
        mlp="plain",
        mlp_bias=True,
        four_times=True,
        layer_norms=True,
        extra=positions("n_positions"),
    ),
    "gpt_neo": Traits(
        out_bias=True,
        mlp="plain",
        mlp_bias=True,
        four_times=True,
        layer_norms=True,
        windows=windows.gpt_neo,
        extra=positions("max_position_embeddings"),
    ),
    "gptj": _GPT_J,
    "codegen": replace(_GPT_J, fused_qkv=True),
}
