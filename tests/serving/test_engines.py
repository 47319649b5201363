"""The words that start an engine: each option is one that the engine's own help has."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from llmfit.engines.base import Served, script
from llmfit.engines.registry import ENGINES, engine_for, get_engine
from llmfit.errors import UsageError

SERVED = Served(
    name="m-awq",
    backend="awq",
    path="./model",
    device="cpu",
    context=4096,
    threads=3,
    gpu_share=0.5,
    trust_remote_code=True,
)


def options(command: tuple[str, ...]) -> list[str]:
    return [word for word in command if word.startswith("--")]


@pytest.mark.slow
def test_transformers_serve_has_these_options() -> None:
    """Of every format that it serves."""
    engine = get_engine("transformers")
    commands = [engine.command(replace(SERVED, backend=each)) for each in engine.formats]
    _in_the_help(sum(commands, ()), [script("transformers"), "serve", "--help"])


@pytest.mark.slow
def test_llama_cpp_pythons_server_has_these_options() -> None:
    command = get_engine("llama-cpp-python").command(replace(SERVED, backend="gguf"))
    _in_the_help(command, [sys.executable, "-m", "llama_cpp.server", "--help"])


def _in_the_help(command: tuple[str, ...], asking: list[str]) -> None:
    shown = subprocess.run(
        asking, capture_output=True, text=True, check=True, env={"COLUMNS": "200", "PATH": "/"}
    ).stdout
    missing = [option for option in options(command) if option not in shown]
    assert not missing
    assert options(command)


def test_vllm_gets_context_memory_and_the_kind_of_weights() -> None:
    """Source of the names: vLLM 0.33, EngineArgs and QuantizationMethods."""
    engine = get_engine("vllm")
    assert engine.command(replace(SERVED, backend="fp8")) == (
        "vllm", "serve", "./model", "--served-model-name", "m-awq", "--max-model-len", "4096",
        "--dtype", "bfloat16", "--gpu-memory-utilization", "0.50",
        "--quantization", "fp8_per_channel", "--trust-remote-code",
        "--host", "127.0.0.1", "--port", "8000",
    )  # fmt: skip
    plain = engine.command(replace(SERVED, gpu_share=None, trust_remote_code=False))
    assert "--quantization" not in plain and "--gpu-memory-utilization" not in plain


def test_ollama_gets_a_modelfile() -> None:
    """Source of the words: docs.ollama.com/modelfile."""
    served = replace(SERVED, backend="gguf", path="model.gguf")
    assert get_engine("ollama").settings(served) == {
        "Modelfile": "FROM ./model.gguf\nPARAMETER num_ctx 4096\n"
    }


def test_what_serves_a_format_here() -> None:
    """vLLM needs a GPU; Ollama is no server that is started; an unknown format is an error."""
    assert engine_for("sdpa", "cpu").id == "transformers"
    assert engine_for("gguf:q5_k_m", "cpu").id in ("llama-server", "llama-cpp-python")
    with pytest.raises(UsageError, match="no engine serves stored"):
        engine_for("stored", "cpu")
    with pytest.raises(UsageError, match=r"unknown engine 'vlm'.*known are vllm"):
        get_engine("vlm")
    for engine in ENGINES.values():
        with pytest.raises(UsageError, match="serves no fp3"):
            engine.require_format("fp3")
