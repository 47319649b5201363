"""What the GGUF metadata says of a model, from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError, ModelNotFound

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    # llama.cpp computes Mistral as a Llama.
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Class name in config.json to llama.cpp's architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufShape:
    """What the GGUF metadata says of a model, from config.json."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    tied: bool
    rope_theta: float
    rope: Mapping[str, Any]
    """The rope scaling's settings; ``rope_type`` "default" where there is none."""
    notes: tuple[str, ...] = ()


def read_shape(folder: Path) -> GgufShape:
    """The model's shape. Raises ModelLoadError for what llama.cpp cannot compute."""
    config = _read_config(folder)
    name = (config.get("architectures") or ["?"])[0]
    if name not in ARCHITECTURES:
        raise ModelLoadError(
            f"no GGUF converter for the architecture {name}; supported are "
            f"{', '.join(ARCHITECTURES)}.",
            hint="--checkpoint gguf=FILE with a GGUF file of this model made elsewhere",
        )
    try:
        return _shape_of(config, ARCHITECTURES[name])
    except KeyError as exc:
        raise ModelLoadError(f"{folder / 'config.json'} has no {exc.args[0]!r}.") from exc


def _shape_of(config: dict[str, Any], architecture: str) -> GgufShape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or (128 if architecture == "qwen3" else hidden // heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    context, notes = _context_length(config, architecture)
    refuse(config.get("hidden_act", "silu") != "silu", f"hidden_act {config.get('hidden_act')!r}")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    refuse(partial != 1.0, f"partial_rotary_factor {partial}")
    refuse(
        architecture == "qwen2" and head_dim * heads != hidden,
        f"{heads} heads of {head_dim} at hidden size {hidden} (for Qwen2)",
    )
    return GgufShape(
        architecture=architecture,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        context_length=context,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope={**rope, "rope_type": rope.get("rope_type") or rope.get("type") or "default"},
        notes=notes,
    )


def _context_length(config: dict[str, Any], architecture: str) -> tuple[int, tuple[str, ...]]:
    """Tokens over which llama.cpp's full attention equals the model's own."""
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if architecture.startswith("qwen") and not config.get("use_sliding_window", False):
        window = None
    if window is None or window >= context:
        return context, ()
    return int(window), (
        f"sliding-window attention: the context is held to the window of {window} tokens, "
        f"within which llama.cpp's full attention is the same (the model's is {context})",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise ModelNotFound(
            f"{folder} holds no config.json.", hint="give the folder that holds config.json"
        ) from exc
    except (OSError, ValueError) as exc:
        raise ModelLoadError(f"{file} cannot be read as JSON: {exc}.") from exc
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} is no JSON object.")
    return config


def refuse(condition: bool, what: str) -> None:
    """Raise ModelLoadError naming ``what`` where ``condition`` holds."""
    if condition:
        raise ModelLoadError(
            f"llama.cpp's computation of this model has no place for {what}.",
            hint="--checkpoint gguf=FILE with a GGUF file of this model made elsewhere",
        )
