"""The ladder down to a memory target: its order, its sums, and where it ends."""

from __future__ import annotations

import pytest

from llmfit.backends.registry import get_backend
from llmfit.models import resolve
from llmfit.planning.advice.ladder import Rung, ladder, needed
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import ModelSpec, Workload
from llmfit.units import GB

LABELS = [
    "FP32",
    "BF16",
    "+ SDPA",
    "INT8",
    "NF4",
    "GPTQ INT4",
    "AWQ INT4",
    "GGUF Q4_K_M",
    "GGUF Q3_K_M",
    "GGUF Q2_K",
]


@pytest.fixture(scope="module")
def llama() -> ModelSpec:
    """Llama-3.1-8B from the catalogue's facts."""
    return resolve("llama-3.1-8b", weights=False)


def total(rung: Rung) -> int:
    """Predicted bytes in all."""
    assert rung.predicted is not None
    return rung.predicted.total_bytes


def test_the_order_of_the_steps(llama: ModelSpec) -> None:
    """Formats in the order asked for, then the quantised caches; GGUF is of RAM, others of VRAM."""
    rungs = ladder(llama, Workload(), "cuda", 1 * GB)
    labels = [rung.label for rung in rungs]
    assert labels[: len(LABELS)] == LABELS
    assert [label.split(", ")[1] for label in labels[len(LABELS) :]] == ["KV q8_0", "KV q4_0"] * 2
    for rung in rungs:
        assert rung.device == ("cpu" if rung.label.startswith("GGUF") else "cuda")
        assert rung.backend is None or get_backend(rung.backend)


def test_fp32_is_twice_bf16(llama: ModelSpec) -> None:
    """FP32's weights are four bytes a parameter; it is never run, and says so."""
    fp32, bf16 = ladder(llama, Workload(), "cuda", 8 * GB)[:2]
    assert fp32.predicted is not None and bf16.predicted is not None
    assert fp32.predicted.weights_bytes == 4 * 8_030_261_248
    assert fp32.predicted.kv_cache_bytes == 2 * bf16.predicted.kv_cache_bytes
    parts = fp32.predicted
    assert parts.total_bytes == (
        parts.weights_bytes + parts.kv_cache_bytes + parts.activation_bytes + parts.runtime_bytes
    )
    assert fp32.backend is None and "no row runs in FP32" in (fp32.measured_reason or "")


def test_each_rung_is_predicted_as_its_row(llama: ModelSpec) -> None:
    """A rung's memory is that of the row of its backend, device, workload and cache."""
    for rung in ladder(llama, Workload(prompt_tokens=4096), "cuda", 5 * GB)[1:]:
        assert rung.backend is not None
        assert rung.predicted == predict_memory(
            llama, rung.backend, rung.workload, rung.device, kv_cache_dtype=rung.kv_cache_dtype
        )


def test_the_formats_shrink_the_model(llama: ModelSpec) -> None:
    """Each named step takes less than the one before its group: 32, 16, 8, 4 bits and below."""
    by = {rung.label: total(rung) for rung in ladder(llama, Workload(), "cuda", 1 * GB)}
    steps = ["FP32", "BF16", "INT8", "NF4", "GPTQ INT4"]
    sizes = [by[label] for label in steps]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert by["GGUF Q4_K_M"] > by["GGUF Q3_K_M"] > by["GGUF Q2_K"] > by["GGUF Q2_K, KV q4_0"]


def test_the_path_ends_at_the_first_that_fits(llama: ModelSpec) -> None:
    """8 GB is reached by NF4, 20 GB by BF16, 40 GB by FP32 itself; 1 GB by nothing."""
    for target_gb, last in ((8, "NF4"), (12, "INT8"), (20, "BF16"), (40, "FP32")):
        rungs = needed(ladder(llama, Workload(), "cuda", target_gb * GB))
        assert rungs[-1].label == last
        assert [rung.fits for rung in rungs] == [False] * (len(rungs) - 1) + [True]
        assert total(rungs[-1]) <= target_gb * GB
    everything = ladder(llama, Workload(), "cuda", 1 * GB)
    assert needed(everything) == everything and not any(rung.fits for rung in everything)


def test_a_shorter_context_is_the_last_step(llama: ModelSpec) -> None:
    """Where only the length is left, the last rung holds what fits and no token more would."""
    work = Workload(prompt_tokens=100_000, new_tokens=128)
    target = 6 * GB
    last = ladder(llama, work, "cuda", target)[-1]
    tokens = last.workload.prompt_tokens + last.workload.new_tokens
    assert last.fits and last.label.endswith(f"{tokens:,} tokens")
    assert tokens < 100_128 and total(last) <= target
    assert last.max_context == tokens


def test_what_is_not_known_is_not_made_up() -> None:
    """Without a shape every prediction is None, and no rung fits or fails."""
    from llmfit.testing import make_model

    rungs = ladder(make_model(shape=None), Workload(), "cuda", 8 * GB)
    assert [rung.label for rung in rungs] == LABELS
    assert all(rung.predicted is None and rung.fits is None for rung in rungs)
