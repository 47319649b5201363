"""Layouts of GPTQ and AWQ checkpoints: which are taken, and which kernel suits one.

What AutoGPTQ, AutoAWQ, GPTQModel, Optimum and AutoRound write differs in places only: a config
beside or inside config.json, the weights' file name, the tensors' order. The tensors themselves
say which layers are quantised, so that is read from them and not from the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import shortened
from llmfit.models import tensor_shapes
from llmfit.quantization import Facts

_HINT = "the unquantised model, which is then quantised here, or a checkpoint in the common layout"

# torch's int4 kernel for CPUs. Source: PyTorch 2.13, _weight_int4pack_mm_cpu.
_INT4_GROUPS = (32, 64, 128)
_INT4_ROWS = 16
# GPTQModel's kernel of plain torch operations, which takes any shape and width.
_GENERAL_KERNEL = {"gptq": "gptq_torch", "awq": "torch_awq"}
_LAYOUTS: Mapping[str, tuple[str, ...]] = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_BITS: Mapping[str, tuple[int, ...]] = {"gptq": (2, 3, 4, 8), "awq": (4,)}


def loadable(folder: Path, said: Facts, *, device: str) -> Facts:
    """The ``quantization_config`` with which transformers loads this folder on ``device``.

    Raises ModelLoadError for a layout that no kernel here reads, naming it.
    """
    method = str(said["quant_method"])
    _require_settings(folder, said)
    _require_layout(folder, method, said)
    shapes = tensor_shapes(folder)
    packed = {
        name.removesuffix(".qweight"): shape
        for name, shape in shapes.items()
        if name.endswith(".qweight")
    }
    if shapes and not packed:
        raise ModelLoadError(
            f"{folder} says that it is quantised by {method}, and has no *.qweight tensor.",
            hint=_HINT,
        )
    facts = dict(said)
    if method == "gptq":
        facts["modules_in_block_to_quantize"] = [sorted(packed)]
    else:
        facts["modules_to_not_convert"] = sorted(_matrices(shapes) - set(packed))
    if device == "cpu" and not _suits_int4(method, said, packed):
        facts["backend"] = _GENERAL_KERNEL[method]
    return facts


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Modules with an unquantised matrix."""
    return {
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def _suits_int4(method: str, said: Facts, packed: Mapping[str, tuple[int, ...]]) -> bool:
    """True unless the automatic choice would be the int4 kernel and it cannot take a layer."""
    if said.get("bits", 4) != 4:
        return True
    per_word = 8 if method == "awq" else 1  # AWQ packs eight outputs into a word
    whole = all(shape[-1] * per_word % _INT4_ROWS == 0 for shape in packed.values())
    return whole and said.get("group_size", 128) in _INT4_GROUPS


def _require_settings(folder: Path, said: Facts) -> None:
    """Raise ModelLoadError for values that no tool writes; GPTQModel would divide by them."""
    group, dynamic = said.get("group_size", 128), said.get("dynamic") or {}
    numbers = type(said.get("bits")) is type(group) is int
    if not numbers or not (group == -1 or group > 0):
        raise ModelLoadError(
            f"{folder} is quantised in {shortened(said.get('bits'))} bits and groups of "
            f"{shortened(group)}, which are no numbers that can be.",
            hint=_HINT,
        )
    if not isinstance(dynamic, dict):
        raise ModelLoadError(
            f"{folder} has dynamic = {shortened(dynamic)} in its quantization_config, an object "
            "is needed.",
            hint=_HINT,
        )


def _require_layout(folder: Path, method: str, said: Facts) -> None:
    """Raise ModelLoadError for a layout that would not load, or would load as noise."""
    layout = _layout(method, said)
    if layout not in _LAYOUTS[method]:
        raise ModelLoadError(
            f"{folder} is a {method} checkpoint in the {layout} layout, which only that kernel "
            f"reads; this row loads {' and '.join(_LAYOUTS[method])}.",
            hint=_HINT,
        )
    if said.get("bits") not in _BITS[method]:
        raise ModelLoadError(
            f"{folder} is a {method} checkpoint of {said['bits']} bits; this row loads "
            f"{', '.join(str(bits) for bits in _BITS[method])}.",
            hint=_HINT,
        )
    mixed = _mixed_settings(said)
    if mixed:
        raise ModelLoadError(
            f"{folder} quantises some layers with settings of their own ({mixed}); transformers "
            "loads one setting for all.",
            hint=_HINT,
        )


def _layout(method: str, said: Facts) -> str:
    """The layout's name, lower case; what a config leaves out is the oldest one."""
    if method == "awq":
        return str(said.get("version") or said.get("format") or "gemm").lower()
    if said.get("is_marlin_format"):  # AutoGPTQ 0.7's word for it
        return "marlin"
    return str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()


def _mixed_settings(said: Facts) -> str | None:
    """The first pattern of GPTQModel's ``dynamic`` that changes a layer instead of leaving it."""
    dynamic: Mapping[str, Any] = said.get("dynamic") or {}
    return next((pattern for pattern, changes in dynamic.items() if changes), None)
