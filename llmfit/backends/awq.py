"""AWQ INT4 by GPTQModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfit.backends._gptqmodel import GptqModelBackend, random_groups
from llmfit.backends._synthetic import Noise, Packed
from llmfit.quantization import Facts
from llmfit.quantize import awq


class Awq(GptqModelBackend):
    """4-bit weights by AWQ, groups of 128 with a scale and a zero point each; bf16 arithmetic.

    Source: Lin et al., AWQ, 2023, arXiv:2306.00978.
    """

    id = "awq"
    label = "AWQ INT4"
    one_gpu = "GPTQModel's packed weights are loaded here onto one GPU"
    loads_quantized = frozenset({"awq"})
    samples = awq.SAMPLES
    settings = awq.SETTINGS

    def facts(self, packed: Sequence[str], kept: Sequence[str]) -> Facts:
        """See ``GptqModelBackend.facts``."""
        return {"zero_point": True, "version": "gemm", "modules_to_not_convert": list(kept)}

    def pack(self, layer: Any, noise: Noise) -> Packed:
        """See ``GptqModelBackend.pack``."""
        return random_groups(layer, noise, zeros=(7, 9))
