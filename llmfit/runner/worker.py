"""The child process: Plan JSON on stdin, messages on a pipe, one RunRecord as the last of them.

    python -m llmfit.runner.worker CHANNEL_FD run|environment

A plan of tensor parallelism is run by processes of its own (``rank.py``), which this one starts.
Stdin stays open while the parent lives; when it closes, the worker ends at once, so no orphan
is left behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import BinaryIO, NoReturn

from llmfit.backends.base import Progress
from llmfit.backends.registry import added_packages, get_backend, split_id
from llmfit.child import die_with_parent
from llmfit.deployer import Deployer
from llmfit.device.allocations import peaks_allocated_bytes
from llmfit.device.energy import energy_meter
from llmfit.device.environment import environment
from llmfit.device.execution import is_out_of_memory, require_gpus
from llmfit.device.limits import limit_private_memory
from llmfit.device.memory import MemoryMeter, PeakMemory, private_bytes, resident_bytes
from llmfit.errors import DoesNotFit, LlmfitError, TaskUnavailable, first_line
from llmfit.evaluate.finite import check_logits
from llmfit.measure import random_prompts
from llmfit.parallel import group
from llmfit.records import Energy, Measurement, Memory, Plan, RunRecord, from_json
from llmfit.runner.messages import Message, Stage, encode
from llmfit.runner.shared import is_shared, run_shared
from llmfit.step_profile import profile_steps
from llmfit.units import format_bytes

_PROGRESS_INTERVAL_S = 0.1
_CHECKED_TOKENS = 16
"""Of the prompt, whose logits are looked at where nothing is scored: NaN spreads to all."""
_UNTOUCHED_BYTES = 2**29
"""Private memory that is mapped and never touched: stacks of threads, the C heap's arenas. Source:
70 MB in an idle worker with one thread; 8 MiB a thread's stack, glibc's arenas beside."""


def blank_record(plan: Plan) -> RunRecord:
    """The record of a row that has not been run: names and plan, no measurement."""
    backend = get_backend(plan.backend)
    return RunRecord(
        backend=plan.backend,
        label=backend.describe(split_id(plan.backend)[1]),
        status="failed",
        notes=plan.notes,
        device=plan.device,
        memory=Memory(
            device=plan.device,
            predicted=plan.predicted,
            predicted_bytes=plan.predicted.total_bytes if plan.predicted else None,
        ),
        predicted_tokens_per_s=plan.predicted_tokens_per_s,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=plan,
    )


def run_plan(plan: Plan, progress: Progress) -> RunRecord:
    """Load, time and score one format. An expected failure is a record with its reason.

    What was measured before a failure stays in the record. Where several processes are to share
    the model, they are started, each to do the same.
    """
    record = blank_record(plan)
    started = time.perf_counter()
    backend = get_backend(plan.backend)
    if is_shared(plan) and group.size() == 1:
        try:
            backend.require(plan)
            if plan.device == "cuda":
                require_gpus(plan.gpus)
        except LlmfitError as exc:
            return replace(record, reason=str(exc))
        return run_shared(plan, record, progress)
    _limit_memory(plan)
    progress("import", 0, 0)
    backend.prepare(plan)
    import_module("scipy.stats")  # judges the samples before the peak memory is read
    energy_meter(plan.device)  # what it imports is no part of the model's memory
    meter = MemoryMeter(plan.device, beyond_torch=backend.gpu_memory == "driver")
    deployer = Deployer.from_plan(plan)
    try:
        record = _load(record, deployer, meter, progress)
        record = _benchmark(record, deployer, meter, progress)
        too_much = _over_budget(record.memory, plan)
        if too_much is None:
            record = replace(_evaluate(record, deployer, progress), status="ok")
            _check_logits(record, deployer)
        else:
            record = replace(record, status="does_not_fit", reason=too_much)
    except DoesNotFit as exc:
        record = replace(record, status="does_not_fit", reason=str(exc))
    except LlmfitError as exc:
        record = _failed(record, plan, exc)
    except Exception as exc:  # noqa: BLE001 - a library's fault or ours costs no figure, and is told
        if is_out_of_memory(exc):
            record = _out_of_memory(record, plan, exc)
        else:
            record = _broken(record, exc)
    finally:
        deployer.close()
    return replace(record, total_s=time.perf_counter() - started)


def _limit_memory(plan: Plan) -> None:
    """Have the system refuse what could never be resident within the RAM budget.

    What this process has mapped already stays out of it, resident or not: a forked one inherits
    more than it holds. Mapped weights count as private memory before they are touched, if ever,
    hence room for them, twice, as a file may be mapped anew while it is; what becomes resident,
    the parent watches.
    Not for a row on a GPU, whose driver maps more addresses than the machine has memory.
    """
    if plan.ram_budget_bytes is None or plan.device != "cpu":
        return
    places = [Path(place) for place in (plan.model.path, plan.checkpoint) if place is not None]
    files = [file for place in places for file in (place.glob("*") if place.is_dir() else [place])]
    mapped = sum(file.stat().st_size for file in files if file.is_file())
    left = max(0, plan.ram_budget_bytes - resident_bytes())
    limit_private_memory(private_bytes() + left + 2 * mapped + _UNTOUCHED_BYTES)


def _load(
    record: RunRecord, deployer: Deployer, meter: MemoryMeter, progress: Progress
) -> RunRecord:
    progress("load", 0, 0)
    deployer.load(progress)
    meter.loaded()
    info = deployer.info
    return replace(
        record,
        kernel=info.kernel,
        dtype=info.dtype,
        notes=record.notes + info.notes,
        weights_bytes=_of_the_group(info.weights_bytes),
        huge_page_bytes=_of_the_group(info.huge_page_bytes),
        quantized_share=info.quantized_share,
        artifact=info.artifact,
        quantize_s=info.quantize_s,
        load_s=deployer.load_s,
    )


def _of_the_group(figure: int | None) -> int | None:
    """The sum over the processes that share the model; one's own where there is one."""
    return None if figure is None else sum(group.of_all(figure))


def _benchmark(
    record: RunRecord, deployer: Deployer, meter: MemoryMeter, progress: Progress
) -> RunRecord:
    started = time.perf_counter()

    def between_runs(stage: str, done: int, total: int) -> None:
        meter.sample()
        progress(stage, done, total)

    timing = deployer.benchmark(progress=between_runs)
    record = replace(
        record,
        measure_s=time.perf_counter() - started,
        decode=timing.decode,
        prefill=timing.prefill,
        ttft_s=timing.ttft_s,
        warmup_s=timing.warmup_s,
        warnings=timing.warnings,
        energy=timing.energy if deployer.plan.gpus == 1 else Energy(),  # one GPU's is not all
        notes=record.notes + timing.notes,
        compile_s=_compile_s(timing) if record.backend == "compiled" else None,
        memory=_memory(record, deployer.plan, meter.read()),
    )
    plan = deployer.plan
    if not plan.profile:
        return record
    progress("profile", 0, 0)  # after the peak of memory was read
    found = profile_steps(deployer.model, plan.workload, device=plan.device, seed=plan.seed)
    return replace(record, profile=found)


def _compile_s(timing: Measurement) -> float | None:
    """What the first warm-up run took beyond a usual run; None where there was no warm-up."""
    if not timing.warmup_s:
        return None
    prefills = timing.ttft_s.samples
    runs = zip(prefills, timing.decode.step.samples_s, strict=True)
    usual = median(prefill + sum(steps) for prefill, steps in runs)
    return max(0.0, timing.warmup_s[0] - usual)


def _memory(record: RunRecord, plan: Plan, peak: PeakMemory) -> Memory:
    """Measured memory beside the prediction; the runtime part is beyond what is measured here."""
    assert record.memory is not None
    measured = peak.peak_ram_bytes
    if record.memory.device == "cuda":
        by_driver = get_backend(record.backend).gpu_memory == "driver"
        measured = peak.beyond_context_bytes if by_driver else peak.peak_allocated_bytes
    per_gpu: tuple[int, ...] = ()
    if is_shared(plan):
        per_gpu = group.of_all(measured or 0)  # a peak that is not known makes none known
    elif plan.gpus > 1:
        per_gpu = peaks_allocated_bytes(plan.gpus)
    if per_gpu:
        per_gpu = per_gpu if all(per_gpu) else ()
        measured = max(per_gpu, default=None)
    predicted = record.memory.predicted
    error = None
    if predicted is not None and measured:
        counted = predicted.total_bytes - predicted.runtime_bytes
        error = 100.0 * (counted - measured) / measured
    return replace(
        record.memory,
        peak_bytes=measured,
        per_gpu_peak_bytes=per_gpu,
        error_pct=error,
        peak_ram_bytes=peak.peak_ram_bytes,
        idle_ram_bytes=peak.idle_ram_bytes,
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=peak.reserved_bytes,
        driver_peak_bytes=peak.driver_peak_bytes,
    )


def _over_budget(memory: Memory | None, plan: Plan) -> str | None:
    """Why a row that ran does not fit all the same: a peak above its budget. None where it fits."""
    assert memory is not None
    ram, budget = plan.ram_budget_bytes, plan.budget_bytes
    if ram is not None and None not in (memory.idle_ram_bytes, memory.peak_ram_bytes):
        held = (memory.idle_ram_bytes or 0) + (memory.peak_ram_bytes or 0)
        if held > ram:
            return (
                f"held {format_bytes(held)} of RAM in all at its peak, the budget is "
                f"{format_bytes(ram)}"
            )
    driver = memory.driver_peak_bytes
    if plan.device == "cuda" and budget is not None and driver is not None and driver > budget:
        return (
            f"had {format_bytes(driver)} of GPU memory from the driver at its peak, the budget is "
            f"{format_bytes(budget)}"
        )
    return None


def _evaluate(record: RunRecord, deployer: Deployer, progress: Progress) -> RunRecord:
    """Score quality, which is no part of deploying: the RAM budget does not bind it.

    Where a budget leaves too little to score in, the row keeps its figures, and a note says so.
    """
    plan = deployer.plan
    if plan.evaluation is None:
        return record
    progress("score", 0, 0)
    if plan.ram_budget_bytes is not None:
        limit_private_memory(None)
    try:
        quality = deployer.evaluate(progress=progress)
    except TaskUnavailable as exc:
        return _with_note(record, f"quality not scored: {exc}")
    except (RuntimeError, MemoryError) as exc:
        if plan.budget_bytes is None or not is_out_of_memory(exc):
            raise
        return _with_note(
            record,
            "quality not scored: it fits and decodes within the GPU budget of "
            f"{format_bytes(plan.budget_bytes)}, scoring whole texts at once does not",
        )
    return replace(
        record,
        hellaswag=quality.hellaswag,
        perplexity=quality.perplexity,
        kl_divergence=quality.divergence.mean if quality.divergence else None,
        top1_agreement=quality.divergence.top1_agreement if quality.divergence else None,
        divergence=quality.divergence,
        tasks=quality.tasks,
        notes=record.notes + quality.notes,
        evaluate_s=quality.seconds,
    )


def _check_logits(record: RunRecord, deployer: Deployer) -> None:
    """Raise NotFinite for logits that are no numbers, where no score has shown it."""
    if record.hellaswag is None and record.perplexity is None:  # other tasks may be texts alone
        plan, model = deployer.plan, deployer.model
        prompt = random_prompts(plan.workload, model.vocab_size, plan.seed)[0]
        with suppress(TaskUnavailable):  # a model that cannot be scored at all
            check_logits(model, prompt[:_CHECKED_TOKENS])


def _with_note(record: RunRecord, note: str) -> RunRecord:
    return replace(record, notes=(*record.notes, note))


def _failed(record: RunRecord, plan: Plan, exc: LlmfitError) -> RunRecord:
    """An error of our own, which may stand for a library's that ran out of memory."""
    cause: BaseException | None = exc
    while cause is not None:
        if is_out_of_memory(cause):
            return _out_of_memory(record, plan, cause)
        cause = cause.__cause__
    return replace(record, status="failed", reason=str(exc))


def _broken(record: RunRecord, exc: Exception) -> RunRecord:
    """An error that nobody foresaw: its whole trace goes to the row's log."""
    traceback.print_exception(exc)
    at = traceback.extract_tb(exc.__traceback__)[-1]
    where = f"{Path(at.filename).name}:{at.lineno}"
    return replace(
        record, status="failed", reason=f"{type(exc).__name__}: {first_line(exc)} ({where})"
    )


def _out_of_memory(record: RunRecord, plan: Plan, exc: BaseException) -> RunRecord:
    if plan.device == "cuda" and plan.budget_bytes is not None:
        limit = f" under the budget of {format_bytes(plan.budget_bytes)}"
        return replace(record, status="does_not_fit", reason=f"ran out of GPU memory{limit}")
    where = "GPU memory" if plan.device == "cuda" else "memory"
    if plan.device == "cpu" and plan.ram_budget_bytes is not None:
        limit = f"under the budget of {format_bytes(plan.ram_budget_bytes)} of RAM"
        reason = f"got no more memory {limit}: {first_line(exc)}"
        return replace(record, status="does_not_fit", reason=reason)
    error = DoesNotFit(
        f"out of {where}: {first_line(exc)}", hint="a smaller --batch or --prompt-tokens, or nf4"
    )
    return replace(record, status="failed", reason=str(error))


class Channel:
    """The pipe to the parent; progress is thinned out, records are not."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._last = 0.0
        self._stage = ""

    def send(self, message: Message) -> None:
        """Write one message."""
        self._pipe.write(encode(message))
        self._pipe.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        """A ``Progress``."""
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _PROGRESS_INTERVAL_S:
            return
        self._last, self._stage = now, stage
        self.send(Message(stage=Stage(name=stage, done=done, total=total)))


def _end_with_parent() -> None:
    """Wait for stdin to close, which the parent's end does, and end this process at once."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent watch").start()


def main(arguments: list[str]) -> int:
    """Run one plan, or describe the environment; the exit code is 0 when a message was sent."""
    descriptor, task = int(arguments[0]), arguments[1]
    with os.fdopen(descriptor, "wb", buffering=0) as pipe:
        channel = Channel(pipe)
        if task in ("environment", "bandwidth"):
            found = environment(bandwidth=task == "bandwidth", added=added_packages())
            channel.send(Message(environment=found))
            return 0
        plan = from_json(Plan, sys.stdin.buffer.readline(), source="the plan")
        _end_with_parent()
        channel.send(Message(record=run_plan(plan, channel.progress)))
    return 0


def end(code: int) -> NoReturn:
    """End this process without its libraries' exit handlers.

    Native ones, and threads, have crashed after the record was sent.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    die_with_parent()
    end(main(sys.argv[1:]))
