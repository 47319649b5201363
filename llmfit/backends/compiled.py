"""BF16 weights with SDPA, the decode step compiled over the static cache."""

from __future__ import annotations

from llmfit.backends._hf import TorchBackend, load_plain
from llmfit.backends.base import Check, LoadedModel, Progress, no_progress
from llmfit.kernels.build import find_compiler, install_hint
from llmfit.records import Plan


class Compiled(TorchBackend):
    """bf16 with SDPA and ``torch.compile`` of the decode step; a CUDA graph on a GPU."""

    id = "compiled"
    label = "BF16 compiled"
    one_gpu = "its decode step is one graph on one GPU"

    def check(self, plan: Plan) -> Check:
        """As the base; also no KV cache that grows, and on a CPU a C++ compiler for the code."""
        if plan.kv_cache_dtype is not None:
            return Check(
                skipped=f"a {plan.kv_cache_dtype} KV cache grows step by step, a compiled step "
                "needs constant shapes; sdpa runs the same without the compiler"
            )
        outcome = super().check(plan)
        if outcome == Check() and plan.device == "cpu" and find_compiler() is None:
            return Check(
                unavailable=f"torch.compile on a CPU needs a C++ compiler: {install_hint()}"
            )
        return outcome

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``."""
        return load_plain(plan, attention="sdpa", compiled=True)
