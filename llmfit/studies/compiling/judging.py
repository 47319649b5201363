"""What is judged: measured ways and counted cases ─► checks, findings and notes."""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.device.execution import TorchDevice
from llmfit.studies.compiling.counting import KnownCase
from llmfit.studies.compiling.jobs import Job, is_bf16
from llmfit.studies.compiling.measuring import EAGER, Compiled, CompilerStart, Measured, runs_to_pay
from llmfit.studies.words import takes
from llmfit.study_records import StudyCheck
from llmfit.units import format_seconds

FP32_ERROR, BF16_ERROR = 1e-3, 0.16
"""Largest relative error (Euclidean norm) of outputs. A choice: far above what another order of
additions does (1e-6), and far below what a wrong kernel does; BF16's is 20 steps of its numbers."""


# ---------------------------------------------------------------- checks


def output_checks(measured: Measured) -> tuple[StudyCheck, ...]:
    """Compiled outputs are eager's."""
    return tuple(
        _output_check(measured.job, way.compiled)
        for way in measured.ways
        if way.compiled is not None
    )


def _output_check(job: Job, compiled: Compiled) -> StudyCheck:
    name = f"{job.name}, {compiled.way}: output is eager's"
    if compiled.error is None:
        return StudyCheck(name=name, holds=None, detail=compiled.reason or "not run")
    allowed = BF16_ERROR if is_bf16(compiled.way) else FP32_ERROR
    return StudyCheck(
        name=name,
        holds=compiled.error <= allowed,
        detail=f"relative error {compiled.error:.1e}, {allowed:.1e} allowed",
    )


def counter_checks(cases: Sequence[KnownCase]) -> tuple[StudyCheck, ...]:
    """The counters say what is known beforehand, and breaks are those that torch explains."""
    return tuple(
        StudyCheck(
            name=f"counters are right: {case.name}",
            holds=(case.found.graphs, case.found.breaks, case.found.recompiles) == case.expected
            and case.explained == case.expected[1],
            detail=f"{case.found.graphs} graphs, {case.found.breaks} breaks, "
            f"{case.found.recompiles} recompiles; torch._dynamo.explain says {case.explained} "
            "breaks",
        )
        for case in cases
    )


# ---------------------------------------------------------------- findings


def findings(measured: Measured) -> tuple[str, ...]:
    """Speed-up, compile time and break-even of each mode."""
    return tuple(
        f"The {measured.job.name} compiled in {way.name} mode {takes(way.speedup, EAGER)}; "
        f"compiling took {format_seconds(way.compile_s)}, {_pays(runs_to_pay(measured, way))}."
        for way in measured.ways
        if way.speedup is not None and way.compile_s is not None
    )


def _pays(runs: int | None) -> str:
    if runs is None:
        return "with no gain to pay it back"
    return f"paid after {runs:,} run{'' if runs == 1 else 's'}"


def notes(device: TorchDevice, start: CompilerStart) -> tuple[str, ...]:
    """What the device means for the modes, and what was counted apart."""
    found = []
    if start.reason is not None:
        found.append(f"Nothing can be compiled here: {start.reason}")
    elif start.seconds is not None:
        found.append(
            f"The first use of the compiler took {format_seconds(start.seconds)}, for one "
            "operation; that is in no mode's compile time."
        )
    if device != "cuda":
        found.append(
            f"reduce-overhead replays graphs of a CUDA GPU; on {device} it compiles as default "
            "does, and max-autotune does not use them either."
        )
    return tuple(found)
