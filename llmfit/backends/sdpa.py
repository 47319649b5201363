"""BF16 weights with PyTorch's fused scaled-dot-product attention."""

from __future__ import annotations

from llmfit.backends._hf import TorchBackend, load_plain
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.records import Plan


class Sdpa(TorchBackend):
    """bf16 with SDPA: flash, memory-efficient or cuDNN attention on a GPU, flash on a CPU."""

    id = "sdpa"
    label = "BF16 + SDPA"
    splits = frozenset({"balanced", "tensor"})

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        return load_plain(plan, attention="sdpa")
