"""AWQ: 4-bit weights, the input channels that matter scaled up before rounding.

Source: Lin et al., AWQ, 2023, arXiv:2306.00978.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.quantize._gptqmodel import (
    BITS,
    OFFLOAD,
    LayerProgress,
    Layers,
    exclusions,
    import_gptqmodel,
    quantize_to,
)

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 16
"""Source: AWQ, figure 8: 16 sequences do as well as the 192 that GPTQ wants."""
SETTINGS: dict[str, bool] = {"sym": False}
"""With a zero point in each group, as in the AWQ format's first release."""


def quantize_awq(
    model_path: Path,
    folder: Path,
    layers: Layers,
    sequences: Sequence[Sequence[int]],
    *,
    device: str,
    progress: LayerProgress,
    trust_remote_code: bool = False,
) -> None:
    """Write the AWQ checkpoint (GEMM layout) of ``model_path`` into ``folder``.

    ``sequences`` are the calibration token ids. Raises QuantizationError.
    """
    import_gptqmodel()
    from gptqmodel.quantization import AWQConfig

    settings = AWQConfig(
        bits=BITS,
        group_size=layers.group_size,
        dynamic=exclusions(layers),
        offload_to_disk_path=str(folder / OFFLOAD),
        **SETTINGS,
    )
    names = [name.rpartition(".")[2] for name in layers.kept]
    with _clip_search_by_covariance():
        quantize_to(
            folder,
            model_path,
            settings,
            layers,
            sequences,
            device=device,
            packing="awq_torch",  # GPTQModel's own choice wants CUDA even for packing
            extra_config={"modules_to_not_convert": ["lm_head", *names]},
            progress=progress,
            trust_remote_code=trust_remote_code,
        )


@contextmanager
def _clip_search_by_covariance() -> Iterator[None]:
    """Replace GPTQModel's search for clipping bounds by the same search in closed form.

    GPTQModel 7.6 multiplies every output by every sampled token, which takes four fifths of
    AWQ's time on a CPU, and refuses layers whose number of outputs is no multiple of 64.
    """
    from gptqmodel.looper.awq_processor import AWQProcessor

    original = AWQProcessor._compute_best_clip
    AWQProcessor._compute_best_clip = _best_clip
    try:
        yield
    finally:
        AWQProcessor._compute_best_clip = original


def _best_clip(
    processor: Any,
    weight: Tensor,
    inputs: Tensor,
    n_grid: int = 20,
    max_shrink: float = 0.5,
    n_sample_token: int = 512,
) -> Tensor:
    """The bound of |weight| per output and group that changes the layer's outputs least.

    ``weight``: [O, I]; ``inputs``: [..., I]; returns [O, I ÷ group, 1]. The mean squared change
    of a group's outputs over tokens x is dᵀ·C·d, where d is the change of its weights and
    C = mean(x·xᵀ), so the tokens are gone through once and not for every candidate.
    """
    import torch

    group = processor.qcfg.group_size if processor.qcfg.group_size > 0 else weight.shape[1]
    tokens = inputs.reshape(-1, inputs.shape[-1])
    tokens = tokens[:: max(1, len(tokens) // n_sample_token)].to(weight.device, torch.float32)
    x = tokens.reshape(len(tokens), -1, group).transpose(0, 1)  # [G, T, g]
    covariance = x.transpose(1, 2) @ x / len(tokens)  # [G, g, g]

    w = weight.reshape(weight.shape[0], -1, group)  # [O, G, g]
    full = w.abs().amax(dim=-1, keepdim=True)  # [O, G, 1]
    best, least = full.clone(), torch.full_like(full, torch.inf, dtype=torch.float32)
    rounded = torch.empty_like(w)
    for step in range(int(max_shrink * n_grid)):
        bound = full * (1 - step / n_grid)
        processor._pseudo_quantize_tensor_into(torch.clamp(w, -bound, bound), rounded)
        d = (rounded - w).float().transpose(0, 1)  # [G, O, g]
        error = ((d @ covariance) * d).sum(dim=-1).T.unsqueeze(-1)  # [O, G, 1]
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, bound, best)
    return best
