"""Formats that are off by default: what their weights became, and when they are rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from llmfit.backends._hf import HfModel
from llmfit.backends.registry import (
    ON_REQUEST,
    check_backends,
    chosen_backends,
    default_backends,
    get_backend,
)
from llmfit.errors import BackendUnavailable, UsageError
from llmfit.records import ModelSpec, Plan


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and layer of all linear ones inside the blocks."""
    for name, module in model.named_modules():
        if "Linear" in type(module).__name__ and "layers." in name:
            yield name, module


@pytest.fixture
def original(embedded: ModelSpec) -> dict[str, torch.Tensor]:
    """The weights as they are stored, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.float32)
    return {name: layer.weight.detach() for name, layer in linears(model)}


def load(embedded: ModelSpec, backend: str) -> HfModel:
    loaded = get_backend(backend).load(Plan(backend=backend, model=embedded, device="cpu"))
    assert isinstance(loaded, HfModel)
    return loaded


@pytest.mark.slow
def test_int8_weights_are_the_nearest_of_255(
    embedded: ModelSpec, original: dict[str, torch.Tensor]
) -> None:
    """Each row has a scale of its own, and no weight is further than half a step from its own."""
    pytest.importorskip("torchao")
    with load(embedded, "int8wo") as loaded:
        found = dict(linears(loaded.model))
        assert found.keys() == original.keys()
        for name, layer in found.items():
            weight = layer.weight
            assert weight.qdata.dtype == torch.int8 and not weight.zero_point.any()
            step = weight.scale.float()
            rounded = weight.qdata.float() * step
            assert ((rounded - original[name]).abs() <= 0.5001 * step).all()
            assert torch.allclose(step[:, 0] * 127.5, original[name].abs().amax(1), rtol=0.01)


@pytest.mark.slow
def test_hqqs_weights_are_nearer_than_those_rounded_to_the_nearest(
    embedded: ModelSpec, original: dict[str, torch.Tensor]
) -> None:
    """Over all layers, against 16 even steps from the least to the greatest of each 64."""
    pytest.importorskip("hqq")
    theirs = plain = 0.0
    with load(embedded, "hqq") as loaded:
        for name, layer in linears(loaded.model):
            groups = original[name].reshape(-1, 64)
            low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            step = (high - low) / 15
            nearest = ((groups - low) / step).round() * step + low
            plain += (nearest - groups).abs().pow(0.7).sum().item()
            theirs += (layer.dequantize().float() - original[name]).abs().pow(0.7).sum().item()
    assert 0.5 * plain < theirs < plain


def test_they_are_rows_only_where_they_are_asked_for(embedded: ModelSpec) -> None:
    """By name, or by ``all``."""
    common = default_backends(embedded)
    assert not set(ON_REQUEST) & set(common)
    assert chosen_backends(None, embedded) == common
    assert chosen_backends(["all"], embedded) == (*common, *ON_REQUEST)
    assert chosen_backends(["hqq", "bf16"], embedded) == ("hqq", "bf16")
    for wrong in (["all", "bf16"], ["bf16", "bf16"], [], ["fp3"]):
        with pytest.raises(UsageError):
            check_backends(wrong)
        with pytest.raises(UsageError):
            chosen_backends(wrong, embedded)


@pytest.mark.parametrize("backend", ["fp8", "int4wo"])
def test_what_needs_a_gpu_is_unavailable_without_one(embedded: ModelSpec, backend: str) -> None:
    """It never runs another format in its place."""
    found = get_backend(backend)
    plan = Plan(backend=backend, model=embedded, device="cpu")
    if not found.missing():
        assert found.check(plan).unavailable == (
            "it runs on a CUDA GPU alone, and none is used here"
        )
    with pytest.raises(BackendUnavailable, match=backend):
        found.load(plan)
    assert found.check(Plan(backend=backend, model=embedded, device="cuda")).skipped is None
