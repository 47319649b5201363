"""Predicted memory against published file sizes and against what loading gives."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from llmfit.backends.registry import get_backend
from llmfit.models import resolve
from llmfit.planning.memory.prediction import predict_memory, weights_bytes
from llmfit.records import ModelSpec, Plan, Workload
from llmfit.testing import make_model


@pytest.mark.parametrize(("method", "backend"), [("Q4_K_M", "gguf"), ("Q8_0", "gguf:q8_0")])
def test_gguf_size_equals_the_published(shared_data: Path, method: str, backend: str) -> None:
    """Bits per weight of Llama-3.1-8B as llama.cpp's own table gives them, within 0.1 %."""
    with (shared_data / "measured_memory.tsv").open() as file:
        (published,) = [
            float(row["value"])
            for row in csv.DictReader(file, delimiter="\t")
            if row["method"] == f"gguf-{method}" and row["kind"] == "bits_per_weight"
        ]
    spec = resolve(str(shared_data / "configs" / "meta-llama--Meta-Llama-3.1-8B"))
    size = weights_bytes(spec, backend)
    assert size is not None
    assert size * 8 / 8_030_261_248 == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("backend", ["bf16", "int8", "nf4"])
def test_weights_equal_what_loading_gives(embedded: ModelSpec, backend: str) -> None:
    """Predicted bytes of weights are those of the loaded model, within 2 %."""
    with get_backend(backend).load(Plan(backend=backend, model=embedded, device="cpu")) as loaded:
        assert weights_bytes(embedded, backend) == pytest.approx(
            loaded.info.weights_bytes, rel=0.02
        )


def test_parts_add_up_and_the_unknown_is_none() -> None:
    """The total is the sum of its parts; an architecture not modelled here gets no guess."""
    parts = predict_memory(make_model(), "awq", Workload(), "cuda")
    assert parts is not None
    assert parts.total_bytes == (
        parts.weights_bytes + parts.kv_cache_bytes + parts.activation_bytes + parts.runtime_bytes
    )
    assert predict_memory(make_model(shape=None), "awq", Workload(), "cuda") is None
    assert predict_memory(make_model(), "gguf:q9_k", Workload(), "cpu") is None
