"""What each format costs in perplexity, as others published it: for rows that were not scored.

Of other models than the one at hand, so a range and not a figure. A measured difference always
goes before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.planning.memory.gguf_mixtures import DEFAULT_TYPE
from llmfit.planning.memory.kv_cache import is_llama_cpp
from llmfit.units import format_signed


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCost:
    """Rise of token perplexity over the unquantised model, as shares of it."""

    low: float
    high: float
    source: str
    """For people: models, and where the figures stand."""

    @property
    def text(self) -> str:
        """``+1.5 to +5.4 %``, or one figure where the two read alike."""
        low, high = (format_signed(100 * share, decimals=1) for share in (self.low, self.high))
        return f"{low} %" if low == high else f"{low} to {high} %"


def published_cost(backend: str) -> PublishedCost | None:
    """The published cost of a backend id, e.g. ``gguf:q3_k_m``; None where none is known here."""
    variant = backend.partition(":")[2]
    if is_llama_cpp(backend):
        return _GGUF.get(variant or DEFAULT_TYPE)
    return _COSTS.get(backend)


_SAME_WEIGHTS = PublishedCost(low=0.0, high=0.0, source="the model's own 16-bit weights")

# Figures of one model each. "Approximate table": Llama-3.1-8B on an RTX 3090, perplexity 6.14 in
# bf16, as its author rounded it. torchao: word perplexity 7.3315 → 7.3451, docs/source/workflows/
# inference.md; FP8 → 7.4197. GPTQ-for-LLaMa: LLaMA-7B, C4 5.22 → 5.30, WikiText-2 5.68 → 5.85,
# README.md. AWQ: Llama-2-7B, WikiText-2 5.47 → 5.60, Lin et al., arXiv:2306.00978.
_COSTS = {
    "bf16": _SAME_WEIGHTS,
    "sdpa": _SAME_WEIGHTS,
    "compiled": _SAME_WEIGHTS,
    "offload": _SAME_WEIGHTS,
    "vllm": _SAME_WEIGHTS,
    "int8": PublishedCost(
        low=7.3451 / 7.3315 - 1,
        high=6.21 / 6.14 - 1,
        source="torchao's INT8 weights and an approximate table, both of Llama-3.1-8B",
    ),
    "int8wo": PublishedCost(
        low=7.3451 / 7.3315 - 1,
        high=7.3451 / 7.3315 - 1,
        source="torchao's table of Llama-3.1-8B",
    ),
    "fp8": PublishedCost(
        low=7.4197 / 7.3315 - 1,
        high=7.4197 / 7.3315 - 1,
        source="torchao's table of Llama-3.1-8B, a scale a row",
    ),
    "nf4": PublishedCost(
        low=5.30 / 5.22 - 1,
        high=6.47 / 6.14 - 1,
        source="GPTQ-for-LLaMa's table of LLaMA-7B and an approximate one of Llama-3.1-8B",
    ),
    "gptq": PublishedCost(
        low=5.30 / 5.22 - 1,
        high=6.39 / 6.14 - 1,
        source="GPTQ-for-LLaMa's table of LLaMA-7B and an approximate one of Llama-3.1-8B",
    ),
    "awq": PublishedCost(
        low=5.60 / 5.47 - 1,
        high=6.35 / 6.14 - 1,
        source="the AWQ paper's Llama-2-7B and an approximate table of Llama-3.1-8B",
    ),
}

_LLAMA3_8B = 6.233160
_LLAMA2_70B = 3.4313
_LLAMA_CPP = "llama.cpp's perplexity tables"


def _gguf(llama3_8b: float, *others: float) -> PublishedCost:
    """Cost from the perplexity of Llama-3-8B and the rises of other models."""
    rises = (llama3_8b / _LLAMA3_8B - 1, *others)
    models = " and ".join(["Llama-3-8B", *(["Llama-2"] if others else [])])
    return PublishedCost(low=min(rises), high=max(rises), source=f"{_LLAMA_CPP}, {models}")


# Without importance matrix (IQ4: with one). Llama-2-70B's rises count where they are published:
# larger models lose less. Source: llama.cpp, tools/perplexity/README.md, WikiText-2, window 512.
_GGUF = {
    "q2_k": _gguf(9.751568, 3.7339 / _LLAMA2_70B - 1),
    "q3_k_s": _gguf(7.863786, 3.7019 / _LLAMA2_70B - 1),
    "q3_k_m": _gguf(6.888498, 3.5932 / _LLAMA2_70B - 1),
    "q3_k_l": _gguf(6.787876, 3.5617 / _LLAMA2_70B - 1),
    "q4_0": _gguf(6.700147, 3.5550 / _LLAMA2_70B - 1),
    "q4_1": _gguf(6.682737, 3.5125 / _LLAMA2_70B - 1),
    "q4_k_s": _gguf(6.500529, 3.4852 / _LLAMA2_70B - 1),
    "q4_k_m": _gguf(6.407115, 3.4725 / _LLAMA2_70B - 1),
    "iq4_nl": _gguf(6.455593),
    "iq4_xs": _gguf(6.459705),
    "q5_0": _gguf(6.363224, 3.4744 / _LLAMA2_70B - 1),
    "q5_1": _gguf(6.337857),
    "q5_k_s": _gguf(6.336598, 3.4483 / _LLAMA2_70B - 1),
    "q5_k_m": _gguf(6.288607, 3.4451 / _LLAMA2_70B - 1),
    "q6_k": _gguf(6.253382, 3.4367 / _LLAMA2_70B - 1),
    "q8_0": _gguf(6.234284, 0.000689),
    "f16": PublishedCost(low=0.0, high=0.000404, source=f"{_LLAMA_CPP}, Llama-3-8B"),
    "bf16": _SAME_WEIGHTS,
    "f32": _SAME_WEIGHTS,
}
