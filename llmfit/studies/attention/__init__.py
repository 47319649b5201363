"""Attention with the whole N × N matrix in memory, against PyTorch's kernels, each by its name.

    q, k, v ─► trial (runs? fits? error in float64) ─► timed in turns ─► growth with the length

Memory is exact: queries, keys and values, and the peak of what a call allocates, its output too.

    kernels ─► measuring ─► Found ─┬► showing ─► tables, plots
                                   └► judging ─► checks, findings

kernels     attention by each kernel, and how far off its output is
measuring   the sizes; each kernel tried, then timed
growth_of   how a kernel's time and memory grow with the length
published   what the published figures say
showing     tables and plots
judging     checks and findings
"""

from __future__ import annotations

from llmfit.studies.attention.judging import checks, findings
from llmfit.studies.attention.measuring import (
    CHECKED_QUERIES,
    DEFAULT,
    REFERENCE,
    Sizes,
    measure,
)
from llmfit.studies.attention.published import about_published
from llmfit.studies.attention.showing import plots, tables
from llmfit.studies.base import StudyContext
from llmfit.studies.reference import ATTENTION_OF
from llmfit.study_records import StudyResult

TITLE = "Attention kernels"
QUESTION = "How much time and memory does each attention kernel save, and from which length on?"


def run(context: StudyContext) -> StudyResult:
    """Every kernel at every length: time, memory, error, and how they grow."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes."""
    found = measure(context, sizes)
    return StudyResult(
        study="attention",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings=sizes.settings(),
        tables=tables(found, sizes),
        plots=plots(found),
        checks=checks(found, sizes),
        findings=findings(found),
        reference=f"{ATTENTION_OF}; {about_published()}",
        notes=(
            "Memory is that of queries, keys and values with the peak of what a call allocates.",
            f"Errors are of up to {CHECKED_QUERIES} queries of each sequence, in all heads.",
        ),
        benchmarks=tuple(each.result for each in found if each.result is not None),
    )
