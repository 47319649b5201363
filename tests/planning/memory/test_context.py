"""The largest context that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.planning.memory.context import max_context
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Device, KvCacheDtype, Workload
from llmfit.testing import make_model


def needed(backend: str, workload: Workload, device: Device, dtype: KvCacheDtype | None) -> int:
    memory = predict_memory(make_model(), backend, workload, device, kv_cache_dtype=dtype)
    assert memory is not None
    return memory.total_bytes


@pytest.mark.parametrize("dtype", [None, "q8_0"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("chunk", [None, 512])
@pytest.mark.parametrize(("backend", "device", "budget_gb"), [
    ("bf16", "cuda", 20), ("sdpa", "cuda", 20), ("nf4", "cuda", 8), ("int8", "cuda", 12),
    ("gguf", "cpu", 8),
])  # fmt: skip
def test_it_fits_and_one_token_more_does_not(
    backend: str,
    device: Device,
    budget_gb: int,
    chunk: int | None,
    batch: int,
    dtype: KvCacheDtype | None,
) -> None:
    """At the largest context the prediction is within the budget, a token beyond it is not."""
    work = Workload(new_tokens=100, batch=batch, prefill_chunk=chunk)
    budget = budget_gb * 10**9
    context = max_context(make_model(), backend, work, device, budget, kv_cache_dtype=dtype)
    assert context is not None and 100 < context < 131_072
    fitting = replace(work, prompt_tokens=context - 100)
    beyond = replace(work, prompt_tokens=context - 99)
    assert needed(backend, fitting, device, dtype) <= budget
    assert needed(backend, beyond, device, dtype) > budget


def test_its_ends_are_the_models_limit_and_nothing() -> None:
    """The model's own limit where memory is plenty, 0 where not two tokens fit, None unknown."""
    spec = make_model()
    assert max_context(spec, "sdpa", Workload(), "cuda", 10**12) == 131_072
    assert max_context(spec, "sdpa", Workload(), "cuda", 10**10) == 0
    assert max_context(spec, "exl9", Workload(), "cuda", 10**12) is None


def test_more_memory_never_means_less_context() -> None:
    """Monotone in the budget, a quantised cache never below a plain one at the same budget."""
    spec = make_model()
    found = [
        max_context(spec, "nf4", Workload(), "cuda", gb * 10**9) or 0 for gb in range(5, 33, 3)
    ]
    assert found == sorted(found) and found[0] < found[-1]
