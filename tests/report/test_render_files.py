"""Markdown, CSV and JSON: nothing escapes its cell, nothing is rounded, everything reads back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO

import pytest

from llmfit.records import Comparison, MemoryPrediction, TaskMetric, TaskResult, from_json
from llmfit.report import render
from llmfit.report._text import in_markdown
from llmfit.testing import make_comparison, make_model, make_record

NASTY = "a|b\n<script>*x*_y_`z`[l](u)\x1b[0m"


def cells(line: str) -> list[str]:
    """Split a markdown table line at its unescaped bars."""
    return line.replace("\\|", "\0").strip("|").split("|")


def test_markdown_cells_cannot_break_the_table() -> None:
    """Bars, line breaks, HTML and markup in text from outside stay inside their cell."""
    rows = [make_record("bf16"), make_record("nf4", label=NASTY, notes=(NASTY,))]
    text = render(make_comparison(rows, model=make_model(name=NASTY)), "md")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({len(cells(line)) for line in table}) == 1
    assert "\x1b" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_markdown_escapes_only_what_means_something() -> None:
    """Words with underscores stay readable; emphasis and links are defused."""
    assert in_markdown("GGUF Q4_K_M acc_norm") == "GGUF Q4_K_M acc_norm"
    assert in_markdown("_a_ *b* [c](d) <e> &amp;") == r"\_a\_ \*b\* \[c\](d) \<e\> &amp;amp;"


def test_csv_keeps_full_precision_and_reads_back() -> None:
    """One line per row; figures are unrounded base units, unknowns are empty fields."""
    row = replace(make_record("nf4", tokens_per_s=41.23456789), kl_divergence=None)
    lines = list(csv.DictReader(StringIO(render(make_comparison([row]), "csv"))))
    assert len(lines) == 1
    assert float(lines[0]["decode_tokens_per_s_median"]) == 41.23456789
    assert int(lines[0]["memory_peak_bytes"]) == 8 * 10**9
    assert float(lines[0]["hellaswag_acc_norm"]) == 0.8
    assert lines[0]["kl_divergence"] == "" and lines[0]["reason"] == ""
    assert lines[0]["pick"] == "true"


def test_csv_tells_what_of_a_prediction_the_peak_does_not_count() -> None:
    """Interpreter and libraries: with them left out the columns say the error that is told."""
    row = make_record("nf4", peak_gb=8)
    parts = MemoryPrediction(
        weights_bytes=7 * 10**9, kv_cache_bytes=10**9, activation_bytes=10**8,
        runtime_bytes=5 * 10**8, total_bytes=86 * 10**8,
    )  # fmt: skip
    assert row.memory is not None
    memory = replace(
        row.memory, predicted=parts, predicted_bytes=parts.total_bytes, error_pct=100 / 80
    )
    (line,) = csv.DictReader(
        StringIO(render(make_comparison([replace(row, memory=memory)]), "csv"))
    )
    names = ("memory_predicted_bytes", "memory_predicted_runtime_bytes", "memory_peak_bytes")
    predicted, runtime, peak = (int(line[name]) for name in names)
    error = 100 * (predicted - runtime - peak) / peak
    assert error == pytest.approx(float(line["memory_error_pct"]))


def test_csv_has_intervals_differences_and_every_metric() -> None:
    """Intervals, paired differences and each task's metrics stand unrounded beside the means."""
    metrics = (
        TaskMetric(name="exact_match", filter="strict-match", value=0.123456789, stderr=0.01),
        TaskMetric(name="exact_match", filter="flexible-extract", value=0.2, stderr=0.02),
        TaskMetric(name="acc", filter="none", value=0.3),
    )
    task = TaskResult(task="gsm8k", version="3", n=100, num_fewshot=5, metrics=metrics)
    rows = [
        make_record("bf16"),
        make_record("nf4", perplexity=6.47, kl_divergence=0.0312, tasks=(task,)),
    ]
    bf16, nf4 = csv.DictReader(StringIO(render(make_comparison(rows), "csv")))
    assert float(nf4["gsm8k/exact_match,strict-match"]) == 0.123456789
    assert float(nf4["gsm8k/exact_match_stderr,flexible-extract"]) == 0.02
    assert nf4["gsm8k/acc"] == "0.3" and nf4["gsm8k/acc_stderr"] == "" == bf16["gsm8k/acc"]
    assert nf4["difference_from"] == "bf16" and bf16["difference_from"] == ""
    change = float(nf4["perplexity_token_difference"])
    assert change == pytest.approx(0.33, rel=1e-6)
    low, high = (float(nf4[f"perplexity_token_difference_{end}"]) for end in ("low", "high"))
    assert low < change < high
    assert nf4["perplexity_token_difference_tie"] == "false"
    assert nf4["hellaswag_acc_norm_difference_tie"] == "true"
    assert float(nf4["hellaswag_acc_norm_difference_p"]) == 1.0
    assert float(nf4["perplexity_token_low"]) < 6.47 < float(nf4["perplexity_token_high"])
    assert float(nf4["kl_divergence"]) == 0.0312 == float(nf4["kl_divergence_p99"]) / 8


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n="])
def test_csv_formulas_are_neutralised(start: str) -> None:
    """No field begins with a character that makes a spreadsheet run it."""
    text = f"{start}HYPERLINK(1)"
    row = make_record("nf4", label=text, notes=(text,))
    record = next(csv.DictReader(StringIO(render(make_comparison([row]), "csv"))))
    for key in ("label", "notes"):
        assert record[key][0] not in "=+-@\t\r\n"
        assert "HYPERLINK(1)" in record[key]


def test_csv_quotes_separators() -> None:
    """Commas, quotes and line breaks in a field do not move the next one."""
    row = make_record("nf4", reason='a,"b"\nc')
    record = next(csv.DictReader(StringIO(render(make_comparison([row]), "csv"))))
    assert record["reason"] == 'a,"b"\nc' and record["device"] == "cuda"


def test_json_is_the_record() -> None:
    """JSON holds the whole comparison, schema_version first, and reads back equal."""
    comparison = make_comparison([make_record("bf16"), make_record("nf4", tokens_per_s=60)])
    text = render(comparison, "json")
    assert from_json(Comparison, text) == comparison
    assert next(iter(json.loads(text))) == "schema_version"
    assert json.loads(text)["rows"][0]["kl_divergence"] is None


def test_json_has_the_promised_paths() -> None:
    """The keys that scripts rely on are where the documentation says."""
    data = json.loads(render(make_comparison([make_record("nf4")]), "json"))
    row = data["rows"][0]
    assert set(row["decode"]["tokens_per_s"]) == {"median", "low", "high", "samples"}
    assert {"acc", "acc_norm", "stderr", "n"} <= set(row["hellaswag"])
    assert {"token", "word", "protocol"} <= set(row["perplexity"])
    assert {"predicted_bytes", "peak_bytes", "peak_ram_bytes", "error_pct"} <= set(row["memory"])
    assert set(data["verdict"]) >= {"backend", "reasons", "rejected"}
    assert {"limit_tokens_per_s", "fraction"} == set(row["roofline"])
