"""NF4 by bitsandbytes: the QLoRA data type."""

from __future__ import annotations

from llmfit.backends._bnb import PACKAGES, load_bnb
from llmfit.backends._hf import TorchBackend
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.backends.registry import split_id
from llmfit.records import Plan

_DOUBLE = "double"


class Nf4(TorchBackend):
    """Weights in 4-bit NormalFloat, blocks of 64 with a float32 scale; bf16 arithmetic.

    ``nf4:double`` quantises the scales too, to 8 bits in blocks of 256.
    Source: Dettmers et al., QLoRA, 2023, arXiv:2305.14314.
    """

    id = "nf4"
    label = "NF4 (bitsandbytes)"
    packages = PACKAGES
    extra = "bnb"
    splits = frozenset({"balanced"})
    one_gpu = "bitsandbytes' packed weights are not cut into parts"
    loads_quantized = frozenset({"bitsandbytes_4bit"})
    variants = frozenset({_DOUBLE})

    def describe(self, variant: str | None) -> str:
        """See ``Backend.describe``."""
        return "NF4 double quantised" if variant == _DOUBLE else self.label

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        import torch
        from transformers import BitsAndBytesConfig

        own = plan.model.quantization is not None
        double = split_id(plan.backend)[1] == _DOUBLE
        config = (
            None
            if own
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=double,
            )
        )
        scales = "scales quantised to 8 bits" if double else "no double quantisation"
        notes = () if own else (f"blocks of 64, {scales}; head and embeddings in bf16",)
        return load_bnb(plan, config, "nf4", notes)
