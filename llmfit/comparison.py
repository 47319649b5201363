"""From what is asked for to a plan per row: one model, its workload, its formats.

model ─► ModelSpec ─► Plan per backend ─► job.run_plans ─► Comparison
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmfit.backends.registry import backend_ids, get_backend, split_id
from llmfit.errors import UsageError
from llmfit.evaluate.score import may_need_hub
from llmfit.evaluate.tasks import check_tasks
from llmfit.job import Observer, run_plans
from llmfit.measure import check_workload, fit_workload
from llmfit.models import hub_reachable, resolve
from llmfit.planning.memory import predict_memory
from llmfit.records import (
    Comparison,
    Device,
    Environment,
    EvaluationSettings,
    KvCacheDtype,
    ModelSpec,
    Plan,
    Workload,
)
from llmfit.runner.isolate import probe_environment

DEFAULT_TIME_LIMIT_S = 3600.0


def compare(
    model: str | None = None,
    *,
    backends: Sequence[str] | None = None,
    workload: Workload | None = None,
    shorten: bool | None = None,
    evaluation: EvaluationSettings | None = EvaluationSettings(),  # noqa: B008 - frozen
    checkpoints: Mapping[str, str] | None = None,
    calibration_file: str | None = None,
    gpu_gb: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
    runs_dir: str | None = None,
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S,
    observer: Observer | None = None,
    command: str | None = None,
    kv_cache_dtype: KvCacheDtype | None = None,
    llama_cpp_dir: str | None = None,
) -> Comparison:
    """Measure ``model`` in every format of ``backends`` and give a verdict.

    ``model`` is a folder, a hub id, or None for the embedded model; ``evaluation`` of None
    leaves quality out; ``checkpoints`` maps backend ids to ready artifacts; ``gpu_gb`` is a GPU
    memory budget in GB (10⁹ bytes). ``shorten`` cuts a workload beyond the model's context to fit
    it, with a note, where it would be refused otherwise; by default only when no ``workload`` is
    given. ``kv_cache_dtype`` quantises the KV cache of every row; ``llama_cpp_dir`` is a llama.cpp
    checkout whose own converter makes the GGUF. A row that fails is a row with its reason.
    Raises UsageError, ModelNotFound or StoreError before anything runs, and
    ComparisonInterrupted.
    """
    chosen = _check_backends(backends, checkpoints or {})
    if llama_cpp_dir is not None and "gguf" not in {split_id(name)[0] for name in chosen}:
        raise UsageError(
            "a llama.cpp checkout is given, and no row is gguf.", hint="--backends gguf"
        )
    if evaluation is not None:
        check_tasks(evaluation)
    spec = resolve(model)
    asked = workload or Workload()
    may_shorten = workload is None if shorten is None else shorten
    work = fit_workload(asked, spec.max_position_embeddings) if may_shorten else asked
    check_workload(work, spec.max_position_embeddings)
    machine = probe_environment()
    base = Plan(
        backend="",
        model=spec,
        device=_device(device, machine),
        workload=work,
        evaluation=evaluation,
        calibration_file=calibration_file,
        budget_bytes=None if gpu_gb is None else int(gpu_gb * 1e9),
        threads=threads,
        seed=seed,
        cache_dir=cache_dir,
        notes=() if work == asked else (_shortened(asked, work, spec),),
        offline=_must_do_without_hub(spec, evaluation),
        kv_cache_dtype=kv_cache_dtype,
        llama_cpp_dir=llama_cpp_dir,
        command=command,
    )
    plans = [
        _plan(base, backend, (checkpoints or {}).get(split_id(backend)[0])) for backend in chosen
    ]
    return run_plans(
        plans,
        machine,
        runs_dir=runs_dir,
        time_limit_s=time_limit_s,
        observer=observer,
        command=command,
    )


def _check_backends(
    backends: Sequence[str] | None, checkpoints: Mapping[str, str]
) -> tuple[str, ...]:
    """The ids to run, in the order given. Raises UsageError for unknown, repeated or none."""
    chosen = tuple(backends) if backends is not None else backend_ids()
    if not chosen:
        raise UsageError("no backend is named.", hint="llmfit backends")
    for backend in chosen:
        get_backend(backend)
        if chosen.count(backend) > 1:
            raise UsageError(f"backend {backend!r} is named twice.")
    for backend in checkpoints:
        if not get_backend(backend).takes_checkpoint:
            raise UsageError(f"{backend} takes no checkpoint: it loads the model itself.")
        if backend not in {split_id(name)[0] for name in chosen}:
            raise UsageError(f"a checkpoint is given for {backend}, which is not among the rows.")
    return chosen


def _device(asked: str | None, machine: Environment) -> Device:
    if asked not in (None, "auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {asked!r}; known are auto, cpu, cuda.")
    if asked == "cuda" and machine.gpu is None:
        raise UsageError("no CUDA device is visible to torch.", hint="--device cpu")
    return "cpu" if asked == "cpu" or machine.gpu is None else "cuda"


def _shortened(asked: Workload, work: Workload, spec: ModelSpec) -> str:
    return (
        f"timed with {work.prompt_tokens} prompt + {work.new_tokens} new tokens instead of "
        f"{asked.prompt_tokens} + {asked.new_tokens}: the model's context is "
        f"{spec.max_position_embeddings}"
    )


def _must_do_without_hub(spec: ModelSpec, evaluation: EvaluationSettings | None) -> bool:
    """True when an evaluation set may have to come from the hub and the hub does not answer.

    Asked once here, so that not every row waits for it in vain.
    """
    return evaluation is not None and may_need_hub(spec, evaluation) and not hub_reachable()


def _plan(base: Plan, backend: str, checkpoint: str | None) -> Plan:
    device: Device = base.device if base.device in get_backend(backend).devices else "cpu"
    return replace(
        base,
        backend=backend,
        device=device,
        checkpoint=checkpoint,
        predicted=predict_memory(
            base.model, backend, base.workload, device, kv_cache_dtype=base.kv_cache_dtype
        ),
    )
