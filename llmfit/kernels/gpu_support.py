"""Whether the GPU's kernels, which Triton compiles as they are first run, can run here."""

from __future__ import annotations

import functools

from llmfit.errors import first_line

MOST_MATRICES = 3
"""Products of one input that one launch makes."""
FUSED = {"enable_fp_fusion": True}
"""How kernels are launched: a multiplication and an addition as one instruction, rounded once. From
Triton 3.10 on that is no longer the default, and a product would take twice the instructions."""


@functools.cache
def why_no_gpu_kernels() -> str | None:
    """None once ``torch.ops.llmfit_gpu`` can be called on the GPU; else why it cannot.

    Triton is no part of PyTorch's builds for every system, and needs a C compiler. Tried once a
    process, by one product.
    """
    import torch

    try:
        import llmfit.kernels.gpu
        import llmfit.kernels.gpu_attention  # noqa: F401

        ones = torch.ones(1, 256, dtype=torch.bfloat16, device="cuda")
        torch.ops.llmfit_gpu.linears_bf16(ones, [ones], [])
    except Exception as exc:  # noqa: BLE001 - whatever a compiler says: a row runs without
        return f"{type(exc).__name__}: {first_line(exc)}"
    return None
