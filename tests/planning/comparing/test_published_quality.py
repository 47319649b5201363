"""What formats cost by publication, against the published figures themselves."""

from __future__ import annotations

import csv
from pathlib import Path

from llmfit.backends.registry import BACKENDS
from llmfit.planning.comparing.published_quality import DEFAULT_TYPE, published_cost
from llmfit.quantize.gguf import FILE_TYPES


def test_every_row_of_the_table_has_a_cost() -> None:
    """Each backend and file type of GGUF, but for what nobody published with a baseline."""
    for backend in BACKENDS:
        assert (published_cost(backend) is None) == (backend in ("stored", "int4wo", "hqq", "onnx"))
    for file_type in FILE_TYPES:
        cost = published_cost(f"gguf:{file_type}")
        assert cost is not None and 0 <= cost.low <= cost.high
    assert published_cost("gguf") == published_cost(f"gguf:{DEFAULT_TYPE}")
    assert published_cost("gguf-gpu:q8_0") == published_cost("gguf:q8_0")
    assert published_cost("gguf:unheard_of") is None


def test_ranges_hold_the_published_figures(shared_data: Path) -> None:
    """Every perplexity of the reference file, as a rise over its own baseline, is in the range."""
    ids = {
        "gptq-int4-g128": ("gptq",),
        "nf4": ("nf4",),
        "int8-weight-only": ("int8", "int8wo"),
        "fp8-rowwise": ("fp8",),
    }
    checked = set()
    with (shared_data / "published_quality.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            method = row["method"]
            for backend in ids.get(method, (method.lower().replace("gguf-", "gguf:"),)):
                cost = published_cost(backend)
                if cost is None or row["metric"] == "kld":
                    continue
                rise = float(row["value"]) / float(row["baseline_value"]) - 1
                assert cost.low - 1e-6 <= rise <= cost.high + 1e-6, (method, rise)
                checked.add(backend)
    known = {"gguf:q4_k_m", "gguf:q2_k", "gguf:q3_k_m", "gptq", "nf4", "int8", "int8wo", "fp8"}
    assert known <= checked
