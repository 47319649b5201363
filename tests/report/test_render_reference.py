"""The published table beside ours, as people read it."""

from __future__ import annotations

import json

import pytest

from llmfit.planning.comparing.reference import RTX_3090, ReferenceComparison, beside
from llmfit.report.reference import render_reference
from llmfit.testing import make_comparison, make_record


@pytest.fixture
def found() -> ReferenceComparison:
    """One row measured on a CPU, one that failed, six that were not run."""
    return beside(
        make_comparison(
            [
                make_record("nf4", device="cpu", tokens_per_s=1.8, peak_gb=6.9, perplexity=12.94),
                make_record("gguf", device="cpu", status="failed", reason="\x1b[31mit\ndied"),
            ]
        ),
        RTX_3090,
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_holds_every_figure_and_fits(found: ReferenceComparison, width: int) -> None:
    """All eight rows with the table's four figures each, ours and the ratio, within the width."""
    text = render_reference(found, "table", width=width)
    assert max(map(len, text.splitlines())) <= width
    for label in (row.label for row in RTX_3090.rows):
        assert label in text
    for figure in ("38.0", "14.2", "82.1 %", "6.47", "1.80", "0.043×", "12.9", "2.00×"):
        assert figure in text, figure
    assert "Example CPU" in text
    assert "NVIDIA GeForce RTX 3090" in text


def test_missing_figures_have_their_reasons_below(found: ReferenceComparison) -> None:
    """Each different reason stands once, as a numbered line, on one line and without controls."""
    text = render_reference(found, "table", width=200)
    assert text.count("not among the rows that were run") == 1
    assert r"\x1b[31mit died" in text
    assert "\x1b" not in text


def test_markdown_has_a_column_for_each_of_ours_theirs_and_ratio(
    found: ReferenceComparison,
) -> None:
    """Every line of the table has thirteen cells; one row of ours reads as it was measured."""
    lines = render_reference(found, "md").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(RTX_3090.rows)
    assert {len(line.strip("|").split("|")) for line in table} == {13}
    (nf4,) = [line for line in table if line.startswith("| INT4 NF4")]
    assert "6.90 | 4.90 | 1.41× | 1.80 | 42.0 | 0.043×" in nf4


def test_json_has_the_plain_figures(found: ReferenceComparison) -> None:
    """Bytes and rates are unrounded, unknown is null."""
    rows = {row["backend"]: row for row in json.loads(render_reference(found, "json"))["rows"]}
    assert rows["nf4"]["memory_bytes"]["ours"] == 6_900_000_000
    assert rows["nf4"]["tokens_per_s"]["ratio"] == pytest.approx(1.8 / 42)
    assert rows["bf16"]["tokens_per_s"]["ours"] is None
    assert rows["bf16"]["tokens_per_s"]["missing"] == "not among the rows that were run"
