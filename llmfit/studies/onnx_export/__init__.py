"""ONNX: a model with its KV cache as one graph, run by onnxruntime on the CPU, against PyTorch.

    input_ids int64[B, T], past keys and values [B, kv_heads, P, head_dim] of each layer
        ─► graph ─► logits [B, T, V], keys and values [B, kv_heads, P + T, head_dim]

B, T and P are free: the prompt is the graph at P = 0, a decode step is the graph at T = 1.

    sizes ─► export ─► runners ─► comparing ─► measuring ─► showing, judging ─► the result

``export`` writes the graph; ``runners`` give both ways of running one face; ``comparing`` finds how
far their answers are apart; ``measuring`` times them and weighs them, ``Found``; ``showing`` makes
tables and a plot of it, ``judging`` checks and findings.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from llmfit.studies.base import StudyContext
from llmfit.studies.onnx_export.judging import checks, findings
from llmfit.studies.onnx_export.measuring import DEFAULT, REFERENCE, NotRun, Sizes, measure
from llmfit.studies.onnx_export.showing import notes, plot, tables
from llmfit.study_records import StudyResult

TITLE = "ONNX export"
QUESTION = (
    "Does the model exported with its KV cache answer the same under onnxruntime, and how fast?"
)


def run(context: StudyContext) -> StudyResult:
    """Run the study, on the CPU wherever it is."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes; where it cannot run, its rows have the reason."""
    found = measure(context, sizes)
    result = StudyResult(
        study="onnx",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device="cpu",
        settings={**asdict(sizes), "batch": 1, "dtype": "float32"},
        tables=tables(found),
        checks=checks(found),
        notes=notes(context.device),
    )
    if isinstance(found, NotRun):
        return result
    return replace(
        result,
        plots=(plot(found),),
        findings=findings(found),
        benchmarks=(*(way.prompt for way in found.ran), *(way.step for way in found.ran)),
        artifacts=() if context.out is None else (str(Path(found.exported.path).parent),),
    )
