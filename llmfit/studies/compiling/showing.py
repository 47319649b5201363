"""What is shown: measured ways and counted cases ─► tables and plots."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.studies.base import cell, ratio_cell, share_of, time_cell
from llmfit.studies.compiling.counting import KnownCase
from llmfit.studies.compiling.jobs import Job
from llmfit.studies.compiling.measuring import EAGER, FIRST_CALLS, Measured, Way, runs_to_pay
from llmfit.studies.compiling.sizes import BF16_DEFAULT
from llmfit.studies.reference import COMPILE
from llmfit.study_records import Cell, Series, StudyColumn, StudyPlot, StudyRow, StudyTable

# ---------------------------------------------------------------- tables


def time_table(measured: Measured) -> StudyTable:
    """Time of a call; for the ResNet the published speed-ups beside."""
    theirs = (
        (StudyColumn(key="theirs", head="speed-up", under="RTX 4090", unit="ratio"),)
        if measured.job.published
        else ()
    )
    notes = ("speed-up of RTX 4090: of ResNet-50, batch 32",) if theirs else ()
    return StudyTable(
        title=f"Inference of the {measured.job.name}, {_size(measured.job)}",
        head="mode",
        columns=(
            StudyColumn(key="time", head="time", unit="s"),
            StudyColumn(key="speedup", head="speed-up", under="ours", unit="ratio"),
            *theirs,
            StudyColumn(key="memory", head="memory", under="ratio", unit="ratio"),
            StudyColumn(key="error", head="error of", under="output", unit="number", needed=False),
        ),
        rows=tuple(_row(way, _time_cells(measured, way)) for way in measured.ways),
        notes=notes,
    )


def _time_cells(measured: Measured, way: Way) -> dict[str, Cell]:
    eager, result = measured.ways[0].result, way.result
    if result is None or eager is None:
        return {}
    return {
        "time": time_cell(result),
        "speedup": cell(1.0) if way.speedup is None else ratio_cell(way.speedup),
        "theirs": _published(way.name),
        "memory": share_of(result.peak_bytes, eager.peak_bytes),
        "error": cell(None if way.compiled is None else way.compiled.error),
    }


def _published(way: str) -> Cell:
    """The published speed-up; it is of one mode, which is taken for the default one."""
    names = {EAGER: "eager FP32", "default": "compiled FP32", BF16_DEFAULT: "compiled BF16"}
    if way not in names:
        return cell(None)
    return share_of(COMPILE["eager FP32"].seconds, COMPILE[names[way]].seconds)


def cost_table(measured: Measured) -> StudyTable:
    """What compiling takes, and when it has paid."""
    return StudyTable(
        title=f"Compiling the {measured.job.name}",
        head="mode",
        columns=(
            StudyColumn(key="compile", head="compile", under="time", unit="s"),
            StudyColumn(key="inside", head="torch's", under="own clock", unit="s", needed=False),
            StudyColumn(key="run", head="run", under="time", unit="s"),
            StudyColumn(key="pays", head="pays after", under="runs", unit="count"),
            StudyColumn(key="graphs", head="graphs", unit="count"),
            StudyColumn(key="breaks", head="graph", under="breaks", unit="count"),
            StudyColumn(key="recompiles", head="recompiles", unit="count"),
        ),
        rows=tuple(_row(way, _cost_cells(measured, way)) for way in measured.ways[1:]),
        notes=(
            f"compile time: what the first {FIRST_CALLS} calls took beyond as many later ones, "
            "with empty caches; torch's own clock runs inside its compiler",
            *(
                f"{way.name} pays after no known number of runs: no gain beyond the noise"
                for way in measured.ways[1:]
                if way.result is not None and runs_to_pay(measured, way) is None
            ),
        ),
    )


def _cost_cells(measured: Measured, way: Way) -> dict[str, Cell]:
    counts = None if way.compiled is None else way.compiled.counts
    if way.result is None or counts is None:
        return {}
    return {
        "compile": cell(way.compile_s),
        "inside": cell(counts.seconds),
        "run": time_cell(way.result),
        "pays": cell(runs_to_pay(measured, way)),
        "graphs": cell(counts.graphs),
        "breaks": cell(counts.breaks),
        "recompiles": cell(counts.recompiles),
    }


def counters_table(cases: Sequence[KnownCase]) -> StudyTable:
    """The counters on cases whose counts are known."""
    return StudyTable(
        title="The counters, where the counts are known beforehand",
        head="case",
        columns=(
            StudyColumn(key="graphs", head="graphs", unit="count"),
            StudyColumn(key="breaks", head="graph", under="breaks", unit="count"),
            StudyColumn(key="recompiles", head="recompiles", unit="count"),
            StudyColumn(key="expected", head="expected", unit="text"),
        ),
        rows=tuple(
            StudyRow(
                name=case.name,
                cells={
                    "graphs": cell(case.found.graphs),
                    "breaks": cell(case.found.breaks),
                    "recompiles": cell(case.found.recompiles),
                    "expected": cell(", ".join(map(str, case.expected))),
                },
            )
            for case in cases
        ),
    )


def _row(way: Way, cells: dict[str, Cell]) -> StudyRow:
    compiled = way.compiled
    return StudyRow(
        name=way.name,
        status="ok" if compiled is None else compiled.status,
        reason=None if compiled is None else compiled.reason,
        cells=cells,
    )


def _size(job: Job) -> str:
    return f"{job.items:,} {'tokens' if 'input_ids' in job.inputs else 'images'}"


# ---------------------------------------------------------------- plots


def total_plot(measured: Measured) -> StudyPlot:
    """Seconds after so many runs, compiling included: lines meet where it has paid."""
    runs = tuple(float(10**power) for power in range(6))
    return StudyPlot(
        title=f"{measured.job.name}: compiling and running",
        kind="lines",
        x_label="runs",
        y_label="seconds in all",
        log_x=True,
        log_y=True,
        series=tuple(
            Series(
                name=way.name,
                x=runs,
                y=tuple((way.compile_s or 0.0) + n * way.result.latency_s.median for n in runs),
            )
            for way in measured.ways
            if way.result is not None
        ),
    )
