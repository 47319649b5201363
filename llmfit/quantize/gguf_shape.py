"""What the GGUF metadata says of a model, from its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.foreign.facts import (
    LARGEST_NUMBER,
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_TOKENS,
    class_name,
    finite_number,
    head_size,
    items,
    mapping,
    whole_number,
    word,
)
from llmfit.foreign.json import read_json, shortened
from llmfit.quantize.gguf_architectures import ARCHITECTURES, Architecture

_OTHER_WAYS = (
    "--checkpoint gguf=FILE with a GGUF file of this model made elsewhere, or --llama-cpp DIR "
    "with a llama.cpp checkout whose converter knows it"
)

_WHOLE = {
    "hidden_size": LARGEST_NUMBER, "intermediate_size": LARGEST_NUMBER,
    "num_attention_heads": LARGEST_NUMBER, "num_key_value_heads": LARGEST_NUMBER,
    "head_dim": LARGEST_NUMBER, "vocab_size": MOST_TOKENS,
    "max_position_embeddings": LARGEST_NUMBER, "sliding_window": LARGEST_NUMBER,
    "sliding_window_pattern": LARGEST_NUMBER, "original_max_position_embeddings": LARGEST_NUMBER,
    "num_hidden_layers": MOST_LAYERS, "num_local_experts": MOST_EXPERTS,
    "num_experts_per_tok": MOST_EXPERTS,
}  # fmt: skip
"""Keys of whole numbers, and the largest of each."""
_REAL = frozenset({
    "rms_norm_eps", "rope_theta", "partial_rotary_factor", "rope_local_base_freq",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "factor",
    "attention_factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
})  # fmt: skip
_NEEDED = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
}  # fmt: skip
"""What a kind of rope scaling cannot be computed without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufShape:
    """What the GGUF metadata says of a model, from config.json."""

    architecture: Architecture
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    """Dimensions of each head that are rotated, from its first."""
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    tied: bool
    rope_theta: float
    rope: Mapping[str, Any]
    """The rope scaling's settings; ``rope_type`` "default" where there is none."""
    rope_local_theta: float | None = None
    """Of the layers with a sliding window, where it is another one."""
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    softcaps: Mapping[str, float]
    query_factor: float = 1.0
    """What queries are multiplied by in the file, where llama.cpp's own scale is another one."""
    experts: int | None = None
    experts_used: int | None = None
    notes: tuple[str, ...] = ()


def read_shape(folder: Path) -> GgufShape:
    """The model's shape. Raises ModelLoadError for what llama.cpp cannot compute."""
    config = _read_config(folder)
    name = class_name(config) or "?"
    return shape_from_config(config, architecture=name, source=str(folder / "config.json"))


def shape_from_config(config: Mapping[str, Any], *, architecture: str, source: str) -> GgufShape:
    """The shape of a config's model, whose class is ``architecture``.

    Raises ModelLoadError for what llama.cpp cannot compute, and naming ``source`` for a key that
    is missing.
    """
    if architecture not in ARCHITECTURES:
        raise ModelLoadError(
            f"no GGUF converter for the architecture {architecture}; supported are "
            f"{', '.join(ARCHITECTURES)}.",
            hint=_OTHER_WAYS,
        )
    computed = ARCHITECTURES[architecture]
    text = dict(config)
    if computed.text_part:  # the words at the top say what holds for all of the model
        text |= mapping("text_config", config.get("text_config", {}))
    try:
        return _shape_of(_numbers({**computed.defaults, **text}), computed)
    except KeyError as exc:
        raise ModelLoadError(f"{source} has no {exc.args[0]!r}.") from exc


def _numbers(table: Mapping[str, Any]) -> dict[str, Any]:
    """``table`` without its nulls, its numbers being numbers. Raises ModelLoadError."""
    told = {key: value for key, value in table.items() if value is not None}
    for key in _WHOLE.keys() & told.keys():
        whole_number(key, told[key], most=_WHOLE[key])
    for key in _REAL & told.keys():
        finite_number(key, told[key])
    return told


def _shape_of(config: dict[str, Any], architecture: Architecture) -> GgufShape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or head_size(hidden, heads)
    rope, local_theta = _rope_of(config, architecture)
    context, notes = _context_length(config, architecture)
    if architecture.text_part:
        notes += ("of the multimodal model, the language model alone is in the GGUF file",)
    query_factor, scale_notes = _query_factor(config, architecture, head_dim)
    shape = GgufShape(
        architecture=architecture,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * rope["partial_rotary_factor"]),
        vocab_size=config["vocab_size"],
        context_length=context,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope_theta=rope["rope_theta"],
        rope=rope,
        rope_local_theta=local_theta,
        sliding_window=config.get("sliding_window") if architecture.full_attention_every else None,
        sliding_layers=_sliding_layers(config, architecture),
        softcaps={key: config[key] for key in architecture.softcaps if config.get(key)},
        query_factor=query_factor,
        experts=config.get("num_local_experts"),
        experts_used=config.get("num_experts_per_tok"),
        notes=notes + scale_notes + _longrope_notes(rope, context),
    )
    _require_computable(config, shape)
    return shape


def _require_computable(config: dict[str, Any], shape: GgufShape) -> None:
    """Refuse what llama.cpp's graph of this architecture does in another way or not at all."""
    architecture = shape.architecture
    activation = config.get("hidden_activation") or config.get("hidden_act")
    partial, kind = shape.rope["partial_rotary_factor"], shape.rope["rope_type"]
    head_dim = shape.head_dim
    refuse(
        activation not in (None, architecture.activation),
        f"the activation function {shortened(activation)}",
    )
    refuse(
        (partial != 1.0 and not architecture.partial_rope) or not 0 < shape.rotary_dim <= head_dim,
        f"partial_rotary_factor {partial}",
    )
    refuse(kind not in architecture.rope_types, f"rope scaling of the type {kind}")
    refuse(
        architecture.square_attention and shape.head_dim * shape.heads != shape.hidden,
        f"{shape.heads} heads of {shape.head_dim} at hidden size {shape.hidden} "
        f"(for {architecture.name})",
    )
    refuse(architecture.must_tie and not shape.tied, "an output matrix apart from the embedding")
    refuse(bool(config.get("use_bidirectional_attention")), "attention to later tokens")
    refuse(
        architecture.full_attention_every is not None and not shape.sliding_window,
        f"sliding_window {shape.sliding_window}",
    )
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        value = config.get(cap)
        if cap not in architecture.softcaps:
            refuse(value is not None, f"{cap} {value}")
        elif architecture.softcaps[cap]:
            refuse(not value, f"{cap} {value}")


def _query_factor(
    config: dict[str, Any], architecture: Architecture, head_dim: int
) -> tuple[float, tuple[str, ...]]:
    """What is missing where Gemma divides queries by another root than llama.cpp, and a note.

    llama.cpp reads no such number from the file: it takes the head size, or the width per head.
    """
    if "query_pre_attn_scalar" not in architecture.defaults:
        return 1.0, ()
    by_width = config["num_hidden_layers"] == architecture.scaled_by_width
    computed = config["hidden_size"] // config["num_attention_heads"] if by_width else head_dim
    asked = config["query_pre_attn_scalar"]
    if asked == computed:
        return 1.0, ()
    return math.sqrt(computed / asked), (
        f"queries are scaled by √({computed}/{asked}) in the file: llama.cpp divides them by "
        f"√{computed}, the model by √{asked}",
    )


def _rope_of(
    config: dict[str, Any], architecture: Architecture
) -> tuple[dict[str, Any], float | None]:
    """Rope settings in one form, and the base of the layers with a sliding window."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    given = _numbers(mapping("rope_parameters", given))
    local_theta = config.get("rope_local_base_freq") if architecture.full_attention_every else None
    if "full_attention" in given:
        local = _numbers(mapping("rope_parameters", given.get("sliding_attention", {})))
        refuse(local.get("rope_type", "default") != "default", f"rope scaling {shortened(local)}")
        local_theta = local.get("rope_theta", local_theta)
        given = _numbers(mapping("rope_parameters", given["full_attention"]))
    rope: dict[str, Any] = {
        "rope_theta": config.get("rope_theta") or 10_000.0,
        "partial_rotary_factor": config.get("partial_rotary_factor") or 1.0,
        "original_max_position_embeddings": config.get("original_max_position_embeddings"),
        **given,
        "rope_type": word("rope_type", given.get("rope_type") or given.get("type") or "default"),
    }
    rope["rope_theta"] = float(rope["rope_theta"])
    if architecture.name == "phi3":
        _prepare_longrope(rope, config)
    for key in _NEEDED.get(rope["rope_type"], ()):
        if rope.get(key) is None:
            raise KeyError(key)
    for key in ("long_factor", "short_factor"):
        for value in items(key, rope.get(key, [])):
            finite_number(key, value)
    return rope, None if local_theta is None else float(local_theta)


def _prepare_longrope(rope: dict[str, Any], config: dict[str, Any]) -> None:
    """Fill in what Phi-3's scaling leaves to be computed.

    Source: the LongRoPE paper: cosines and sines are multiplied by
    √(1 + ln(longest / trained) / ln(trained)).
    """
    if rope["rope_type"] not in ("longrope", "su", "yarn") or "long_factor" not in rope:
        return
    rope["rope_type"] = "longrope"  # its names before transformers 4.45 and after
    trained = rope["original_max_position_embeddings"]
    if trained is None:
        return
    trained = whole_number("original_max_position_embeddings", trained, least=2)
    stretch = rope.get("factor") or config["max_position_embeddings"] / trained
    if rope.get("attention_factor") is None:
        rope["attention_factor"] = (
            math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
        )


def _longrope_notes(rope: Mapping[str, Any], context: int) -> tuple[str, ...]:
    trained = rope["original_max_position_embeddings"]
    if rope["rope_type"] != "longrope" or context <= trained:
        return ()
    return (
        "llama.cpp takes the rotary factors for long texts when there is room for more than "
        f"{trained} tokens, the model itself when a text has more",
    )


def _sliding_layers(config: dict[str, Any], architecture: Architecture) -> tuple[bool, ...]:
    """Which layers slide; () where llama.cpp's own pattern says the same, or none slides."""
    every = architecture.full_attention_every
    if every is None:
        return ()
    layers = range(config["num_hidden_layers"])
    usual = tuple((layer + 1) % every != 0 for layer in layers)
    kinds = items("layer_types", config.get("layer_types", []))
    if kinds:
        refuse(len(kinds) != len(layers), f"{len(kinds)} layer_types for {len(layers)} layers")
        slides = tuple(kind == "sliding_attention" for kind in kinds)
    else:
        given = config.get("sliding_window_pattern") or every
        slides = tuple((layer + 1) % given != 0 for layer in layers)
    return () if slides == usual else slides


def _context_length(
    config: dict[str, Any], architecture: Architecture
) -> tuple[int, tuple[str, ...]]:
    """Tokens over which llama.cpp's attention equals the model's own."""
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if architecture.name.startswith("qwen") and not config.get("use_sliding_window", False):
        window = None
    if architecture.full_attention_every or window is None or window >= context:
        return context, ()
    return int(window), (
        f"sliding-window attention: the context is held to the window of {window} tokens, "
        f"within which llama.cpp's full attention is the same (the model's is {context})",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        raise ModelNotFound(
            f"{folder} holds no config.json.", hint="give the folder that holds config.json"
        )
    return read_json(file)


def refuse(condition: bool, what: str) -> None:
    """Raise ModelLoadError naming ``what`` where ``condition`` holds."""
    if condition:
        raise ModelLoadError(
            f"llama.cpp's computation of this model has no place for {what}.", hint=_OTHER_WAYS
        )
