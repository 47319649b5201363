"""Techniques that change the weights: formats, a distilled student, a pruned model; all scored.

llmfit.compare ─► rows ─► INT8, GPTQ, AWQ
teacher ─► distil, prune ─► folders ─► Benchmark, Deployer.evaluate ─► compare_quality
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import speedup
from llmfit.models import resolve
from llmfit.planning.comparing.differences import REFERENCE, compare_quality
from llmfit.records import (
    EvaluationSettings,
    QualityDifference,
    RunRecord,
    Sampled,
    Workload,
)
from llmfit.stats import overlap, percentile
from llmfit.studies.base import StudyContext
from llmfit.studies.techniques.base import Sizes, device_of, require_room, side, step_bytes
from llmfit.studies.techniques.distillation import distil
from llmfit.studies.techniques.found import Details, Found, Loss, Side
from llmfit.studies.techniques.pruning import prune
from llmfit.studies.techniques.running import FLASH, generation_case
from llmfit.studies.tuning import (
    HELD_OUT_TEXT,
    MODEL_FOLDER,
    QUESTIONS,
    TRAINING_TEXT,
    Draws,
    Training,
    load_model,
    save_model,
    sequences,
)
from llmfit.study_records import BenchmarkResult, Ratio, StudyCheck
from llmfit.units import format_number, format_percent

if TYPE_CHECKING:
    from torch import Tensor

DISTILLATION, PRUNING = "distillation", "structured pruning"
FORMATS = {"INT8": "int8", "INT4 GPTQ": "gptq", "INT4 AWQ": "awq"}
BASELINE = "sdpa"
"""The row that formats' speed is held against: as they, with fused attention."""


def formats(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """INT8, GPTQ and AWQ by ``llmfit.compare``, and the accuracy of fused attention."""
    from llmfit.comparison import compare

    rows = {
        row.backend: row
        for row in compare(
            None,
            backends=(REFERENCE, BASELINE, *FORMATS.values()),
            workload=Workload(
                prompt_tokens=sizes.prompt_tokens,
                new_tokens=sizes.new_tokens,
                repeats=sizes.repeats,
            ),
            evaluation=EvaluationSettings(limit=sizes.questions),
            device=device_of(context),
            threads=context.threads,
            seed=context.seed,
            cache_dir=context.cache_dir,
            last_resort=False,
        ).rows
    }
    fused = Found(
        technique=FLASH,
        lost=_question_loss(rows[BASELINE].difference, sizes.questions),
        notes=_baseline_notes("formats and flash attention", rows[REFERENCE]),
    )
    return (
        fused if rows[BASELINE].status == "ok" else _row_without(FLASH, rows[BASELINE]),
        *(format_found(name, rows[BASELINE], rows[row]) for name, row in FORMATS.items()),
    )


def format_found(name: str, baseline: RunRecord, row: RunRecord) -> Found:
    """A row of a comparison as a technique; one that did not run with its reason."""
    for each in (row, baseline):
        if each.status != "ok" or each.decode is None:
            return _row_without(name, each)
    assert row.decode is not None and baseline.decode is not None  # of rows that ran
    difference = row.difference
    change = None if difference is None else difference.perplexity_ratio
    return Found(
        technique=name,
        before=Side(
            name="bf16 weights, a token",
            seconds=1 / baseline.decode.tokens_per_s.median,
            bytes=baseline.weights_bytes,
        ),
        after=Side(name=name, seconds=1 / row.decode.tokens_per_s.median, bytes=row.weights_bytes),
        memory_of="weights",
        speed=rate_ratio(baseline.decode.tokens_per_s, row.decode.tokens_per_s),
        lost=_question_loss(difference, row.hellaswag.n if row.hellaswag else 0),
        details=Details(
            process_bytes=None if row.memory is None else row.memory.peak_bytes,
            perplexity=None if row.perplexity is None else row.perplexity.token,
            perplexity_change=None if change is None else change.mean,
        ),
    )


def _baseline_notes(what: str, whole: RunRecord) -> tuple[str, ...]:
    """What the baseline's own accuracy and perplexity are, where they are known."""
    if whole.hellaswag is None or whole.perplexity is None:
        return ()
    right = format_percent(whole.hellaswag.acc_norm)
    return (
        f"The baseline of {what}: {right} of {whole.hellaswag.n} questions right (acc_norm), "
        f"perplexity {format_number(whole.perplexity.token)}.",
    )


def _row_without(name: str, row: RunRecord) -> Found:
    reason = row.reason or f"{row.backend} gave no figures"
    return Found(
        technique=name, status=row.status if row.status != "ok" else "failed", reason=reason
    )


def rate_ratio(first: Sampled, other: Sampled) -> Ratio:
    """``other`` ÷ ``first`` of two rates, real by the rule of ``benchmark.speedup``."""
    value = other.median / first.median
    noise = max(
        (percentile(each.samples, 75) - percentile(each.samples, 25)) / each.median
        for each in (first, other)
    )
    return Ratio(
        value=value,
        low=other.low / first.high,
        high=other.high / first.low,
        real=not overlap(first, other) and max(value, 1 / value) - 1 > noise,
    )


def _question_loss(difference: QualityDifference | None, questions: int) -> Loss | None:
    if difference is None or difference.acc_norm is None:
        return None
    lost = difference.acc_norm
    return Loss(share=0.0 - lost.mean, of=f"{questions} questions", tie=lost.tie)


# ---------------------------------------------------------------- shallower models


def shallower(context: StudyContext, sizes: Sizes, folder: Path) -> tuple[Found, ...]:
    """A distilled and a pruned model: trained, saved, then timed and scored from their folders."""
    data = sequences(TRAINING_TEXT, tokens=sizes.tokens, seed=context.seed)
    teacher = load_model(context.device, in_float32=True)
    require_room(step_bytes(teacher, sizes.batch, sizes.tokens), context, "training a student")
    distilled = distilled_model(context, sizes, teacher, data, folder / "llmfit-distilled")
    pruned = pruned_model(context, sizes, teacher, data, folder / "llmfit-pruned")
    folders = [MODEL_FOLDER, *(Path(str(each.artifact)) for each in (distilled, pruned))]
    results = _timed_folders(context, sizes, folders)
    scores = [scored(place, context, sizes.tuned_questions) for place in folders]
    found = [
        _against_whole(each, results[0], result, scores[0], score)
        for each, result, score in zip((distilled, pruned), results[1:], scores[1:], strict=True)
    ]
    notes = _baseline_notes("distillation and pruning", scores[0])
    return (replace(found[0], benchmarks=tuple(results), notes=notes), found[1])


def distilled_model(
    context: StudyContext, sizes: Sizes, teacher: Any, data: Tensor, folder: Path
) -> Found:
    """Distil ``teacher`` into fewer layers and save the student."""
    training = Training(
        steps=sizes.distil_steps, batch=sizes.batch, tokens=sizes.tokens, learning_rate=1e-3
    )
    made = distil(
        teacher,
        Draws(data, sizes.batch, seed=context.seed, device=context.device),
        training,
        context.distilling,
        layers=sizes.student_layers,
        progress=partial(context.progress, DISTILLATION),
    )
    save_model(made.student, folder)
    return _made(DISTILLATION, made.student, made.layers, made.losses, folder)


def pruned_model(
    context: StudyContext, sizes: Sizes, model: Any, data: Tensor, folder: Path
) -> Found:
    """Leave out the layers that matter least, train shortly, and save what is left."""
    training = Training(
        steps=sizes.recovery_steps, batch=sizes.batch, tokens=sizes.tokens, learning_rate=5e-4
    )
    seen = [part.to(context.device) for part in data[: 2 * sizes.batch].split(sizes.batch)]
    made = prune(
        model,
        seen,
        Draws(data, sizes.batch, seed=context.seed, device=context.device),
        training,
        dropped=sizes.dropped_layers,
        progress=partial(context.progress, PRUNING),
    )
    save_model(made.model, folder)
    found = _made(PRUNING, made.model, made.layers, made.losses, folder)
    influences = ", ".join(format_number(each) for each in made.influences)
    return replace(
        found, notes=(f"Layers 0 to {len(made.influences) - 1} have influences of {influences}.",)
    )


def _made(
    name: str, model: Any, layers: Sequence[int], losses: Sequence[float], folder: Path
) -> Found:
    """What is known once a model is made: its layers, its losses, and that its folder reads."""
    edge = max(1, len(losses) // 10)
    first, last = sum(losses[:edge]) / edge, sum(losses[-edge:]) / edge
    parameters = sum(p.numel() for p in model.parameters())
    read = resolve(str(folder))
    same = read.num_hidden_layers == len(layers) and read.parameters == parameters
    return Found(
        technique=name,
        memory_of="weights",
        details=Details(
            layers=" ".join(map(str, layers)),
            parameters=parameters,
            trainable=1.0,
            steps=len(losses),
            first_loss=first,
            last_loss=last,
        ),
        checks=(
            StudyCheck(
                name=f"{name}: the loss falls",
                holds=last < first,
                detail=f"{first:.3f} in the first {edge} steps, {last:.3f} in the last",
            ),
            StudyCheck(
                name=f"{name}: the saved folder reads as the model that was made",
                holds=same,
                detail=f"{read.num_hidden_layers} layers, {read.parameters} parameters",
            ),
        ),
        artifact=str(folder),
    )


def _timed_folders(
    context: StudyContext, sizes: Sizes, folders: Sequence[Path]
) -> tuple[BenchmarkResult, ...]:
    """Generation by the models of ``folders``, in bf16 as stored, in turns."""
    prompt = sequences(TRAINING_TEXT, tokens=sizes.cache_prompt, seed=context.seed, most=1).to(
        context.device
    )
    cases = [
        generation_case(
            place.name, load_model(context.device, folder=place), prompt, sizes.cache_new
        )
        for place in folders
    ]
    return context.bench.run_in_turns(cases, n_warmup=1, n_runs=max(3, sizes.runs // 2))


def scored(folder: Path, context: StudyContext, questions: int) -> RunRecord:
    """The quality of a model's folder on the embedded questions and text.

    Raises TaskUnavailable where lm-eval is missing, and EvaluationError.
    """
    import torch

    from llmfit.deployer import Deployer

    settings = EvaluationSettings(
        hellaswag_file=str(QUESTIONS), text_file=str(HELD_OUT_TEXT), limit=questions
    )
    threads = torch.get_num_threads()
    device = device_of(context)
    deployer = Deployer(str(folder), backend=BASELINE, device=device, threads=threads)
    with redirect_stderr(StringIO()), deployer as deployed:  # lm-eval draws bars
        quality = deployed.evaluate(settings)
    return RunRecord(
        backend=BASELINE,
        label=folder.name,
        status="ok",
        device=device,
        hellaswag=quality.hellaswag,
        perplexity=quality.perplexity,
    )


def _against_whole(
    found: Found,
    before: BenchmarkResult,
    after: BenchmarkResult,
    whole: RunRecord,
    score: RunRecord,
) -> Found:
    difference = compare_quality(score, whole)
    change = None if difference is None else difference.perplexity_ratio
    assert found.details is not None  # a model was made
    return replace(
        found,
        before=side("the whole model, generation", before, before.model_bytes),
        after=side(found.technique, after, after.model_bytes),
        speed=speedup(before, after),
        lost=_question_loss(difference, score.hellaswag.n if score.hellaswag else 0),
        details=replace(
            found.details,
            perplexity=None if score.perplexity is None else score.perplexity.token,
            perplexity_change=None if change is None else change.mean,
        ),
    )
