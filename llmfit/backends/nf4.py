"""NF4 by bitsandbytes: the QLoRA data type."""

from __future__ import annotations

from llmfit.backends._bnb import PACKAGES, load_bnb
from llmfit.backends._hf import TorchBackend
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.records import Plan


class Nf4(TorchBackend):
    """Weights in 4-bit NormalFloat, blocks of 64 with a float32 scale; bf16 arithmetic.

    Source: Dettmers et al., QLoRA, 2023, arXiv:2305.14314.
    """

    id = "nf4"
    label = "NF4 (bitsandbytes)"
    packages = PACKAGES
    extra = "bnb"
    loads_quantized = frozenset({"bitsandbytes_4bit"})

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        import torch
        from transformers import BitsAndBytesConfig

        own = plan.model.quantization is not None
        config = (
            None
            if own
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=False,
            )
        )
        notes = (
            () if own else ("blocks of 64, no double quantisation; head and embeddings in bf16",)
        )
        return load_bnb(plan, config, "nf4", notes)
