"""``llmfit path`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmfit.units import GB

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_path_to_8_gb(llmfit: Run) -> None:
    """Offline, without weights and GPU: the steps to 8 GB in 80 columns, and how to measure."""
    done = llmfit(
        "path", "llama-3.1-8b", "--to-gb", "8", "--device", "cuda",
        COLUMNS="80", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for step in ("FP32", "BF16", "+ SDPA", "INT8", "NF4"):
        assert step in done.stdout
    assert "NF4 fits 8.00 GB" in done.stdout and "GGUF" not in done.stdout
    assert "--to-gb 8 --measure --weights synthetic" in " ".join(done.stdout.split())


def test_json_has_every_rung(llmfit: Run) -> None:
    """The JSON begins with its version; each rung has its parts, unknown ones null."""
    done = llmfit("path", "llama-3.1-8b", "--to-gb", "5", "--device", "cuda", "--format", "json")
    path = json.loads(done.stdout)
    assert next(iter(path)) == "schema_version"
    assert path["target_bytes"] == 5 * GB and path["reached"] is True
    fp32, *_, last = path["rungs"]
    assert fp32["backend"] is None and fp32["predicted"]["weights_bytes"] == 4 * 8_030_261_248
    assert fp32["measured_bytes"] is None and "FP32" in fp32["measured_reason"]
    assert last["fits"] is True and last["predicted"]["total_bytes"] <= 5 * GB
    assert all(rung["measured_bytes"] is None for rung in path["rungs"])


def test_a_target_out_of_reach_says_so(llmfit: Run) -> None:
    """70 B parameters do not get down to 8 GB: the smallest need is named, and the exit code 0."""
    done = llmfit("path", "llama-3.3-70b", "--to-gb", "8", "--device", "cuda", COLUMNS="200")
    assert done.returncode == 0
    assert "Nothing here fits 8.00 GB: the smallest, GGUF Q2_K" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("llama-3.1-8b",), "--to-gb"),
        (("llama-3.1-8b", "--to-gb", "-8"), "'-8'"),
        (("llama-3.1-8b", "--to-gb", "nan"), "'nan'"),
        (("llama-3.1-8b", "--to-gb", "8", "--context", "999999999"), "131072"),
        (("llama-3.1-8b", "--to-gb", "8", "--weights", "synthetic"), "--measure"),
        (("llama-3.1-8b", "--to-gb", "8", "--context", "64", "--new-tokens", "8"), "--context"),
    ],
)
def test_wrong_values_are_one_line_and_exit_2(
    llmfit: Run, words: tuple[str, ...], told: str
) -> None:
    """Nothing on stdout, one message that names the value, exit code 2."""
    done = llmfit("path", *words)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert told in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.slow
def test_measuring_wants_weights(llmfit: Run) -> None:
    """Without the weights nothing is measured, and the way to measure without them is named."""
    done = llmfit("path", "llama-3.1-8b", "--to-gb", "8", "--measure", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stdout == ""
    assert "--weights synthetic" in done.stderr


@pytest.mark.slow
def test_measured_rungs_of_the_embedded_model(llmfit: Run, tmp_path: Path) -> None:
    """The first rung that ran and fits ends the path, and its row is kept with its peak."""
    done = llmfit(
        "path", "--to-gb", "4", "--measure", "--device", "cpu", "--threads", "1", "--format",
        "json", "--runs-dir", str(tmp_path), timeout_s=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = json.loads(done.stdout)
    fp32, bf16 = path["rungs"]
    assert path["reached"] and path["measured"]
    assert fp32["measured_bytes"] is None
    assert bf16["status"] == "ok" and bf16["fits"] is True
    (record,) = (p for p in tmp_path.glob("*/bf16*.json"))
    memory = json.loads(record.read_text(encoding="utf-8"))["memory"]
    assert bf16["measured_bytes"] == memory["peak_bytes"]
    # The whole process: what the idle worker holds counts too.
    assert bf16["measured_total_bytes"] == memory["peak_bytes"] + memory["idle_ram_bytes"]
