"""``llmfit plan``, and ``llmfit compare`` while the weights are not there yet, as users run them.

Offline, without a GPU, on a model of the embedded catalogue.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmfit.units import GB

Run = Callable[..., subprocess.CompletedProcess[str]]

FORMATS = ["bf16", "sdpa", "compiled", "int8", "nf4", "gptq", "awq", "gguf"]
MODEL = "meta-llama/Llama-3.1-8B"


def test_a_plan_fits_80_columns_and_says_how_to_measure(llmfit: Run, tmp_path: Path) -> None:
    """Eight rows, the card by name, the first thing to change, and a command for measurements."""
    done = llmfit("plan", MODEL, "--gpu-gb", "8", "--runs-dir", str(tmp_path), COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    assert "RTX 4060" in text and "assumed for --gpu-gb 8" in text
    assert text.count("✗") == 4 and text.count("✓") == 4
    assert "Try: --backends awq" in text
    assert f"llmfit compare {MODEL} --weights synthetic" in text


def test_a_plan_over_several_gpus_fits_80_columns_and_says_the_fewest(
    llmfit: Run, tmp_path: Path
) -> None:
    """A second table: the fullest GPU by both ways to split, and how few cards hold each format."""
    given = (MODEL, "--gpu", "RTX 4060", "--gpus", "4", "--runs-dir", str(tmp_path))
    done = llmfit("plan", *given, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (start,) = [index for index, line in enumerate(lines) if line.startswith("Over 4 × ")]
    (sdpa,) = [line.split() for line in lines[start:] if line.startswith("BF16 + SDPA")]
    planned = json.loads(llmfit("plan", *given, "--format", "json").stdout)
    assert planned["gpus"] == 4
    row = next(row for row in planned["rows"] if row["backend"] == "sdpa")
    marks = {True: "✓", False: "✗", None: "–"}
    cells = [
        (f"{split['fullest_bytes'] / GB:.2f}", marks[split["fits"]], str(split["fewest_gpus"]))
        for split in row["splits"]
    ]
    assert sdpa[-6:] == [*cells[0], *cells[1]]
    text = " ".join(done.stdout.split())
    assert "over several GPUs: it runs on the CPU" in text
    assert "balanced: whole layers on each GPU" in text
    compiled = next(row for row in planned["rows"] if row["backend"] == "compiled")
    assert compiled["splits"][0]["fullest_bytes"] is None


@pytest.mark.parametrize("value", ["0", "65", "two", "1.5", "-2"])
def test_a_wrong_number_of_gpus_is_a_usage_error(llmfit: Run, value: str) -> None:
    """It names the value, and nothing is planned."""
    done = llmfit("plan", MODEL, "--gpu-gb", "8", f"--gpus={value}")
    assert done.returncode == 2 and done.stdout == ""
    assert repr(value) in done.stderr


def test_the_json_of_a_plan_keeps_the_contract(llmfit: Run, tmp_path: Path) -> None:
    """Bytes by part add up, the context fits, a rate is a range with its basis; unknown is null."""
    done = llmfit("plan", MODEL, "--gpu-gb", "8", "--format", "json", "--runs-dir", str(tmp_path))
    planned = json.loads(done.stdout)
    assert next(iter(planned)) == "schema_version"
    assert [row["backend"] for row in planned["rows"]] == FORMATS
    for row in planned["rows"]:
        memory, speed = row["memory"], row["tokens_per_s"]
        parts = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "runtime_bytes")
        assert memory["total_bytes"] == sum(memory[part] for part in parts)
        if row["device"] == "cuda":
            assert row["fits"] == (memory["total_bytes"] <= 8 * GB)
            assert speed["high"] <= speed["limit"]
        assert (row["max_context"] > 640) == row["fits"]
        assert 0 < speed["low"] <= speed["estimate"] <= speed["high"]
        assert speed["basis"]


def test_a_plan_of_a_quantised_model_offers_no_synthetic_weights(
    llmfit: Run, tmp_path: Path
) -> None:
    """Random weights are of unquantised models, so the command would give no figure."""
    done = llmfit("plan", "gpt-oss-20b", "--gpu-gb", "24", "--runs-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "llmfit compare openai/gpt-oss-20b" in done.stdout
    assert "synthetic" not in done.stdout


@pytest.mark.slow
def test_compare_without_weights_predicts_and_says_how_to_measure(
    llmfit: Run, user_folders: Path
) -> None:
    """Exit 0, eight rows with memory and speed, which fit, a verdict, and the next command."""
    done = llmfit("compare", MODEL, "--gpu-gb", "8", "--format", "json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    comparison = json.loads(done.stdout)
    assert [row["backend"] for row in comparison["rows"]] == FORMATS
    fitting = {row["backend"] for row in comparison["rows"] if row["status"] != "does_not_fit"}
    assert fitting == {"nf4", "gptq", "awq", "gguf"}
    for row in comparison["rows"]:
        assert row["predicted_only"] is True and row["memory"]["predicted_bytes"] > 0
        assert row["predicted_tokens_per_s"]["estimate"] > 0
        assert row["memory"]["peak_bytes"] is None and row["decode"] is None
    assert comparison["verdict"]["predicted"] is True
    assert comparison["verdict"]["backend"] in fitting
    table = llmfit("compare", MODEL, "--gpu-gb", "8", HF_HUB_OFFLINE="1", COLUMNS="80")
    assert max(map(len, table.stdout.splitlines())) <= 80
    assert "--weights synthetic" in table.stdout and "hf download" in table.stdout
