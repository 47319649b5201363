"""Gradient checkpointing: activations thrown away in the forward pass, made again in the backward.

    off:        every layer keeps what its backward needs
    on:         a layer keeps its input x: [B, T, C] and is run again (non-reentrant)
    selective:  a layer keeps x and its matrix products; the cheap rest is run again

What a step keeps is counted tensor by tensor, beside its peak in the allocator.

    sizes ─► subjects ─► measuring ─► showing, judging ─► the result

``subjects`` are two models and their ways of running layers; ``measuring`` counts, compares and
times each way, ``Found``; ``showing`` makes a table and plots of it, ``judging`` checks and
findings.
"""

from __future__ import annotations

from dataclasses import asdict

from llmfit.studies.base import StudyContext
from llmfit.studies.checkpointing.judging import checks, findings, flop_checks
from llmfit.studies.checkpointing.measuring import DEFAULT, REFERENCE, Sizes, measure
from llmfit.studies.checkpointing.showing import notes, plots, table
from llmfit.studies.reference import CHECKPOINTING_OF
from llmfit.study_records import StudyResult

TITLE = "Gradient checkpointing"
QUESTION = (
    "How much memory does recomputing activations save in training, and what time does it cost?"
)


def run(context: StudyContext) -> StudyResult:
    """Run the study on the context's device."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes."""
    own, library = measure(context, sizes)
    return StudyResult(
        study="checkpointing",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={**asdict(sizes), "dtype": "float32", "optimizer": "AdamW"},
        tables=(table(own, published=True), table(library, published=False)),
        plots=plots(own),
        checks=(*checks(own), *flop_checks(own, sizes), *checks(library)),
        findings=(*findings(own, published=True), *findings(library)),
        reference=(
            f"{CHECKPOINTING_OF}. Width, vocabulary, precision and optimizer of it are not "
            "published: compare ratios, not bytes or seconds"
        ),
        notes=notes(sizes),
        benchmarks=tuple(m.result for m in (*own.modes, *library.modes) if m.result is not None),
    )
