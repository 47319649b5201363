"""GPTQ: 4-bit weights, the rounding error of each column made up for in the columns after it.

Source: Frantar et al., GPTQ, 2022, arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmfit.quantize._gptqmodel import (
    BITS,
    OFFLOAD,
    LayerProgress,
    Layers,
    exclusions,
    import_gptqmodel,
    quantize_to,
)

SAMPLES = 128
SETTINGS: dict[str, bool] = {"sym": True, "desc_act": False}
"""Symmetric, columns in their stored order: what every GPTQ kernel takes."""


def quantize_gptq(
    model_path: Path,
    folder: Path,
    layers: Layers,
    sequences: Sequence[Sequence[int]],
    *,
    device: str,
    progress: LayerProgress,
    trust_remote_code: bool = False,
) -> None:
    """Write the GPTQ checkpoint of ``model_path`` into ``folder``.

    ``sequences`` are the calibration token ids. Raises QuantizationError.
    """
    import_gptqmodel()
    from gptqmodel.quantization import GPTQConfig

    settings = GPTQConfig(
        bits=BITS,
        group_size=layers.group_size,
        dynamic=exclusions(layers),
        offload_to_disk_path=str(folder / OFFLOAD),
        **SETTINGS,
    )
    quantize_to(
        folder,
        model_path,
        settings,
        layers,
        sequences,
        device=device,
        packing="gptq_torch",
        extra_config={"modules_in_block_to_quantize": [list(layers.quantized)]},
        progress=progress,
        trust_remote_code=trust_remote_code,
    )
