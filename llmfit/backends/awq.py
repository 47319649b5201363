"""AWQ INT4 by GPTQModel."""

from __future__ import annotations

from llmfit.backends._gptqmodel import GptqModelBackend
from llmfit.quantize import awq


class Awq(GptqModelBackend):
    """4-bit weights by AWQ, groups of 128 with a scale and a zero point each; bf16 arithmetic.

    Source: Lin et al., AWQ, 2023, arXiv:2306.00978.
    """

    id = "awq"
    label = "AWQ INT4"
    loads_quantized = frozenset({"awq"})
    samples = awq.SAMPLES
    settings = awq.SETTINGS
