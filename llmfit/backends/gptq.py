"""GPTQ INT4 by GPTQModel."""

from __future__ import annotations

from llmfit.backends._gptqmodel import GptqModelBackend
from llmfit.quantize import gptq


class Gptq(GptqModelBackend):
    """4-bit weights by GPTQ, groups of 128 with one scale each; bf16 arithmetic.

    Source: Frantar et al., GPTQ, 2022, arXiv:2210.17323.
    """

    id = "gptq"
    label = "GPTQ INT4"
    loads_quantized = frozenset({"gptq"})
    samples = gptq.SAMPLES
    settings = gptq.SETTINGS
