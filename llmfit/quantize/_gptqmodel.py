"""Quantising with GPTQModel: what its GPTQ and its AWQ share.

The outcome is a checkpoint in the common layout (config.json with a ``quantization_config``,
safetensors, tokenizer) that plain transformers loads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from llmfit.errors import LlmfitError, QuantizationError, first_line
from llmfit.foreign.errors import LibraryErrors
from llmfit.foreign.files import check_configs

BITS = 4
GROUP_SIZES = (128, 64, 32)
"""Inputs that share a scale; the first is the format's usual one."""
OFFLOAD = ".offload"
"""Folder inside the checkpoint's own where GPTQModel keeps finished layers while it works."""
PACK_ROWS = 32
"""Both sides of a quantised matrix must be multiples of this.

Eight 4-bit values go into an int32; GPTQModel packs blocks of 32 × 32, and torch's int4 CPU
kernel takes output rows in multiples of 16.
Source: GPTQModel 7.6, ``pack_block``; PyTorch 2.13, ``_convert_weight_to_int4pack_for_cpu``.
"""

# Compiling the packing code takes 20 s once, packing in Python 4 s per 100 M weights (2 cores).
_COMPILE_FROM_WEIGHTS = 500_000_000

# Layers fed by one norm are rescaled together by AWQ, so they are quantised all or none.
_SIBLINGS = (frozenset(("q_proj", "k_proj", "v_proj")), frozenset(("gate_proj", "up_proj")))

_HINT = "--checkpoint for a ready one, or --backends without this row"

LayerProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Layers:
    """Which linear layers of a model are quantised, by name inside a decoder block."""

    group_size: int
    quantized: tuple[str, ...]
    """e.g. ``self_attn.q_proj``."""
    kept: tuple[str, ...]
    """Left in bf16: their shape does not divide."""
    weights: int
    """Number of weights in the quantised layers."""


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def import_gptqmodel() -> ModuleType:
    """GPTQModel, imported so that the rest of this process stays as it was.

    Its import points the Hugging Face caches to a folder under /tmp and tunes CUDA's allocator
    through environment variables; both would change what is loaded or measured afterwards, so
    the variables are put back.
    """
    # Libraries that read those variables at import must have read the user's own first.
    import huggingface_hub  # noqa: F401
    import transformers  # noqa: F401

    with _environment_kept():
        _name_caches()
        # With fewer than 3 cores GPTQModel makes a pool of one thread, and then fails for want
        # of a second one.
        workers = max(2, min(12, ((os.cpu_count() or 1) + 1) // 2))
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(workers))
        import gptqmodel

        gptqmodel.get_device_thread_pool()  # reads the variable
    return gptqmodel


def _name_caches() -> None:
    """Name the hub client's own folders, or GPTQModel makes one that all users know under /tmp.

    Where they cannot be made it does so all the same, as it makes every folder that is named.
    """
    from huggingface_hub import constants

    named = {
        "HF_HOME": constants.HF_HOME,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_MODULES_CACHE": str(Path(constants.HF_HOME) / "modules"),
    }
    with suppress(OSError):
        for place in named.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        for name, place in named.items():
            os.environ.setdefault(name, place)


def plan_layers(model_path: Path, *, trust_remote_code: bool = False) -> Layers:
    """Choose the group size and the layers to quantise, from the config alone.

    The group size is the one of ``GROUP_SIZES`` that lets the most weights be quantised, the
    larger of equals. Raises QuantizationError when no layer's shape allows it.
    """
    from transformers import AutoConfig

    check_configs(model_path)
    with LibraryErrors(
        f"transformers cannot make {model_path} for quantising",
        folder=str(model_path),
        hint="a model whose architecture transformers has",
        kind=QuantizationError,
    ):
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        model = empty_model(config, trust_remote_code=trust_remote_code)
    return choose_layers(model, str(model_path))


def empty_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """transformers' model of ``config`` with shapes and no values."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def choose_layers(model: Any, name: str) -> Layers:
    """As ``plan_layers``, of a model that may be without values; ``name`` is for the error."""
    shapes = _linear_shapes(model)
    best = max(
        (_legal(shapes, group_size) for group_size in GROUP_SIZES),
        key=lambda layers: (layers.weights, layers.group_size),
    )
    if not best.quantized:
        widths = sorted({shape for all_shapes in shapes.values() for shape in all_shapes})
        raise QuantizationError(
            f"no linear layer of {name} can be packed in {BITS} bits: of the shapes "
            f"{widths} none is a multiple of {PACK_ROWS} on both sides.",
            hint="--backends without gptq and awq",
        )
    return best


def _linear_shapes(model: Any) -> dict[str, list[tuple[int, int]]]:
    """(out, in) of every linear layer in the decoder blocks, by name inside its block."""
    shapes: dict[str, list[tuple[int, int]]] = {}
    for name in linear_names(model):
        if in_block(name):
            module = model.get_submodule(name)
            shape = (module.out_features, module.in_features)
            shapes.setdefault(in_block(name), []).append(shape)
    return shapes


def linear_names(model: Any) -> list[str]:
    """Full names of all linear layers."""
    import torch

    return [name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)]


def in_block(name: str) -> str:
    """``mlp.up_proj`` of ``model.layers.3.mlp.up_proj``; empty outside a numbered block."""
    match = re.search(r"\.\d+\.(.+)$", name)
    return match[1] if match else ""


def _legal(shapes: dict[str, list[tuple[int, int]]], group_size: int) -> Layers:
    alone = {
        name: all(rows % PACK_ROWS == 0 and columns % group_size == 0 for rows, columns in sizes)
        for name, sizes in shapes.items()
    }
    fits = {name: all(alone[other] for other in _siblings(name, shapes)) for name in shapes}
    quantized = tuple(name for name in shapes if fits[name])
    return Layers(
        group_size=group_size,
        quantized=quantized,
        kept=tuple(name for name in shapes if not fits[name]),
        weights=sum(rows * columns for name in quantized for rows, columns in shapes[name]),
    )


def _siblings(name: str, names: Iterable[str]) -> list[str]:
    """The layers that stand or fall with ``name``, itself included."""
    prefix, dot, last = name.rpartition(".")
    together = next((group for group in _SIBLINGS if last in group), {last})
    return [other for other in names if other in {prefix + dot + each for each in together}]


def exclusions(layers: Layers) -> dict[str, dict[str, Any]] | None:
    """GPTQModel's ``dynamic`` setting that leaves the kept layers alone; None when all fit."""
    return {rf"-:.*\.{re.escape(name)}$": {} for name in layers.kept} or None


class _LayerCallback:
    """GPTQModel calls ``layer_complete`` twice a layer: when quantised and when packed."""

    def __init__(self, progress: LayerProgress, total: int) -> None:
        self._progress = progress
        self._total = total

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            self._progress(layer_idx + 1, self._total)


def quantize_to(
    folder: Path,
    model_path: Path,
    settings: Any,
    layers: Layers,
    sequences: Sequence[Sequence[int]],
    *,
    device: str,
    packing: str,
    extra_config: dict[str, Any],
    progress: LayerProgress,
    trust_remote_code: bool,
) -> None:
    """Quantise the model at ``model_path`` by GPTQModel's ``settings`` and write it to ``folder``.

    ``packing`` is the GPTQModel backend whose layout is written; ``extra_config`` goes into the
    ``quantization_config``. Raises QuantizationError; OSError (a full disk) passes.
    """
    import torch

    from llmfit.kernels.products import products_in_float32

    gptqmodel = import_gptqmodel()
    calibration = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in sequences]
    try:
        with _packing_environment(layers), _thread_failures_raised(), products_in_float32():
            model = gptqmodel.GPTQModel.load(
                str(model_path),
                settings,
                device=device,
                dtype=torch.bfloat16,
                trust_remote_code=trust_remote_code,
            )
            _require_layers(_linear_shapes(model.model), layers, model_path)
            model.layer_callback = _LayerCallback(
                progress, model.model.config.get_text_config().num_hidden_layers
            )
            model.quantize(calibration, backend=gptqmodel.BACKEND(packing), batch_size=4)
            model.save(str(folder))
    except (LlmfitError, OSError):
        raise
    except Exception as exc:  # GPTQModel raises every kind, bare Exception too
        raise QuantizationError(
            f"GPTQModel could not quantise {model_path}: {type(exc).__name__}: {first_line(exc)}.",
            hint=_HINT,
        ) from exc
    finally:
        shutil.rmtree(folder / OFFLOAD, ignore_errors=True)
    _require_layers(_quantized_in(folder), layers, model_path)
    _finish_config(folder, extra_config)


@contextmanager
def _thread_failures_raised() -> Iterator[None]:
    """Let a failure in one of GPTQModel's threads reach the caller.

    GPTQModel 7.6 ends the whole process then (``os._exit``), a notebook's too. The failure is
    also set on the future that the caller waits for, which is enough.
    """
    from gptqmodel.utils.threadx import _DeviceWorker

    original = _DeviceWorker._abort_process
    _DeviceWorker._abort_process = lambda worker, failure: None
    try:
        yield
    finally:
        _DeviceWorker._abort_process = original


def _require_layers(found: Iterable[str], layers: Layers, model_path: Path) -> None:
    """Raise QuantizationError where GPTQModel's layers are not those of transformers' model.

    For some architectures GPTQModel splits fused layers (Phi-3's gate_up_proj); its own loader
    joins them again and transformers' does not.
    """
    absent = sorted(set(layers.quantized) - set(found))
    if absent:
        raise QuantizationError(
            f"GPTQModel does not quantise {', '.join(absent)} of {model_path}; it has "
            f"{', '.join(sorted(found)) or 'no layers'}.",
            hint=_HINT,
        )


def _quantized_in(folder: Path) -> set[str]:
    """The quantised layers of a checkpoint, by name inside their block."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return {in_block(name).removesuffix(".qweight") for name in names if name.endswith(".qweight")}


@contextmanager
def _packing_environment(layers: Layers) -> Iterator[None]:
    """Choose between GPTQModel's compiled packing and its Python one, which differ in time only."""
    with _environment_kept():
        if layers.weights < _COMPILE_FROM_WEIGHTS:
            os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
        # ninja lies beside the interpreter in a virtual environment that is not activated.
        scripts = str(Path(sys.executable).parent)
        os.environ["PATH"] = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))
        yield


def _finish_config(folder: Path, extra: dict[str, Any]) -> None:
    """Add what transformers' own loader reads, and take out this machine's paths."""
    for name, key in (("config.json", "quantization_config"), ("quantize_config.json", None)):
        file = folder / name
        config = json.loads(file.read_text("utf-8"))
        quantization = config[key] if key else config
        quantization.get("meta", {}).pop("offload_to_disk_path", None)
        quantization.update(extra)
        file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
