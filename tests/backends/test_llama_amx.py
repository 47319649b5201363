"""llama.cpp's AMX kernels crash where a compiler got them wrong: they are tried before a row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmfit.backends import _llama_amx, gguf
from llmfit.backends._llama_amx import why_not_amx
from llmfit.decode.base import GREEDY
from llmfit.deployer import Deployer
from llmfit.errors import ModelLoadError

llama_cpp = pytest.importorskip("llama_cpp")
PROMPT = list(range(5, 60))


@pytest.fixture
def amx_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """llama.cpp says that it was built with AMX, whatever it was built with."""
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CPU : AMX_INT8 = 1 | ")
    why_not_amx.cache_clear()
    yield
    why_not_amx.cache_clear()


def python_that(does: str, folder: Path) -> str:
    """An interpreter that does one thing, whatever it is asked to run."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    return str(script)


def first_tokens(cache: Path) -> tuple[list[int], tuple[str, ...]]:
    """What the embedded model's gguf row says greedily, and its notes."""
    with Deployer(backend="gguf", device="cpu", cache_dir=str(cache)).load() as deployer:
        decoder = deployer.model.decoder(batch=1, capacity=80)
        decoder.prefill([PROMPT], GREEDY)
        said = decoder.tokens()
        for _ in range(15):
            decoder.step()
            said += decoder.tokens()
        return said, deployer.info.notes


def test_kernels_that_run_are_used(amx_build: None) -> None:
    """The child writes its file and runs a prompt through it, by the build that is here."""
    assert why_not_amx() is None


def test_kernels_that_crash_are_left_out(
    amx_build: None, tmp_path: Path, artifact_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child died of a signal: the row runs without them, says so, and says the same text."""
    monkeypatch.setattr(gguf, "why_not_amx", lambda: None)
    expected, _ = first_tokens(artifact_cache)
    monkeypatch.setattr(gguf, "why_not_amx", why_not_amx)
    monkeypatch.setattr(sys, "executable", python_that("kill -SEGV $$", tmp_path))
    said, notes = first_tokens(artifact_cache)
    assert said == expected
    (note,) = (note for note in notes if "AMX" in note)
    assert "SIGSEGV" in note and "CMAKE_ARGS=" in note


def test_a_trial_that_fails_by_itself_is_an_error(
    amx_build: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known then of the kernels; its last words are told."""
    failing = python_that("echo no room left >&2; exit 3", tmp_path)
    monkeypatch.setattr(sys, "executable", failing)
    with pytest.raises(ModelLoadError, match="AMX kernels failed, it said: no room left"):
        why_not_amx()


def test_a_trial_that_does_not_end_is_an_error(
    amx_build: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is not kept waiting by it."""
    monkeypatch.setattr(_llama_amx, "_TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(sys, "executable", python_that("exec sleep 30", tmp_path))
    with pytest.raises(ModelLoadError, match="AMX kernels took more than"):
        why_not_amx()


def test_other_builds_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for them."""
    why_not_amx.cache_clear()
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX2 = 1 | ")
    monkeypatch.setattr(sys, "executable", "/missing")
    assert why_not_amx() is None
    why_not_amx.cache_clear()
