"""llama.cpp's tensor types, and the mixtures of them that its file types are.

A file type such as Q4_K_M is a base type, with more bits for some tensors of some layers. Source:
llama.cpp, src/llama-quant.cpp, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

DEFAULT_TYPE = "q4_k_m"
"""The file type of a ``gguf`` that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """How a tensor type stores a row: in blocks of ``values`` that take ``size_bytes`` each."""

    values: int
    size_bytes: int


BLOCKS: Mapping[str, Block] = {
    "F32": Block(values=1, size_bytes=4),
    "F16": Block(values=1, size_bytes=2),
    "BF16": Block(values=1, size_bytes=2),
    "Q4_0": Block(values=32, size_bytes=18),
    "Q4_1": Block(values=32, size_bytes=20),
    "Q5_0": Block(values=32, size_bytes=22),
    "Q5_1": Block(values=32, size_bytes=24),
    "Q8_0": Block(values=32, size_bytes=34),
    "IQ4_NL": Block(values=32, size_bytes=18),
    "MXFP4": Block(values=32, size_bytes=17),
    "Q2_K": Block(values=256, size_bytes=84),
    "Q3_K": Block(values=256, size_bytes=110),
    "Q4_K": Block(values=256, size_bytes=144),
    "Q5_K": Block(values=256, size_bytes=176),
    "Q6_K": Block(values=256, size_bytes=210),
    "IQ1_S": Block(values=256, size_bytes=50),
    "IQ1_M": Block(values=256, size_bytes=56),
    "IQ2_XXS": Block(values=256, size_bytes=66),
    "IQ2_XS": Block(values=256, size_bytes=74),
    "IQ2_S": Block(values=256, size_bytes=82),
    "IQ3_XXS": Block(values=256, size_bytes=98),
    "IQ3_S": Block(values=256, size_bytes=110),
    "IQ4_XS": Block(values=256, size_bytes=136),
}
"""Tensor types by llama.cpp's names. Source: llama.cpp, ggml/src/ggml-common.h, the structs
``block_*``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor stands among those of its role, and what of the model rules ask for."""

    index: int
    of: int
    queries_per_key: int
    experts: int


_Rule = Callable[[Place], str | None]
"""The type for a place; None leaves the file type's base."""


def _always(kind: str) -> _Rule:
    return lambda place: kind


def _more_bits(kind: str) -> _Rule:
    """For the first and last eighth of the layers and every third between."""

    def rule(place: Place) -> str | None:
        eighth = place.of // 8
        outer = place.index < eighth or place.index >= 7 * place.of // 8
        return kind if outer or (place.index - eighth) % 3 == 2 else None

    return rule


def _first(count: int, kind: str, otherwise: str | None = None) -> _Rule:
    return lambda place: kind if place.index < count else otherwise


def _first_share(parts: int, kind: str, otherwise: str | None = None) -> _Rule:
    """For the first 1/``parts`` of the layers."""
    return lambda place: kind if place.index < place.of // parts else otherwise


def _middle(kind: str) -> _Rule:
    """For all but the first and last eighth of the layers."""
    return lambda place: kind if place.of // 8 <= place.index < 7 * place.of // 8 else None


def _shared_values(kind: str, otherwise: str | None = None) -> _Rule:
    """Where four query heads or more share a value head, which makes the matrix small."""
    return lambda place: kind if place.queries_per_key >= 4 else otherwise


def _iq2_values(otherwise: str) -> _Rule:
    return lambda place: "Q4_K" if place.queries_per_key >= 4 or place.experts >= 4 else otherwise


def _iq3_m_down(place: Place) -> str | None:
    if place.experts == 8 and _more_bits("Q4_K")(place):
        return "Q4_K"
    return _first_share(8, "Q4_K")(place)


def _keep(place: Place) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A file type: the base type and the rules of each role that departs from it."""

    base: str
    output: str = "Q6_K"
    embedding: str | None = None
    values: _Rule = _keep
    """Also of fused q, k and v."""
    keys: str | None = None
    queries: str | None = None
    projection: str | None = None
    """The matrix after attention."""
    down: _Rule = _keep
    gate_and_up: _Rule = _keep
    eight_experts_projection: str | None = None
    """``projection`` of a model with eight experts."""
    stacked: str | None = None
    """Of matrices that are stacked, as experts are; then no other rule applies."""
    below_three_bits: bool = False
    """The IQ1 and IQ2 types have a rule of their own for models with eight experts."""


def _tiny(base: str, *, finer: str, embedding: str, projection: str | None = None) -> Mixture:
    """An IQ1 or IQ2 type: ``finer`` for values and the first eighth of ``ffn_down``."""
    return Mixture(
        base=base,
        output="Q5_K",
        embedding=embedding,
        values=_iq2_values(finer),
        down=_first_share(8, finer),
        projection=projection,
        eight_experts_projection="Q5_K",
        below_three_bits=True,
    )


_MIXTURES: Mapping[str, Mixture] = {
    "q4_0": Mixture(base="Q4_0"),
    "q4_1": Mixture(base="Q4_1"),
    "q5_0": Mixture(base="Q5_0"),
    "q5_1": Mixture(base="Q5_1"),
    "q8_0": Mixture(base="Q8_0", output="Q8_0"),
    "q2_k": Mixture(
        base="Q2_K",
        values=_shared_values("Q4_K", "Q3_K"),
        down=_always("Q3_K"),
        projection="Q3_K",
        eight_experts_projection="Q5_K",
    ),
    "q2_k_s": Mixture(base="Q2_K", values=_shared_values("Q4_K"), down=_first_share(8, "Q4_K")),
    "q3_k_s": Mixture(base="Q3_K", eight_experts_projection="Q5_K"),
    "q3_k_m": Mixture(
        base="Q3_K",
        values=_first(2, "Q5_K", "Q4_K"),
        down=_first_share(16, "Q5_K", "Q4_K"),
        projection="Q4_K",
        eight_experts_projection="Q5_K",
    ),
    "q3_k_l": Mixture(base="Q3_K", values=_always("Q5_K"), down=_always("Q5_K"), projection="Q5_K"),
    "q4_k_s": Mixture(
        base="Q4_K",
        values=_first(4, "Q5_K"),
        down=_first_share(8, "Q5_K"),
        eight_experts_projection="Q5_K",
    ),
    "q4_k_m": Mixture(
        base="Q4_K",
        values=_more_bits("Q6_K"),
        down=_more_bits("Q6_K"),
        eight_experts_projection="Q5_K",
    ),
    "q5_k_s": Mixture(base="Q5_K"),
    "q5_k_m": Mixture(base="Q5_K", values=_more_bits("Q6_K"), down=_more_bits("Q6_K")),
    "q6_k": Mixture(base="Q6_K"),
    "iq4_nl": Mixture(
        base="IQ4_NL",
        values=_shared_values("Q5_K"),
        down=_first_share(8, "Q5_K"),
        eight_experts_projection="Q5_K",
    ),
    "iq4_xs": Mixture(
        base="IQ4_XS",
        values=_shared_values("Q5_K"),
        down=_first_share(8, "Q5_K"),
        eight_experts_projection="Q5_K",
    ),
    "mxfp4_moe": Mixture(base="Q8_0", output="Q8_0", stacked="MXFP4"),
    # These need an importance matrix, of which the rules take notice.
    "iq3_m": Mixture(
        base="IQ3_S",
        values=_always("Q4_K"),
        down=_iq3_m_down,
        projection="Q4_K",
        eight_experts_projection="Q5_K",
    ),
    "iq3_s": Mixture(base="IQ3_S", values=_shared_values("Q4_K"), eight_experts_projection="Q5_K"),
    "iq3_xs": Mixture(
        base="IQ3_S",
        values=_shared_values("Q4_K"),
        keys="IQ3_XXS",
        queries="IQ3_XXS",
        gate_and_up=_middle("IQ3_XXS"),
        eight_experts_projection="Q5_K",
    ),
    "iq3_xxs": Mixture(
        base="IQ3_XXS",
        output="Q5_K",
        embedding="IQ3_S",
        values=_shared_values("Q4_K"),
        keys="IQ2_S",
        queries="IQ2_S",
        projection="IQ3_S",
        eight_experts_projection="Q5_K",
    ),
    "iq2_m": _tiny("IQ2_S", finer="IQ3_S", embedding="IQ3_S", projection="IQ3_S"),
    "iq2_s": _tiny("IQ2_XS", finer="IQ3_S", embedding="IQ3_S", projection="IQ3_S"),
    "iq2_xs": _tiny("IQ2_XS", finer="Q2_K", embedding="Q2_K"),
    "iq2_xxs": _tiny("IQ2_XXS", finer="Q2_K", embedding="Q2_K"),
    "iq1_m": _tiny("IQ1_M", finer="Q2_K", embedding="Q2_K", projection="IQ2_XXS"),
    "iq1_s": _tiny("IQ1_S", finer="Q2_K", embedding="Q2_K", projection="IQ2_XXS"),
}


def _falcon_q4_k_m_down(place: Place) -> str:
    return _first_share(16, "Q6_K")(place) or _more_bits("Q5_K")(place) or "Q4_K"


def _falcon_q3_k_m_down(place: Place) -> str:
    return _first_share(16, "Q5_K")(place) or _more_bits("Q4_K")(place) or "Q3_K"


def _for_falcon(file_type: str, mixture: Mixture) -> Mixture:
    """Falcon's own: the output in Q8_0, fewer bits after attention and in ``ffn_down``."""
    down: Mapping[str, _Rule] = {
        "q3_k_m": _falcon_q3_k_m_down,
        "q3_k_l": _always("Q4_K"),
        "q4_k_m": _falcon_q4_k_m_down,
        "q4_k_s": _keep,
    }
    projection = mixture.projection if mixture.below_three_bits else None
    return replace(
        mixture,
        output="Q8_0",
        down=down.get(file_type, mixture.down),
        projection="Q4_K" if file_type == "q3_k_l" else projection,
    )


def mixture_of(file_type: str, model_type: str) -> Mixture | None:
    """The rules of a quantised file type for a family of models; None for an unknown file type."""
    mixture = _MIXTURES.get(file_type)
    if mixture is None or model_type != "falcon":
        return mixture
    return _for_falcon(file_type, mixture)


FLOAT_FILE_TYPES: Mapping[str, str] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}

FILE_TYPES = frozenset(_MIXTURES) | frozenset(FLOAT_FILE_TYPES)
"""File types whose mixture is known, more than llmfit makes."""
