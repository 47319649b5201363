"""Gradient accumulation: a batch in parts, whose gradients add up before the optimizer steps.

    batch of 16 ─► 5 micro-batches of 3 and one of 1 ─► Σ loss of tokens ÷ tokens of the batch
                                                          └ backward each ─► one optimizer step

A language model's loss is a mean over tokens. Parts seldom hold equally many, so each must be
weighted by its tokens: the mean of their means is the loss of another batch.

    sizes ─► batches, norms ─► measuring ─► showing, judging ─► the result

``batches`` cuts a batch and adds up its parts' gradients; ``norms`` does it through batch norm and
layer norm; ``measuring`` compares and times each size of parts, ``Found``; ``showing`` makes a
table and plots of it, ``judging`` checks and findings.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from llmfit.studies.accumulation.judging import checks, findings
from llmfit.studies.accumulation.measuring import DEFAULT, REFERENCE, Sizes, measure
from llmfit.studies.accumulation.showing import notes, plots, table
from llmfit.studies.base import StudyContext
from llmfit.study_records import StudyResult

TITLE = "Gradient accumulation"
QUESTION = (
    "Is a batch in parts the same as a whole one, and what memory and time does each part save?"
)


def run(context: StudyContext) -> StudyResult:
    """Run the study on the context's device."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes."""
    found = measure(context, sizes)
    return StudyResult(
        study="accumulation",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={
            **asdict(replace(sizes, micro_batches=())),
            "micro_batches": ", ".join(map(str, sizes.micro_batches)),
            "predicted_tokens": found.predicted_tokens,
            "dtype": "float32",
            "optimizer": "AdamW",
        },
        tables=(table(found),),
        plots=plots(found),
        checks=checks(found),
        findings=findings(found),
        notes=notes(sizes),
        benchmarks=tuple(m.result for m in found.measured if m.result is not None),
    )
