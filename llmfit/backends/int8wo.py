"""INT8 weights by torchao, activations in bf16."""

from __future__ import annotations

from llmfit.backends._hf import TorchBackend
from llmfit.backends._torchao import PACKAGES, load_torchao
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.records import Plan


class Int8Wo(TorchBackend):
    """Weights in 8-bit integers with a scale a row; bf16 arithmetic, no outliers kept apart.

    Source: torchao, Int8WeightOnlyConfig.
    """

    id = "int8wo"
    label = "INT8 weights (torchao)"
    packages = PACKAGES
    extra = "torchao"

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        from torchao.quantization import Int8WeightOnlyConfig

        notes = ("a scale a row; head and embeddings in bf16",)
        return load_torchao(plan, Int8WeightOnlyConfig(), self.id, notes)
