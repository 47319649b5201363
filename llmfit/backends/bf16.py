"""BF16 weights with eager attention: the reference row."""

from __future__ import annotations

from llmfit.backends._hf import TorchBackend, load_plain
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.records import Plan


class Bf16(TorchBackend):
    """Plain bf16, attention as three separate operations with the N×N matrix in memory."""

    id = "bf16"
    label = "BF16 eager"
    splits = frozenset({"balanced", "tensor"})

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        return load_plain(plan, attention="eager")
