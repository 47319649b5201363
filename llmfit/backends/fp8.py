"""FP8 weights and activations by torchao."""

from __future__ import annotations

from llmfit.backends._hf import TorchBackend
from llmfit.backends._torchao import PACKAGES, load_torchao
from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.errors import BackendUnavailable
from llmfit.records import Plan

_LEAST_CAPABILITY = (8, 9)
"""Of GPUs that multiply FP8. Source: torchao, Float8DynamicActivationFloat8WeightConfig."""


class Fp8(TorchBackend):
    """Weights in FP8 (e4m3) with a scale a row, activations rounded to it token by token.

    On GPUs that multiply FP8: Ada, Hopper and later.
    Source: torchao, Float8DynamicActivationFloat8WeightConfig.
    """

    id = "fp8"
    label = "FP8 (torchao)"
    packages = PACKAGES
    extra = "torchao"
    devices = frozenset({"cuda"})

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        self.require(plan)
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

        from llmfit.device.execution import compute_capability

        capability = compute_capability()
        if capability < _LEAST_CAPABILITY:
            has, needs = (".".join(map(str, c)) for c in (capability, _LEAST_CAPABILITY))
            raise BackendUnavailable(
                f"{self.id}: this GPU's compute capability is {has}, FP8 needs {needs}.",
                hint="--backends int8",
            )
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
        notes = ("weights and activations in e4m3, a scale a row; head and embeddings in bf16",)
        return load_torchao(plan, config, self.id, notes)
