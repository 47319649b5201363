"""A study on a terminal, in Markdown, and as pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from llmfit.records import Environment, from_json
from llmfit.report.study import checks_held, render_study
from llmfit.study_records import (
    Cell,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)


@pytest.fixture
def result() -> StudyResult:
    """A study with every kind of cell, a row that did not run, and a check of each outcome."""
    return StudyResult(
        study="attention",
        title="Attention kernels",
        question="Which kernel is fastest, and what does it hold in memory?",
        preset="default",
        device="cpu",
        settings={"threads": 2},
        tables=(
            StudyTable(
                title="Sequence 512",
                head="kernel",
                columns=(
                    StudyColumn(key="time", head="time", unit="s"),
                    StudyColumn(key="memory", head="memory", unit="bytes"),
                    StudyColumn(key="gain", head="speed-up", unit="ratio"),
                    StudyColumn(key="theirs", head="speed-up", unit="ratio", under="RTX 4090"),
                    StudyColumn(key="error", head="largest error", unit="number", needed=False),
                    StudyColumn(key="saved", head="saved", unit="share", needed=False),
                ),
                rows=(
                    StudyRow(
                        name="standard",
                        cells={
                            "time": Cell(value=0.002, low=0.0019, high=0.0021),
                            "memory": Cell(value=48_000_000),
                            "gain": Cell(value=1.0),
                            "error": Cell(value=0.0),
                            "saved": Cell(value=0.0),
                        },
                    ),
                    StudyRow(
                        name="flash",
                        cells={
                            "time": Cell(value=0.0008),
                            "memory": Cell(value=12_000_000),
                            "gain": Cell(value=2.5),
                            "theirs": Cell(value=2.65),
                            "error": Cell(value=3.1e-7),
                            "saved": Cell(value=0.75),
                        },
                    ),
                    StudyRow(name="cuDNN", status="unavailable", reason="only on CUDA"),
                    StudyRow(name="efficient", status="unavailable", reason="only on CUDA"),
                ),
            ),
        ),
        plots=(
            StudyPlot(
                title="Time <ms>",
                kind="lines",
                x_label="tokens",
                y_label="s",
                series=(
                    Series(name="flash", x=(512.0, 1024.0), y=(0.001, None)),
                    Series(name="RTX 4090", x=(512.0, 1024.0), y=(0.002, 0.004), reference=True),
                ),
                log_x=True,
                log_y=True,
            ),
            StudyPlot(
                title="Memory",
                kind="bars",
                x_label="kernel",
                y_label="MB",
                series=(Series(name="here", x=("standard", "flash"), y=(48.0, 12.0)),),
            ),
        ),
        checks=(
            StudyCheck(name="errors", holds=True, detail="at most 3.1e-7"),
            StudyCheck(name="exponent", holds=False, detail="1.4 instead of 2"),
            StudyCheck(name="flash-attn", holds=None, detail="not installed"),
        ),
        findings=("flash is 2.5 times as fast.",),
        reference="RTX 4090, FP16",
        seconds=12.0,
        environment=Environment(
            platform="Linux", python="3.11", cpu="EPYC", cpu_cores=2, ram_bytes=None
        ),
    )


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_wider_than_the_terminal(result: StudyResult, width: int) -> None:
    """Columns that may go are left out on a narrow terminal, which says how to see them."""
    text = render_study(result, "table", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "flash" in text and "800 µs" in text and "12.0 MB" in text


def test_what_is_left_out_is_said(result: StudyResult) -> None:
    """At 60 columns the error's column is gone; at 160 it is there, with intervals."""
    narrow, wide = (render_study(result, "table", width=width) for width in (60, 160))
    assert "3.10e-7" not in narrow and "All columns: a terminal" in narrow
    assert "3.10e-7" in wide and "75.0 %" in wide and "2.00 ms ±5 %" in wide
    assert "All columns" not in wide


def test_rows_that_did_not_run_share_a_footnote(result: StudyResult) -> None:
    """The same reason stands once, under the sign of both rows."""
    text = render_study(result, "table", width=100)
    assert text.count("only on CUDA") == 1
    assert "cuDNN ¹" in text and "efficient ¹" in text


def test_checks_show_what_holds_what_does_not_and_what_was_not_tried(result: StudyResult) -> None:
    """✓, ✗ and – with what was seen; only those tried are counted."""
    text = render_study(result, "table", width=100)
    assert "✓ errors: at most 3.1e-7" in text
    assert "✗ exponent: 1.4 instead of 2" in text
    assert "– flash-attn: not installed" in text
    assert checks_held(result) == "1 of 2"


def test_markdown_holds_every_column_and_escapes(result: StudyResult) -> None:
    """Each line of the table has as many cells as its head."""
    text = render_study(result, "md")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {8}
    assert "3.10e-7" in text


def test_json_reads_back(result: StudyResult) -> None:
    """The JSON is the record."""
    assert from_json(StudyResult, render_study(result, "json")) == result


@pytest.mark.slow
def test_the_figure_is_a_picture_and_text_that_can_be_searched(
    result: StudyResult, tmp_path: Path
) -> None:
    """PNG by its signature; the SVG parses, and holds titles and names of series as text."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from llmfit.report.plots import draw

    files = [tmp_path / "a.png", tmp_path / "a.svg"]
    draw(result, files)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    svg = ET.fromstring(files[1].read_text(encoding="utf-8"))
    words = "".join(svg.itertext())
    for word in ("Time <ms>", "RTX 4090", "standard", "tokens", "Attention kernels"):
        assert word in words
    before = files[1].read_bytes()
    draw(result, files)
    assert files[1].read_bytes() == before  # the same figure is the same file
