"""From config.json to the shape of a model, by a table of architectures.

    config.json ─► Facts (aliases, the family's defaults) ─► its family's builder ─► ModelShape

One module a kind of architecture, each of small builders that share the pieces of ``_parts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.facts import HINT, MOST_PARAMETERS, class_name, model_type
from llmfit.planning.architectures import (
    dense,
    experts,
    latent,
    older,
    per_layer,
    recurrent,
    searched,
)
from llmfit.planning.architectures._facts import Facts, MissingFact
from llmfit.planning.architectures._families import ALIASES, DEFAULTS
from llmfit.planning.architectures.plain import plain_numbers
from llmfit.shape import Attention, ModelShape

_BUILDERS: dict[str, Callable[[Facts], ModelShape]] = {
    **{name: partial(dense.build, traits=traits) for name, traits in dense.TRAITS.items()},
    "gpt2": older.gpt2,
    "opt": older.opt,
    "bloom": older.bloom,
    "mpt": older.mpt,
    "falcon": older.falcon,
    "gemma3n_text": per_layer.gemma3n,
    "gemma4_text": per_layer.gemma4,
    "mixtral": experts.mixtral,
    "qwen2_moe": experts.qwen2_moe,
    "qwen3_moe": experts.qwen3_moe,
    "olmoe": experts.olmoe,
    "flex_olmo": experts.olmoe,
    "phimoe": experts.phimoe,
    "granitemoe": experts.granite_moe,
    "granitemoeshared": experts.granite_moe,
    "gpt_oss": experts.gpt_oss,
    "llama4_text": experts.llama4,
    "ernie4_5_moe": experts.ernie4_5_moe,
    "hunyuan_v1_moe": experts.hunyuan_moe,
    "minimax_m2": experts.minimax_m2,
    "glm4_moe": experts.glm4_moe,
    "dots1": experts.dots1,
    "exaone_moe": experts.exaone_moe,
    "deepseek_v2": latent.deepseek,
    "deepseek_v3": latent.deepseek,
    "glm4_moe_lite": latent.glm_flash,
    "mamba": recurrent.mamba,
    "falcon_mamba": recurrent.mamba,
    "mamba2": recurrent.mamba2_model,
    "jamba": recurrent.jamba,
    "bamba": recurrent.bamba,
    "falcon_h1": recurrent.falcon_h1,
    "granitemoehybrid": recurrent.granite_hybrid,
    "nemotron_h": recurrent.nemotron_h,
    "lfm2": recurrent.lfm2,
    "lfm2_moe": recurrent.lfm2_moe,
    "qwen3_next": recurrent.qwen3_next,
    "qwen3_5_text": recurrent.qwen3_5,
    "qwen3_5_moe_text": recurrent.qwen3_5_moe,
    "minimax": recurrent.minimax,
    "nemotron-nas": searched.nemotron_nas,
}

# Language models inside others, of the same shape under a name of their own.
_SAME_SHAPE = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "iquestcoder": "llama",
}
# What a text_config without a model_type is.
_TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "llava": "llama",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}

FAMILIES = tuple(_BUILDERS)
"""The model types whose own rules are known here; others are read by their plain numbers."""

_LANGUAGE_PARTS = ("text_config", "llm_config", "language_config")
_CONTEXT_NAMES = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
    "seq_length",
)  # fmt: skip


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape of a config.json's model; None where not even its plain numbers are there.

    Raises ModelLoadError, which names key and value, for a value that cannot be meant.
    """
    try:
        return _read(config)
    except MissingFact:
        return None


def require_shape(config: Mapping[str, Any]) -> ModelShape:
    """As ``read_shape``. Raises ModelLoadError for a key that is missing, too."""
    try:
        return _read(config)
    except MissingFact as missing:
        raise ModelLoadError(
            f"config.json has no {missing}, which its architecture "
            f"({config.get('model_type', 'no model_type')}) needs.",
            hint="a decoder-only language model in Hugging Face layout",
        ) from missing


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config itself, or of a multimodal model that of its language model."""
    parts = (config.get(key) for key in _LANGUAGE_PARTS)
    return next((part for part in parts if isinstance(part, Mapping) and part), config)


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest context; None where the config tells none, e.g. of a Mamba.

    Raises ModelLoadError for a value that cannot be meant.
    """
    facts = _facts(language_part(config))
    return next((limit for key in _CONTEXT_NAMES if (limit := facts.maybe(key))), None)


def widest_attention(shape: ModelShape) -> Attention | None:
    """The attention with the most heads of any layer; None in a model that has none."""
    found = [kind.attention for kind in shape.kinds if kind.attention is not None]
    return max(found, key=lambda attention: attention.heads, default=None)


def _read(config: Mapping[str, Any]) -> ModelShape:
    shape = _unbounded(config)
    if shape.parameters > MOST_PARAMETERS:
        raise ModelLoadError(
            f"config.json tells of a model of {float(shape.parameters):.3g} parameters; the "
            f"largest that can be meant has {float(MOST_PARAMETERS):.0e}.",
            hint=HINT,
        )
    return shape


def _unbounded(config: Mapping[str, Any]) -> ModelShape:
    part = language_part(config)
    _refuse_encoders(config, part)
    if part is config and "vision_config" not in config:
        return _shape_of(config)
    whole = model_type(config) or "a multimodal model"
    part = {"model_type": _TEXT_TYPES.get(whole, "unknown"), **part}
    if config.get("tie_word_embeddings") is not None:  # stands above what its part says
        part["tie_word_embeddings"] = config["tie_word_embeddings"]
    shape = _shape_of(part)
    note = f"the text part of {whole} alone"
    return replace(shape, notes=(note, *shape.notes))


def _shape_of(config: Mapping[str, Any]) -> ModelShape:
    builder = _BUILDERS.get(_family(config))
    return plain_numbers(config) if builder is None else builder(_facts(config))


def _family(config: Mapping[str, Any]) -> str:
    family = model_type(config) or "None"
    return _SAME_SHAPE.get(family, family)


def _facts(config: Mapping[str, Any]) -> Facts:
    family = _family(config)
    return Facts(config, defaults=DEFAULTS.get(family), aliases=ALIASES.get(family))


def _refuse_encoders(config: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for a model that is no decoder alone."""
    architecture = class_name(config) or "unknown"
    if part.get("is_encoder_decoder") or architecture.endswith("ForMaskedLM"):
        raise ModelLoadError(
            f"{architecture} ({config.get('model_type')}) is no decoder-only language model.",
            hint="a causal language model in Hugging Face layout",
        )
