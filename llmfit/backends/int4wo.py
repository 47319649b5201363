"""INT4 weights by torchao, activations in bf16."""

from __future__ import annotations

from llmfit.backends._hf import TorchBackend
from llmfit.backends._torchao import PACKAGES, load_torchao
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.records import Plan

GROUP_SIZE = 128


class Int4Wo(TorchBackend):
    """Weights in 4-bit integers, groups of 128 with a scale and a zero point; bf16 arithmetic.

    Rounded to the nearest, without calibration; by PyTorch's tinygemm, which is of GPUs.
    Source: torchao, Int4WeightOnlyConfig.
    """

    id = "int4wo"
    label = "INT4 weights (torchao)"
    packages = PACKAGES
    extra = "torchao"
    devices = frozenset({"cuda"})

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        self.require(plan)
        from torchao.quantization import Int4WeightOnlyConfig

        config = Int4WeightOnlyConfig(
            group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d"
        )
        notes = (f"groups of {GROUP_SIZE}; head and embeddings in bf16",)
        return load_torchao(plan, config, self.id, notes)
