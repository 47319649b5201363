"""FP32, FP16 and BF16: what each costs in training and inference, and where FP16 fails.

    same weights, same batches ─► steps of each precision in turns ─► time, memory, losses
    trained model ─► autocast, or weights cast once ─► time, memory, error of the logits
    small networks ─► gradients that vanish, activations that overflow

    sizes ─► tasks ─► measuring: amp trains, serving runs ─┬─► showing: tables, plots
                      limits: where FP16 fails ────────────┴─► judging: checks, findings, notes

ResNet-50 learns images made of a pattern a class and noise; the embedded language model learns the
calibration text. Losses are those of the very steps that are timed.
"""

from __future__ import annotations

from dataclasses import asdict

from llmfit.studies.base import StudyContext
from llmfit.studies.precision.judging import (
    inference_findings,
    limit_checks,
    limit_findings,
    logit_checks,
    loss_checks,
    notes,
    training_findings,
)
from llmfit.studies.precision.limits import (
    FORMATS,
    LIMIT_PRECISIONS,
    format_range,
    large_activation,
    small_gradients,
)
from llmfit.studies.precision.measuring import infer, train
from llmfit.studies.precision.showing import (
    formats_table,
    inference_table,
    large_table,
    loss_plot,
    small_plot,
    small_table,
    training_table,
)
from llmfit.studies.precision.sizes import DEFAULT, REFERENCE, PrecisionSizes
from llmfit.studies.precision.tasks import image_task, text_task
from llmfit.studies.reference import RESNET_TRAINING_OF
from llmfit.study_records import StudyResult

TITLE = "Precision: FP32, FP16 and BF16"
QUESTION = "What do 16-bit formats save in training and inference, and where does FP16 fail?"


def run(context: StudyContext) -> StudyResult:
    """Both models trained and run in each precision, then FP16's limits."""
    return run_sizes(context, REFERENCE if context.preset == "reference" else DEFAULT)


def run_sizes(context: StudyContext, sizes: PrecisionSizes) -> StudyResult:
    """The study with these sizes."""
    tasks = (image_task(sizes, context), text_task(sizes, context))
    trainings, inferences = [], []
    for task in tasks:
        training = train(context, task, sizes)
        trainings.append(training)
        inferences.append(infer(context, task, training, sizes))
    context.progress("FP16's limits", 0, 0)
    device = context.device
    small = [
        small_gradients(p, steps=sizes.limit_steps, seed=context.seed, device=device)
        for p in LIMIT_PRECISIONS
    ]
    large = [large_activation(p, device=device) for p in LIMIT_PRECISIONS]
    measured = [outcome for group in (*trainings, *inferences) for outcome in group.outcomes]
    return StudyResult(
        study="precision",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=device,
        settings={"seed": context.seed, **asdict(sizes)},
        tables=(
            formats_table([format_range(name) for name in FORMATS]),
            *map(training_table, trainings),
            *map(inference_table, inferences),
            small_table(small),
            large_table(large),
        ),
        plots=(*map(loss_plot, trainings), small_plot(small)),
        checks=(
            *(check for training in trainings for check in loss_checks(training)),
            *(check for inference in inferences for check in logit_checks(inference)),
            *limit_checks(small, large),
        ),
        findings=(
            *(line for training in trainings for line in training_findings(training)),
            *(line for inference in inferences for line in inference_findings(inference)),
            *limit_findings(small, large),
        ),
        reference=RESNET_TRAINING_OF,
        notes=notes(device, trainings),
        benchmarks=tuple(o.result for o in measured if o.result is not None),
    )
