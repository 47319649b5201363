"""INT8 by bitsandbytes: LLM.int8()."""

from __future__ import annotations

from llmfit.backends._bnb import PACKAGES, load_bnb
from llmfit.backends._hf import TorchBackend
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.records import Plan


class Int8(TorchBackend):
    """Weights in int8 with a scale per output row; activations quantised on the fly.

    Columns of activations beyond 6.0 are kept in 16 bits.
    Source: Dettmers et al., LLM.int8(), 2022, arXiv:2208.07339.
    """

    id = "int8"
    label = "INT8 (bitsandbytes)"
    packages = PACKAGES
    extra = "bnb"
    splits = frozenset({"balanced"})
    one_gpu = "bitsandbytes' packed weights are not cut into parts"
    loads_quantized = frozenset({"bitsandbytes_8bit"})

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        from transformers import BitsAndBytesConfig

        own = plan.model.quantization is not None
        config = None if own else BitsAndBytesConfig(load_in_8bit=True)
        notes = ("output head and embeddings in bf16",) if not own else ()
        return load_bnb(plan, config, "int8", notes)
