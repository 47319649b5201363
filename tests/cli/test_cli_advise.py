"""``llmfit advise`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmfit.device.cpu import cpu_name, physical_cores
from llmfit.records import Environment, to_json
from llmfit.testing import make_record

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_table_fits_80_columns_and_names_commands(llmfit: Run) -> None:
    """Every technique of the case is in the table, with source and command below it."""
    done = llmfit(
        "advise", "--vram-gb", "8", "--task", "inference", "--hardware", "consumer_gpu",
        COLUMNS="80",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for technique in ("mixed precision", "flash attention", "torch.compile", "KV cache",
                      "AWQ INT4", "GGUF Q4_K_M", "ONNX export", "distillation"):  # fmt: skip
        assert technique in done.stdout
    assert "llmfit compare MODEL --backends bf16,awq --gpu-gb 8" in done.stdout
    assert "arXiv:2306.00978" in done.stdout and "Measure: llmfit study kv-cache" in done.stdout


def test_json_has_the_question_and_the_answer(llmfit: Run) -> None:
    """The JSON begins with its version and holds each field of each advice."""
    done = llmfit(
        "advise", "--vram-gb", "16", "--task", "edge", "--accuracy-critical", "--hardware", "edge",
        "--format", "json",
    )  # fmt: skip
    guide = json.loads(done.stdout)
    assert next(iter(guide)) == "schema_version"
    assert (guide["vram_available_gb"], guide["task"], guide["hardware"]) == (16.0, "edge", "edge")
    assert guide["accuracy_critical"] is True
    int8 = guide["advice"][4]
    assert int8["technique"] == "INT8 (bitsandbytes)"
    assert set(int8["expected"]) == {"memory", "speed", "quality", "source"}
    assert int8["command"].startswith("llmfit compare MODEL")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--vram-gb", "-1", "--hardware", "cpu"), "--vram-gb"),
        (("--vram-gb", "nan", "--hardware", "cpu"), "--vram-gb"),
        (("--vram-gb", "8", "--task", "dreaming"), "invalid choice: 'dreaming'"),
        (("--hardware", "toaster"), "invalid choice: 'toaster'"),
        (("--vram-gb", "8"), "the kind of the GPU is not given"),
    ],
)
def test_wrong_values_are_one_line_and_exit_2(
    llmfit: Run, words: tuple[str, ...], told: str
) -> None:
    """Nothing on stdout, one line on stderr that names the value, exit code 2."""
    done = llmfit("advise", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert told in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.slow
def test_own_records_are_shown(llmfit: Run, tmp_path: Path) -> None:
    """Two rows of this machine in the runs folder give the measured line."""
    here = Environment(
        platform="Linux", python="3.12.1", cpu=cpu_name(), cpu_cores=physical_cores(),
        ram_bytes=None,
    )  # fmt: skip
    folder = tmp_path / "20260102-030405-model-abcdef"
    folder.mkdir()
    for backend, rate in (("bf16", 10.0), ("awq", 25.0)):
        row = make_record(backend, tokens_per_s=rate, device="cpu", environment=here)
        (folder / f"{backend}.json").write_text(to_json(row), encoding="utf-8")
    done = llmfit("advise", "--hardware", "cpu", "--vram-gb", "0", "--runs-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "measured here" in done.stdout and "2.50×" in done.stdout
