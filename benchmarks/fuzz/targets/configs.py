"""Readers of config.json and of how a checkpoint says that it is quantised."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz import wholes
from benchmarks.fuzz.targets.base import Target, as_files
from llmfit.errors import LlmfitError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from llmfit.planner import Machine


# ---------------------------------------------------------------- config.json


@functools.cache
def _machine() -> Machine:
    from llmfit.planner import find_machine

    return find_machine(gpu="RTX 4090", ram_gb=64, runs_dir=os.devnull)


def _predict(folder: Path) -> None:
    """``llmfit plan FOLDER``: facts, memory, context, speed, the text, and the record's JSON."""
    from llmfit.backends.registry import default_backends
    from llmfit.measure import settle_workload
    from llmfit.models import read_spec
    from llmfit.planner import predict_row
    from llmfit.records import ModelPlan, from_json, to_json
    from llmfit.report.plan import render_plan

    spec = read_spec(folder, name="model", source="local")
    machine = _machine()
    work, notes = settle_workload(None, None, spec)
    backends = (*default_backends(spec), "gguf:q2_k", "nf4:double")
    plan = ModelPlan(
        model=spec,
        parameters=spec.parameters,
        active_parameters=None if spec.shape is None else spec.shape.active_parameters,
        workload=work,
        gpu=machine.gpu,
        cpu=machine.cpu,
        gpu_budget_bytes=machine.gpu_budget_bytes,
        ram_budget_bytes=machine.ram_budget_bytes,
        kv_cache_dtype=None,
        rows=tuple(predict_row(spec, name, work, machine) for name in backends),
        notes=notes,
        command=None,
    )
    render_plan(plan, "table")
    assert from_json(ModelPlan, to_json(plan)) == plan


def _structured_configs(make: Callable[[], list[dict[str, Any]]]) -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    return changed(make(), wholes.EXTRA_KEYS).map(as_json)


def _plan_gguf(folder: Path) -> None:
    """What a GGUF of the config would say, and hold with random weights; nothing is written."""
    from llmfit.foreign.json import read_json
    from llmfit.planning.architectures import require_shape
    from llmfit.quantize.gguf_rope import rope_tensors
    from llmfit.quantize.gguf_shape import read_shape
    from llmfit.quantize.gguf_synthetic import plan_synthetic

    about = read_shape(folder)
    config = read_json(folder / "config.json")
    shape = require_shape(config)
    name = next(iter(config["architectures"]))
    plan_synthetic(config, shape, architecture=name, file_type="q4_k_m")
    if about.head_dim <= 4096:  # the rest is an allocation that the disk's check comes before
        rope_tensors(about)


def _warm_torch() -> None:
    import torch

    torch.zeros(1)


def _build(folder: Path) -> None:
    """transformers' config and the model without values, as rows of random weights make them."""
    from llmfit.backends._hf import plan_config
    from llmfit.foreign.errors import LibraryErrors
    from llmfit.models import read_spec
    from llmfit.quantize._gptqmodel import empty_model
    from llmfit.records import Plan

    spec = read_spec(folder, name="model", source="local")
    plan = Plan(backend="sdpa", model=spec, device="cpu", weights="synthetic")
    with LibraryErrors("transformers cannot build it"):
        empty_model(plan_config(plan))


def _warm_models() -> None:
    import tempfile

    from benchmarks.fuzz.watch import quiet

    quiet()
    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        for config in wholes.small_configs():
            (Path(folder) / "config.json").write_bytes(json.dumps(config).encode())
            with suppress(LlmfitError):
                _build(Path(folder))


# ---------------------------------------------------------------- quantisation


def _quantized(folder: Path) -> None:
    """What a checkpoint says of its quantisation, and what the rows that load it make of it."""
    from llmfit.backends._packed import loadable
    from llmfit.models import read_spec
    from llmfit.quantization import stored_quantization

    spec = read_spec(folder, name="model", source="local")
    facts = stored_quantization(folder)
    if facts is not None and spec.quantization in ("gptq", "awq"):
        loadable(folder, facts, device="cpu")


def _with_weights(folder: Path) -> None:
    (folder / "config.json").write_bytes(json.dumps(wholes.SMALL).encode())
    content = wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)
    (folder / "model.safetensors").write_bytes(content)


TARGETS = (
    Target(
        name="config.json to predictions", file="config.json", run=_predict,
        seeds=lambda: as_files(wholes.configs), share=2.0,
        structured=lambda: _structured_configs(wholes.configs),
        warm=lambda: _machine() and None,
    ),
    Target(
        name="config.json to GGUF metadata", file="config.json", run=_plan_gguf, warm=_warm_torch,
        seeds=lambda: as_files(wholes.convertible_configs),
        structured=lambda: _structured_configs(wholes.convertible_configs),
    ),
    Target(
        name="config.json by transformers", file="config.json", run=_build, warm=_warm_models,
        seeds=lambda: as_files(wholes.small_configs), share=0.5,
        structured=lambda: _structured_configs(wholes.small_configs),
    ),
    Target(
        name="quantization_config", file="config.json", run=_quantized, furnish=_with_weights,
        seeds=lambda: as_files(wholes.quantized_configs),
        structured=lambda: _structured_configs(wholes.quantized_configs),
    ),
    Target(
        name="quantize_config.json", file="quantize_config.json", run=_quantized,
        furnish=_with_weights, seeds=lambda: as_files(lambda: wholes.QUANTIZATIONS), share=0.5,
        structured=lambda: _structured_configs(lambda: wholes.QUANTIZATIONS),
    ),
)  # fmt: skip
