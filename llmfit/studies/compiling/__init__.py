"""torch.compile's modes: what a compiled call gains, what compiling costs, when that is paid back.

model ─► compile in each mode, caches empty ─► seconds, graphs, breaks, recompiles
      └► eager and all modes in turns ─► time of a call ─► runs until compiling has paid
a break on purpose, shapes that change ─► the counters are seen to count

sizes ─► jobs ─► measuring: compiles and times ─┬─► showing: tables, plots
                 counting: torch's counters ────┴─► judging: checks, findings, notes
"""

from __future__ import annotations

from dataclasses import asdict

from llmfit.studies.base import StudyContext
from llmfit.studies.compiling.counting import count_known_cases
from llmfit.studies.compiling.jobs import image_job, text_job
from llmfit.studies.compiling.judging import counter_checks, findings, notes, output_checks
from llmfit.studies.compiling.measuring import measure, start_of_compiler
from llmfit.studies.compiling.showing import cost_table, counters_table, time_table, total_plot
from llmfit.studies.compiling.sizes import DEFAULT, REFERENCE, CompileSizes
from llmfit.studies.reference import COMPILE_OF
from llmfit.study_records import StudyResult

TITLE = "torch.compile: what it gains and when it pays"
QUESTION = "How much faster is a compiled model, and after how many runs has compiling paid?"


def run(context: StudyContext) -> StudyResult:
    """Both models eager and in each mode, then the counters on cases whose counts are known."""
    return run_sizes(context, REFERENCE if context.preset == "reference" else DEFAULT)


def run_sizes(context: StudyContext, sizes: CompileSizes) -> StudyResult:
    """The study with these sizes."""
    device = context.device
    context.progress("start of the compiler", 0, 0)
    start = start_of_compiler(device)
    jobs = (text_job(sizes, device, context.seed), image_job(sizes, device, context.seed))
    groups = [measure(context, job, sizes, start.reason) for job in jobs]
    context.progress("counters", 0, 0)
    counted = count_known_cases(device)
    return StudyResult(
        study="compile",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=device,
        settings={
            "seed": context.seed,
            **{
                key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
                for key, value in asdict(sizes).items()
            },
        },
        tables=(*map(time_table, groups), *map(cost_table, groups), counters_table(counted)),
        plots=tuple(map(total_plot, groups)),
        checks=(
            *(each for group in groups for each in output_checks(group)),
            *counter_checks(counted),
        ),
        findings=tuple(line for group in groups for line in findings(group)),
        reference=COMPILE_OF,
        notes=notes(device, start),
        benchmarks=tuple(way.result for group in groups for way in group.ways if way.result),
    )
