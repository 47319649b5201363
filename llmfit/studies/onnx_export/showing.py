"""``Found``, or why there is none ─► the tables and the plot: onnxruntime beside eager PyTorch."""

from __future__ import annotations

from pathlib import Path

from llmfit.benchmark import speedup
from llmfit.device.execution import TorchDevice
from llmfit.studies.base import cell, ratio_cell, share_of, time_cell
from llmfit.studies.onnx_export.measuring import RUNTIME, Found, NotRun, Ran
from llmfit.study_records import Series, StudyColumn, StudyPlot, StudyRow, StudyTable

_RUN_COLUMNS = (
    StudyColumn(key="prompt", head="prompt", unit="s"),
    StudyColumn(key="prompt_speed", head="speed", under="÷ eager", unit="ratio"),
    StudyColumn(key="step", head="step", unit="s"),
    StudyColumn(key="step_speed", head="speed", under="÷ eager", unit="ratio"),
    StudyColumn(key="tokens", head="tokens/s", unit="per_s"),
    StudyColumn(key="memory", head="memory", unit="bytes", needed=False),
)
_EXPORT_COLUMNS = (
    StudyColumn(key="seconds", head="export", unit="s"),
    StudyColumn(key="load", head="load", unit="s"),
    StudyColumn(key="file", head="file", unit="bytes"),
    StudyColumn(key="weights", head="weights", under="float32", unit="bytes"),
    StudyColumn(key="ratio", head="file", under="÷ weights", unit="ratio"),
    StudyColumn(key="nodes", head="nodes", unit="count"),
)


def tables(found: Found | NotRun) -> tuple[StudyTable, StudyTable]:
    """Time and memory of both ways of running, and the export; or rows with the reason."""
    if isinstance(found, NotRun):
        run_rows = [_not_run(RUNTIME, found)]
        export_row = _not_run("model.onnx", found)
    else:
        run_rows = [_run_row(way, found.eager) for way in found.ran]
        export_row = _export_row(found)
    return (
        StudyTable(
            title="Prompt and decode step on the CPU",
            head="runtime",
            columns=_RUN_COLUMNS,
            rows=tuple(run_rows),
        ),
        StudyTable(title="Export", head="graph", columns=_EXPORT_COLUMNS, rows=(export_row,)),
    )


def _not_run(name: str, why: NotRun) -> StudyRow:
    return StudyRow(name=name, status=why.status, reason=why.reason)


def _run_row(way: Ran, first: Ran) -> StudyRow:
    return StudyRow(
        name=way.name,
        cells={
            "prompt": time_cell(way.prompt),
            "prompt_speed": ratio_cell(speedup(first.prompt, way.prompt)),
            "step": time_cell(way.step),
            "step_speed": ratio_cell(speedup(first.step, way.step)),
            "tokens": cell(way.step.throughput_per_s.median),
            "memory": cell(way.memory_bytes),
        },
    )


def _export_row(found: Found) -> StudyRow:
    exported = found.exported
    return StudyRow(
        name=Path(exported.path).name,
        cells={
            "seconds": cell(exported.seconds),
            "load": cell(found.load_s),
            "file": cell(exported.file_bytes),
            "weights": cell(found.weights_bytes),
            "ratio": share_of(exported.file_bytes, found.weights_bytes),
            "nodes": cell(exported.nodes),
        },
    )


def plot(found: Found) -> StudyPlot:
    """Time of the prompt and of a step, a bar each way."""
    parts = ("prompt", "decode step")
    return StudyPlot(
        title="Time on the CPU",
        kind="bars",
        x_label="part of generation",
        y_label="s",
        series=tuple(
            Series(
                name=way.name,
                x=parts,
                y=(way.prompt.latency_s.median, way.step.latency_s.median),
            )
            for way in found.ran
        ),
    )


def notes(device: TorchDevice) -> tuple[str, ...]:
    """Where it ran, and what the memory is of."""
    elsewhere = (
        ()
        if device == "cpu"
        else (f"Run on the CPU, not on {device}: the study is of onnxruntime's CPU kernels.",)
    )
    return (
        *elsewhere,
        "The embedded model in float32, batch 1. Memory: what the process grew by, from loading "
        "(of eager PyTorch: a copy of the model) to the end of a short generation.",
    )
