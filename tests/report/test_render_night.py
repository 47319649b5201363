"""A report as Markdown and JUnit XML: read back by a parser of each."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from llmfit.report.junit import render_junit
from llmfit.report.night import render_report_markdown, summary
from llmfit.report.regressions import format_value, grouped
from llmfit.report.server import served_columns
from llmfit.testing import make_comparison, make_record, make_server
from llmfit.trend_records import (
    CellResult,
    NightResult,
    Observation,
    Regression,
    Report,
    Series,
    SeriesKey,
)

WORSE = Regression(
    key=SeriesKey(
        machine="lab",
        model="meta-llama/Llama-3.1-8B",
        backend="nf4",
        settings="s",
        metric="decode.tokens_per_s",
    ),
    label="nf4",
    before=40.0,
    after=30.0,
    change=-0.25,
    threshold=0.05,
    since_run="r4",
    since="2026-01-04",
    good_run="r3",
    causes=("driver 580 → 590 | <b>",),
)


def night_of(*cells: CellResult) -> NightResult:
    """A night with those cells."""
    return NightResult(
        session_id="n",
        title="Lab",
        machine="lab",
        started_at="2026-01-04",
        ended_at="2026-01-05",
        cells=cells,
        baseline="history",
    )


@pytest.fixture
def report() -> Report:
    """A comparison of three rows, one worse, one failed; a model that was not there."""
    failed = replace(
        make_record("int8", acc_norm=None, perplexity=None),
        status="failed",
        reason="bad \x1b[31m <kernel> & more",
        decode=None,
        memory=None,
    )
    absent = replace(failed, backend="awq", label="awq", status="unavailable", reason="no package")
    comparison = make_comparison([make_record("bf16"), make_record("nf4"), failed, absent])
    missing = CellResult(name="b", model="b", workload="", status="failed", reason="no folder 'b'")
    done = CellResult(name="a", model="a", workload="", status="done")
    return Report(
        title="Lab *nightly* <x>",
        made_at="2026-01-05T03:00:00",
        comparisons=(comparison,),
        series=(),
        regressions=(WORSE,),
        baseline="history",
        night=night_of(done, missing),
    )


def test_markdown_has_what_became_worse_first(report: Report) -> None:
    """Then what was not measured, then every comparison; texts from outside are text."""
    text = render_report_markdown(report)
    heads = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert heads[0] == r"# Lab \*nightly\* \<x\>"
    assert heads[1:] == [
        "## What became worse",
        "## What was not measured",
        "## meta-llama/Llama-3.1-8B",
    ]
    (row,) = [line for line in text.splitlines() if line.startswith("| decode tokens/s")]
    cells = re.split(r"(?<!\\)\|", row)[1:-1]
    assert len(cells) == 6 and r"\| \<b\>" in cells[5]
    assert "40.0 → 30.0 (−25.0 %)" in cells[3] and "r4 (good: r3)" in cells[4]
    assert "b: failed: no folder" in text


def test_markdown_fits_a_github_job_summary(report: Report) -> None:
    """At most 1 MiB: a night of 64 models."""
    many = replace(report, comparisons=report.comparisons * 64, regressions=(WORSE,) * 100)
    assert len(render_report_markdown(many).encode()) < 2**20


def test_junit_has_a_case_for_each_row(report: Report) -> None:
    """Worse and failed ones fail, what is unavailable is skipped, what is missing is an error."""
    root = ElementTree.fromstring(render_junit(report))
    suite, missing = root.findall("testsuite")
    outcome = {case.get("name"): [child.tag for child in case] for case in suite}
    assert outcome == {"bf16": [], "nf4": ["failure"], "int8": ["failure"], "awq": ["skipped"]}
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    assert missing.get("errors") == "1"
    failure = suite.find("testcase[@name='nf4']/failure")
    assert failure is not None and failure.get("message") == "decode tokens/s"
    assert str(failure.text).splitlines() == [
        "meta-llama/Llama-3.1-8B since r4: likely cause: driver 580 → 590 | <b>",
        "decode tokens/s, nf4: 40.0 → 30.0 (−25.0 %)",
    ]
    kernel = suite.find("testcase[@name='int8']/failure")
    assert kernel is not None and kernel.get("message") == r"bad \x1b[31m <kernel> & more"


def test_junit_fails_the_rows_of_the_run_that_is_worse(report: Report) -> None:
    """Another workload's or machine's row of the same format did not become worse."""
    (worse,) = report.comparisons
    other = replace(worse, run_id="another")
    known = replace(WORSE, newest_run=worse.run_id)
    text = render_junit(replace(report, comparisons=(worse, other), regressions=(known,)))
    suites = ElementTree.fromstring(text).findall("testsuite")
    failed = [suite.find("testcase[@name='nf4']/failure") is not None for suite in suites[:2]]
    assert failed == [True, False]


def test_junit_has_no_time_of_a_row_that_has_none(report: Report) -> None:
    """Unknown is not 0 seconds."""
    (comparison,) = report.comparisons
    rows = tuple(replace(row, total_s=None) for row in comparison.rows)
    text = render_junit(replace(report, comparisons=(replace(comparison, rows=rows),)))
    assert "time=" not in text and 'time="61.000"' in render_junit(report)


def test_a_server_stands_beside_its_own_machines_figures(report: Report) -> None:
    """Of one sequence; another machine's row of that format says nothing of it."""
    (comparison,) = report.comparisons
    key = replace(WORSE.key, machine="lab", backend="bf16", metric="decode.tokens_per_s")
    point = Observation(run_id=comparison.run_id, started_at="2026-01-04", value=40.0)
    series = Series(key=key, label="bf16", better="higher", points=(point,))
    model = comparison.model.name
    servers = tuple(
        make_server(name, model=model, backend="bf16", machine=name) for name in ("lab", "other")
    )
    full = replace(report, series=(series,), servers=servers)

    def alone(report: Report) -> list[str]:
        (column,) = [c for c in served_columns(report) if c.head == "without a server"]
        return list(column.cells)

    assert alone(full) == ["40.0", "–"]
    batched = replace(comparison, workload=replace(comparison.workload, batch=8))
    assert alone(replace(full, comparisons=(batched,))) == ["–", "–"]


def test_a_summary_is_one_sentence(report: Report) -> None:
    """What was found and what is missing."""
    assert summary(report) == "1 figure became worse; 1 of 2 comparisons were not done."
    assert summary(replace(report, night=None, regressions=())) == "Nothing became worse."
    assert summary(replace(report, night=None, regressions=(WORSE,) * 2)).startswith("2 figures")


def test_a_row_that_does_not_run_says_why() -> None:
    """And no figure is made up."""
    key = replace(WORSE.key, metric="status")
    lost = replace(WORSE, key=key, change=None, before=None, after=None, status="failed")
    (group,) = grouped([replace(lost, reason="no kernel", causes=())])
    assert group.lines == ("runs, nf4: failed: no kernel",) and "not known" in group.head


def test_figures_of_one_cause_stand_together() -> None:
    """Those that began with another run, or of another model, stand apart."""
    first, second = grouped([WORSE, replace(WORSE, since_run="r9"), replace(WORSE, label="awq")])
    assert [line.split(",")[1].strip()[:3] for line in first.lines] == ["nf4", "awq"]
    assert "since r9" in second.head and len(second.lines) == 1


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("memory.peak_bytes", 4.7e9, "4.70 GB"),
        ("ttft_s", 0.0123, "12.3 ms"),
        ("decode.tokens_per_s", 52.13, "52.1"),
        ("hellaswag.acc_norm", 0.816, "81.6 %"),
        ("perplexity.token", 6.1414, "6.14"),
        ("kl_divergence", 0.00123, "0.00123"),
        ("ttft_s", None, "–"),
    ],
)
def test_values_have_their_unit(metric: str, value: float | None, text: str) -> None:
    """By the metric's name."""
    assert format_value(metric, value) == text
