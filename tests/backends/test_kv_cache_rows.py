"""The KV cache's type as each row takes it: used and said, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfit.backends import _hf
from llmfit.backends.base import Package
from llmfit.backends.registry import backend_ids, get_backend
from llmfit.records import ModelSpec, Plan


def plan_of(spec: ModelSpec, backend: str, cache: Path | None = None) -> Plan:
    """A plan with the 8-bit cache, on one thread."""
    return Plan(
        backend=backend,
        model=spec,
        device="cpu",
        threads=1,
        kv_cache_dtype="q8_0",
        cache_dir=None if cache is None else str(cache),
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_ids())
def test_a_row_says_its_cache_or_why_not(
    embedded: ModelSpec, artifact_cache: Path, backend: str
) -> None:
    """No row leaves the option out silently: its attention kernel names the cache's type."""
    plan = plan_of(embedded, backend, artifact_cache)
    outcome = get_backend(backend).check(plan)
    if outcome.unavailable is not None:
        pytest.skip(outcome.unavailable)
    if outcome.skipped is not None:
        assert backend in ("compiled", "stored", "onnx")
        return
    with get_backend(backend).load(plan) as loaded:
        assert "KV q8_0" in loaded.info.kernel.attention


def test_the_compiled_row_is_skipped(embedded: ModelSpec) -> None:
    """Its step has constant shapes, the cache grows."""
    outcome = get_backend("compiled").check(plan_of(embedded, "compiled"))
    assert outcome.skipped is not None
    assert "q8_0 KV cache grows" in outcome.skipped and "constant shapes" in outcome.skipped


@pytest.mark.parametrize("backend", ["bf16", "nf4", "gptq", "gguf"])
def test_a_head_size_of_8_is_skipped_by_name(stories260k: ModelSpec, backend: str) -> None:
    """Neither engine has groups for it; the reason names head size and option."""
    outcome = get_backend(backend).check(plan_of(stories260k, backend))
    assert outcome.skipped is not None
    assert "--kv-cache-dtype q8_0" in outcome.skipped and outcome.skipped.endswith("has 8")


def test_a_missing_library_is_named(embedded: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the quantising library a PyTorch row is unavailable and says the pip line."""
    monkeypatch.setattr(_hf, "KV_CACHE_PACKAGE", Package("no_such_module", "hqq"))
    outcome = get_backend("sdpa").check(plan_of(embedded, "sdpa"))
    assert outcome.unavailable is not None
    assert "pip install 'llmfit[kv]'" in outcome.unavailable
