"""GPTQ INT4 by GPTQModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmfit.backends._gptqmodel import GptqModelBackend, random_groups
from llmfit.backends._synthetic import Noise, Packed, constant
from llmfit.backends.base import Check
from llmfit.backends.registry import split_id
from llmfit.quantization import Facts
from llmfit.quantize import gptq
from llmfit.records import Plan

_INT8 = "int8"


class Gptq(GptqModelBackend):
    """4-bit weights by GPTQ, groups of 128 with one scale each; bf16 arithmetic.

    Source: Frantar et al., GPTQ, 2022, arXiv:2210.17323.
    """

    id = "gptq"
    label = "GPTQ INT4"
    one_gpu = "GPTQModel's packed weights are loaded here onto one GPU"
    loads_quantized = frozenset({"gptq"})
    samples = gptq.SAMPLES
    settings = gptq.SETTINGS
    variants = frozenset({_INT8})

    def describe(self, variant: str | None) -> str:
        """See ``Backend.describe``."""
        return "GPTQ INT8" if variant == _INT8 else self.label

    def check(self, plan: Plan) -> Check:
        """See ``Backend.check``; 8 bits are planned, and loaded from a ready checkpoint."""
        outcome = super().check(plan)
        ready = plan.checkpoint is not None or plan.model.quantization is not None
        if outcome != Check() or split_id(plan.backend)[1] != _INT8 or ready:
            return outcome
        return Check(
            skipped="GPTQ in 8 bits is not made here: --checkpoint gptq=PATH_OR_ID takes a ready "
            "one"
        )

    def facts(self, packed: Sequence[str], kept: Sequence[str]) -> Facts:
        """See ``GptqModelBackend.facts``."""
        return {**self.settings, "modules_in_block_to_quantize": [list(packed)]}

    def pack(self, layer: Any, noise: Noise) -> Packed:
        """See ``GptqModelBackend.pack``."""
        import torch

        # The format's first layout stores zero points less one.
        tensors = random_groups(layer, noise, zeros=(7, 7))
        if tensors:
            groups = torch.arange(layer.in_features, dtype=torch.int32) // layer.group_size
            tensors["g_idx"] = constant(groups)
        return tensors
