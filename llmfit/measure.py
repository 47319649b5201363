"""Timing of one loaded model under one workload.

    for warm-up and each repeat:   mark ─ prefill ─ mark ─ step ─ mark ─ step ─ mark …
                                        └ ttft          └ step latencies

Decode rate is defined once, here: batch × (new_tokens − 1) ÷ seconds after the first token. The
first token belongs to prefill. Marks are CUDA events on a GPU, so that nothing waits for the
host between steps, but for engines whose steps end on the host (``Decoder.on_host_clock``); the
clock starts and stops on an idle device.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from llmfit.backends.base import LoadedModel, Progress, no_progress
from llmfit.decode.base import Decoder
from llmfit.device.energy import EnergyMeter, energy_meter
from llmfit.device.execution import Marks
from llmfit.errors import UsageError
from llmfit.records import (
    Decode,
    Device,
    Energy,
    Measurement,
    ModelSpec,
    Prefill,
    Workload,
)
from llmfit.reliability import measurement_warnings
from llmfit.stats import sampled
from llmfit.timing import latency, timed


def random_prompts(workload: Workload, vocab_size: int, seed: int) -> list[list[int]]:
    """``batch`` prompts of uniformly random token ids: speed does not depend on which they are."""
    rng = random.Random(seed)
    return [
        [rng.randrange(vocab_size) for _ in range(workload.prompt_tokens)]
        for _ in range(workload.batch)
    ]


_LEAST = {"prompt_tokens": 1, "batch": 1, "repeats": 1, "warmup": 0, "prefill_chunk": 1}


def check_workload(workload: Workload, context_length: int) -> None:
    """Raise UsageError where the workload cannot be run or timed on this model."""
    for name, least in _LEAST.items():
        value = getattr(workload, name)
        if value is not None and value < least:
            raise UsageError(f"{name} must be {least} or more, not {value}.")
    if workload.new_tokens < 2:
        raise UsageError(
            f"{workload.new_tokens} new tokens leave no decode step to time.",
            hint="--new-tokens 2 or more",
        )
    total = workload.prompt_tokens + workload.new_tokens
    if total > context_length:
        raise UsageError(
            f"{workload.prompt_tokens} prompt + {workload.new_tokens} new tokens exceed the "
            f"model's context of {context_length}.",
            hint="fewer --prompt-tokens or --new-tokens",
        )


def fit_workload(workload: Workload, context_length: int) -> Workload:
    """``workload`` where it fits the model's context, else a shorter one that does.

    New tokens take at most a quarter of the context, and the prompt what is left.
    """
    if workload.prompt_tokens + workload.new_tokens <= context_length:
        return workload
    new_tokens = max(2, min(workload.new_tokens, context_length // 4))
    prompt_tokens = max(1, min(workload.prompt_tokens, context_length - new_tokens))
    return replace(workload, prompt_tokens=prompt_tokens, new_tokens=new_tokens)


def settle_workload(
    workload: Workload | None, shorten: bool | None, spec: ModelSpec
) -> tuple[Workload, tuple[str, ...]]:
    """The workload to time, with a note where it is shorter than asked.

    ``shorten`` cuts what exceeds the model's context instead of refusing it; None does so where no
    ``workload`` is given. Raises UsageError.
    """
    asked = workload or Workload()
    may_shorten = workload is None if shorten is None else shorten
    context = spec.max_position_embeddings
    work = fit_workload(asked, context) if may_shorten else asked
    check_workload(work, context)
    if work == asked:
        return work, ()
    return work, (
        f"{work.prompt_tokens} prompt + {work.new_tokens} new tokens instead of "
        f"{asked.prompt_tokens} + {asked.new_tokens}: the model's context is {context}",
    )


def measure(
    model: LoadedModel,
    workload: Workload,
    *,
    device: Device,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Measurement:
    """Time prefill and decode: warm-ups first, then ``workload.repeats`` runs, all raw times kept.

    What puts the times in doubt, in the samples or on the machine, comes as ``warnings``.
    Raises UsageError where the workload exceeds the model's context.
    """
    check_workload(workload, model.context_length)
    prompts = random_prompts(workload, model.vocab_size, seed)
    capacity = workload.prompt_tokens + workload.new_tokens
    decoder = model.decoder(
        batch=workload.batch, capacity=capacity, prefill_chunk=workload.prefill_chunk
    )
    meter = energy_meter(device)
    turn = count()

    def run(marks: Marks) -> None:
        counting = meter if next(turn) >= workload.warmup else None
        _run_once(decoder, prompts, workload.new_tokens, marks, counting)

    try:
        times = timed(
            (run,),
            warmup=workload.warmup,
            repeats=workload.repeats,
            device=device,
            clock="cpu" if decoder.on_host_clock else None,
            progress=lambda done, total: progress("measure", done, total),
        )
        notes = decoder.notes
    finally:
        decoder.close()
    timing = _summarise(_without_reading(times.warm[0]), _without_reading(times.runs[0]), workload)
    warnings = measurement_warnings(timing.decode.tokens_per_s, times.before, times.after)
    tokens = workload.batch * (workload.new_tokens - 1) * workload.repeats
    return replace(timing, warnings=warnings, notes=notes, energy=_energy(meter, tokens))


def _run_once(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    marks: Marks,
    meter: EnergyMeter | None,
) -> None:
    """Mark the prefill, the reading of the energy, then each of ``new_tokens`` − 1 decode steps."""
    marks.mark()
    decoder.prefill(prompts)
    marks.mark()
    if meter is not None:
        meter.start()
    marks.mark()
    for _ in range(new_tokens - 1):
        decoder.step()
        marks.mark()
    if meter is not None:
        meter.stop()


def _without_reading(runs: Sequence[tuple[float, ...]]) -> tuple[tuple[float, ...], ...]:
    """The runs' times of prefill and steps, without the second, of reading the energy."""
    return tuple((run[0], *run[2:]) for run in runs)


def _energy(meter: EnergyMeter | None, tokens: int) -> Energy:
    """Joules a token of the decode steps of all timed runs."""
    if meter is None or meter.joules is None:
        return Energy()
    return Energy(joules_per_token=meter.joules / tokens, source=meter.source)


def _summarise(
    warm: Sequence[tuple[float, ...]], timed: Sequence[tuple[float, ...]], workload: Workload
) -> Measurement:
    steps = tuple(run[1:] for run in timed)
    new = workload.batch * (workload.new_tokens - 1)
    prompt = workload.batch * workload.prompt_tokens
    return Measurement(
        decode=Decode(
            tokens_per_s=sampled([new / sum(run) for run in steps]),
            step=latency(steps),
        ),
        prefill=Prefill(tokens_per_s=sampled([prompt / run[0] for run in timed])),
        ttft_s=sampled([run[0] for run in timed]),
        warmup_s=tuple(sum(run) for run in warm),
    )
