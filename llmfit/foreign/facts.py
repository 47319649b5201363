"""Values of a stranger's config.json: of the type that is meant, and of a size that can be.

    key, value ─► number, list, object, or a ModelLoadError that names key and value

A size is bounded before anything is made of it: layers are objects here, experts are modules in
transformers, and products of two sizes stay within a float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import shortened

LARGEST_NUMBER = 2**31 - 1
"""Of any size. torch and llama.cpp count tokens, rows and positions in 32 bits."""
LARGEST_FACTOR = 1e12
"""Of a number that need not be whole: bases of rotary positions reach 10⁸."""
MOST_LAYERS = 1_024
"""Twice what llama.cpp computes; published models have some hundred."""
MOST_KINDS = 256
"""Of different layers, each of which takes its own arithmetic; a searched model has some fifty."""
MOST_MATRICES = 2**20
"""Of all layers, experts counted one by one; the largest published models have 70,000."""
MOST_EXPERTS = 65_536
"""Of a layer; published models have some hundred."""
MOST_TOKENS = 2**22
"""Of a vocabulary, sixteen times Gemma 3's: each is a string where a tokenizer is read."""
MOST_PARAMETERS = 10**14
"""Fifty times the largest published model. A config that tells of more is damaged."""

_MOST_OF = {
    "num_labels": 2**16,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
                    MOST_EXPERTS),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
                     "decoder_layers", "depth", "num_nextn_predict_layers"), MOST_LAYERS),
}  # fmt: skip
"""Keys of counts, each of which libraries make an object of."""

HINT = "a decoder-only language model in Hugging Face layout"


def whole_number(key: str, value: object, *, least: int = 1, most: int = LARGEST_NUMBER) -> int:
    """``value`` where it is a whole number from ``least`` to ``most``. Raises ModelLoadError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        bound = "above 0" if least == 1 else f"from {least}"
        raise _refused(key, value, f"a whole number {bound}")
    if value > most:
        raise _refused(key, value, f"a number up to {most}")
    return value


def finite_number(key: str, value: object, *, above: float = 0.0) -> float:
    """``value`` where it is a number above ``above``. Raises ModelLoadError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(key, value, "a number")
    if not math.isfinite(value) or not above < value <= LARGEST_FACTOR:
        raise _refused(key, value, f"a number above {above:g}")
    return float(value)


def items(key: str, value: object) -> list[Any]:
    """``value`` where it is a list of no more than one item a layer. Raises ModelLoadError."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _refused(key, value, "a list")
    if len(value) > MOST_LAYERS:
        raise ModelLoadError(
            f"config.json has {len(value)} items in {key}, at most {MOST_LAYERS} are read.",
            hint=HINT,
        )
    return list(value)


def word(key: str, value: object) -> str:
    """``value`` where it is a word or two. Raises ModelLoadError."""
    if not isinstance(value, str) or len(value) > 200:
        raise _refused(key, value, "a name")
    return value


def mapping(key: str, value: object) -> Mapping[str, Any]:
    """``value`` where it is an object. Raises ModelLoadError."""
    if not isinstance(value, Mapping):
        raise _refused(key, value, "an object")
    return value


def require_countable(config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError where a count of objects is absurd, in any part of a model's config.

    transformers makes a name for each label and a module for each layer and expert, of a vision
    part too, before it looks at anything else.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            require_countable(value)
        elif type(value) is int and value > _MOST_OF.get(key, value):
            raise _refused(key, value, f"a number up to {_MOST_OF[key]}")


def head_size(hidden: int, heads: int) -> int:
    """Each head's share of the hidden size. Raises ModelLoadError where it has none."""
    if heads > hidden:
        raise ModelLoadError(
            f"config.json has {heads} heads for a hidden size of {hidden}.", hint=HINT
        )
    return hidden // heads


def class_name(config: Mapping[str, Any]) -> str | None:
    """The model's class, the first of ``architectures``; None where it tells none.

    Raises ModelLoadError.
    """
    told = config.get("architectures")
    if told is None or told == []:
        return None
    return word("architectures", items("architectures", told)[0])


def model_type(config: Mapping[str, Any]) -> str | None:
    """The family, or None where a config tells none. Raises ModelLoadError."""
    told = config.get("model_type")
    return None if told is None else word("model_type", told)


def _refused(key: str, value: object, needed: str) -> ModelLoadError:
    said = f"config.json has {key} = {shortened(value)}, {needed} is needed."
    return ModelLoadError(said, hint=HINT)
