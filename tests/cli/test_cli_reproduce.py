"""``llmfit reproduce`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "RECORD"),
        (["not-there"], "'not-there'"),
        ([""], "''"),
        (["."], "'.'"),
        (["a", "b"], "'b'"),
        (["not-there", "--format", "md"], "'md'"),
        (["not-there", "--time-limit", "0"], "'0'"),
        (["not-there", "--runs-dir", "/proc/none"], "/proc/none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_message(
    llmfit: Run, tmp_path: Path, words: list[str], named: str
) -> None:
    """Exit code 2, nothing on stdout, one message that names it."""
    done = llmfit("reproduce", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    first, *hint = done.stderr.splitlines()
    assert first.startswith("llmfit: error: ") and named in first
    assert len(hint) <= 1 and "Traceback" not in done.stderr


def test_help_fits_80_columns_and_has_an_example(llmfit: Run) -> None:
    """The help says what counts as inside and what the exit codes are."""
    done = llmfit("reproduce", "--help", COLUMNS="80")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert "examples:" in done.stdout and "Exit code: 0 when every figure is inside" in done.stdout


@pytest.mark.slow
def test_a_comparison_and_its_reproduction(llmfit: Run, tmp_path: Path) -> None:
    """compare's JSON goes into reproduce; the exit code says what the table says."""
    words = ("--backends", "sdpa", "--no-eval", "--prompt-tokens", "16", "--new-tokens", "8")
    out, kept = tmp_path / "result.json", ("--runs-dir", str(tmp_path / "runs"))
    done = llmfit("compare", *words, *kept, "--format", "json", "--out", str(out), timeout_s=300)
    assert done.returncode == 0, done.stderr
    table = llmfit("reproduce", str(out), *kept, COLUMNS="80", timeout_s=300)
    inside = table.returncode == 0
    assert table.returncode in (0, 1), table.stderr
    assert ("OUTSIDE" in table.stdout) is not inside
    assert ("All 4 figures" in table.stdout) is inside
    assert "decode tokens/s" in table.stdout and "peak memory" in table.stdout
    assert max(map(len, table.stdout.splitlines())) <= 80
    assert table.stderr.startswith("[1/1] BF16 + SDPA …\n      ok · ")

    record = json.loads(out.read_text())
    rate = record["rows"][0]["decode"]["tokens_per_s"]
    rate.update(median=1e6, low=0.9e6, high=1.1e6)
    out.write_text(json.dumps(record))
    edited = llmfit(
        "reproduce", str(out), *kept, "--format", "json", "--quiet", COLUMNS="80", timeout_s=300
    )
    assert edited.returncode == 1 and edited.stderr == ""
    answer = json.loads(edited.stdout)
    assert next(iter(answer)) == "schema_version" and answer["inside"] is False
    figures = {figure["name"]: figure for figure in answer["rows"][0]["figures"]}
    assert figures["decode.tokens_per_s"]["inside"] is False
    assert figures["decode.tokens_per_s"]["recorded"] == 1e6
