"""Every technique of the table on one small model: memory saved, speed, accuracy lost.

    embedded model ─┬► running: prefill, passes, generation ─┐          ┌► showing: tables, plots
                    ├► training: steps, QLoRA ───────────────┼► Found ─┤
                    └► models: formats, distilled, pruned ───┘          └► judging: findings

Each is held against its own baseline, measured in turns with it, and against the range that is
expected of it. ``measuring`` has each technique measured; ``base`` has the sizes and what the
measurements share; ``qlora``, ``distillation`` and ``pruning`` make the models; ``found`` is what
was found, and whether that is inside its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from llmfit.studies.base import StudyContext
from llmfit.studies.reference import TECHNIQUES_OF
from llmfit.studies.techniques.base import DEFAULT, REFERENCE, Sizes
from llmfit.studies.techniques.found import Found
from llmfit.studies.techniques.judging import findings
from llmfit.studies.techniques.measuring import EXPECTED, measure_all
from llmfit.studies.techniques.qlora import EXPECTED_OF
from llmfit.studies.techniques.showing import (
    NOTES,
    absolute_table,
    details_table,
    main_table,
    plots,
)
from llmfit.study_records import StudyResult

TITLE = "Optimisation techniques on a small language model"
QUESTION = "What does each technique save and cost, and is that what is expected of it?"


def run(context: StudyContext) -> StudyResult:
    """See ``Study.run``. Raises UsageError for options of distillation that cannot be meant."""
    import torch

    torch.manual_seed(context.seed)
    sizes = REFERENCE if context.preset == "reference" else DEFAULT
    with ExitStack() as stack:
        folder = context.out or stack.enter_context(TemporaryDirectory(prefix="llmfit-study-"))
        found = measure_all(context, sizes, Path(folder))
    return study(context, sizes, found)


def study(context: StudyContext, sizes: Sizes, found: Sequence[Found]) -> StudyResult:
    """What was found as tables, plots and findings."""
    import torch

    kept = () if context.out is None else tuple(f.artifact for f in found if f.artifact)
    options = context.distilling
    return StudyResult(
        study="techniques",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={
            **asdict(sizes),
            "temperature": options.temperature,
            "mixing": options.mixing,
            "seed": context.seed,
            "threads": torch.get_num_threads(),
        },
        tables=(main_table(found, EXPECTED), absolute_table(found), details_table(found)),
        plots=plots(found, EXPECTED),
        checks=tuple(check for each in found for check in each.checks),
        findings=findings(found, EXPECTED),
        reference=f"{TECHNIQUES_OF}; {EXPECTED_OF}",
        notes=(*NOTES, *(note for each in found for note in each.notes)),
        benchmarks=tuple(result for each in found for result in each.benchmarks),
        artifacts=kept,
    )
