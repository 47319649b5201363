"""From what is asked for to a plan per row: one model, its workload, its formats.

model ─► ModelSpec ─► Plan per backend ─► job.run_plans, where the executor says ─► Comparison
                                     └► weights not to be had: predictions alone ─► Comparison
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llmfit.backends.registry import check_backends, chosen_backends, get_backend, split_id
from llmfit.errors import UsageError
from llmfit.evaluate.fetch import fetch_data
from llmfit.evaluate.score import may_need_hub
from llmfit.evaluate.tasks import check_tasks, other_tasks
from llmfit.executors.base import Executor, Limits, Site
from llmfit.executors.local import Local
from llmfit.files import expanded
from llmfit.foreign.code import require_no_pickles
from llmfit.hub import hub_reachable
from llmfit.job import ComparisonInterrupted, Observer, run_plans
from llmfit.keeping import Keeping
from llmfit.measure import settle_workload
from llmfit.models import resolve, why_no_weights
from llmfit.network import is_offline
from llmfit.planner import Machine, check_device, check_gpus, find_machine, predict_row
from llmfit.planning.comparing.differences import REFERENCE
from llmfit.planning.memory.kv_cache import is_llama_cpp
from llmfit.planning.memory.split import predict_plan
from llmfit.planning.speed.calibration import with_bandwidth
from llmfit.planning.speed.roofline import predict_speed
from llmfit.planning.verdict.constraints import Constraints, Objective, check_objective
from llmfit.planning.verdict.judge import Judge
from llmfit.quantize.gguf_checkout import Checkout
from llmfit.records import (
    Comparison,
    Device,
    Environment,
    EvaluationSettings,
    KvCacheDtype,
    ModelSpec,
    Plan,
    RunRecord,
    Split,
    Weights,
    Workload,
    require_types,
)
from llmfit.runner.worker import blank_record
from llmfit.store.place import check_reachable, machine_name
from llmfit.units import gb_bytes

DEFAULT_TIME_LIMIT_S = 3600.0
_SYNTHETIC = "random weights (--weights synthetic): quality is not scored"
_REFERENCE_CACHE = (
    "KV cache in 16 bits: the reference that the price of a quantised one is measured against"
)


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
    ram_gb: float | None = None,
    weights: Weights = "real",
    device: str | None = None,
    gpus: int = 1,
    split: Split = "balanced",
    threads: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S,
    deadline: float | None = None,
    observer: Observer | None = None,
    command: str | None = None,
    kv_cache_dtype: KvCacheDtype | None = None,
    llama_cpp_dir: str | None = None,
    constraints: Constraints | None = None,
    objective: Objective = "speed",
    last_resort: bool = True,
    profile: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    executor: Executor | None = None,
) -> Comparison:
    """Measure ``model`` in every format of ``backends`` and give a verdict.

    ``model`` is a folder, a hub id, a name of the catalogue, or None for the embedded model;
    ``evaluation`` of None leaves quality out; ``checkpoints`` maps backend ids to ready artifacts;
    ``gpu_gb`` and ``ram_gb`` are memory budgets in GB (10⁹ bytes), the former of each GPU. With
    ``gpus`` above 1 a model is spread over so many: ``split`` of "balanced" puts layers on each,
    "tensor" a part of every matrix. ``weights`` of "synthetic" makes
    random ones, so that memory and speed can be measured of a model that is not here. Where the
    real ones cannot be had, the rows are predicted and not run. ``shorten`` cuts a workload beyond
    the model's context to fit it, with a note, where it would be refused otherwise; by default
    only when no ``workload`` is given. ``kv_cache_dtype`` quantises the KV cache of every row but
    the reference; with ``llama_cpp_dir``, a llama.cpp checkout, its converter makes the GGUF.
    ``constraints`` and ``objective`` are what the verdict goes by. With ``last_resort`` a row with
    offloaded weights is added where nothing fits. ``profile`` says where each row's decode steps
    spend their time. ``allow_pickle`` reads weights in pickles, their tensors alone;
    ``trust_remote_code`` runs Python code that comes with the model. ``keeping`` says where records
    go; ``deadline`` is the time of the monotonic clock after which no row goes on. Rows run where
    ``executor`` runs them; None is this machine, one row after the other. A row
    that fails is a row with its reason. Raises UsageError, ModelNotFound, ModelLoadError or
    StoreError before anything runs, and ComparisonInterrupted.
    """
    started = time.monotonic()
    for given in filter(None, (workload, evaluation, constraints)):
        require_types(given)
    check_objective(objective)
    check_reachable(keeping.store)
    check_gpus(gpus)
    _check_device(device, gpus)
    if backends is not None:
        check_backends(backends)
    if evaluation is not None:
        check_tasks(evaluation)
        evaluation = _with_absolute_paths(evaluation)
    spec = resolve(model, weights=weights == "real")
    chosen = chosen_backends(backends, spec)
    _check_artifacts(chosen, checkpoints or {}, llama_cpp_dir)
    if calibration_file is not None:
        _check_calibration(chosen, weights)
    _check_kv_cache(chosen, kv_cache_dtype)
    work, notes = settle_workload(workload, shorten, spec)
    if weights == "real" and spec.source == "local" and not checkpoints:
        require_no_pickles(Path(spec.path), allowed=allow_pickle)
    absent = why_no_weights(spec) if weights == "real" and not checkpoints else None
    if weights == "synthetic":
        evaluation, notes = None, (*notes, _SYNTHETIC)
    asked = Plan(
        backend="",
        model=spec,
        device="cpu",  # known once the machine is
        workload=work,
        evaluation=evaluation,
        calibration_file=_absolute(calibration_file),
        gpus=gpus,
        split=split,
        budget_bytes=None if gpu_gb is None else gb_bytes("gpu_gb", gpu_gb),
        ram_budget_bytes=None if ram_gb is None else gb_bytes("ram_gb", ram_gb),
        weights=weights,
        threads=threads,
        seed=seed,
        cache_dir=_absolute(cache_dir),
        notes=notes,
        offline=is_offline() or (absent is None and _must_do_without_hub(spec, evaluation)),
        kv_cache_dtype=kv_cache_dtype,
        llama_cpp_dir=_absolute(llama_cpp_dir),
        profile=profile,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        command=command,
    )
    require_types(asked)
    ready = {backend: _checkpoint_place(place) for backend, place in (checkpoints or {}).items()}
    place = executor or Local()
    keeping = replace(keeping, machine=place.machine_name(keeping.machine or machine_name()))
    with (
        _kept_at_the_end() as done,
        place.open(asked, device=device, measure=absent is None) as site,
    ):
        base = replace(asked, device=_device(device, site.environment, gpus))
        plans = [_plan(base, backend, ready.get(split_id(backend)[0])) for backend in chosen]
        machine = _machine(site, gpu_gb, ram_gb, device, keeping.runs_dir)
        judge = _judge(constraints or Constraints(), objective, base)
        if absent is not None:
            return _predicted_comparison(plans, machine, site.environment, judge, absent)
        done.append(
            run_plans(
                [_with_speed(plan, machine) for plan in plans],
                site,
                judge=judge,
                keeping=keeping,
                limits=Limits(row_s=time_limit_s, deadline=deadline),
                observer=observer,
                command=command,
                last_resort=last_resort,
                started=started,
            )
        )
    return done[0]


@contextmanager
def _kept_at_the_end() -> Iterator[list[Comparison]]:
    """A list for the comparison: an interrupt while its processes end does not cost it."""
    done: list[Comparison] = []
    try:
        yield done
    except ComparisonInterrupted:
        raise
    except KeyboardInterrupt as exc:
        if not done:
            raise
        raise ComparisonInterrupted(done[0]) from exc


def _judge(constraints: Constraints, objective: Objective, base: Plan) -> Judge:
    """What the verdict goes by: the bounds that are asked for, within the plan's budgets."""
    within = replace(constraints, memory_bytes=base.budget_bytes, ram_bytes=base.ram_budget_bytes)
    return Judge(constraints=within, objective=objective)


def _check_kv_cache(chosen: Sequence[str], kv_cache_dtype: KvCacheDtype | None) -> None:
    """Raise UsageError for a quantised KV cache that no row would use."""
    if kv_cache_dtype is not None and set(chosen) == {REFERENCE}:
        raise UsageError(
            f"a KV cache in {kv_cache_dtype} is asked for, and {REFERENCE} alone, which keeps "
            "16 bits, is among the rows.",
            hint=f"--backends {REFERENCE},sdpa",
        )


def _check_artifacts(
    chosen: Sequence[str], checkpoints: Mapping[str, str], llama_cpp_dir: str | None
) -> None:
    """Raise UsageError for what is given to no row."""
    rows = {split_id(name)[0] for name in chosen}
    for backend in checkpoints:
        if not get_backend(backend).takes_checkpoint:
            raise UsageError(f"{backend} takes no checkpoint: it loads the model itself.")
        if backend not in rows:
            raise UsageError(
                f"a checkpoint is given for {backend}, which is not among the rows.",
                hint=f"--backends {backend}",
            )
    if llama_cpp_dir is not None:
        Checkout.at(llama_cpp_dir)
        if not any(is_llama_cpp(row) for row in rows):
            raise UsageError(
                "a llama.cpp checkout is given, and no row is gguf.", hint="--backends gguf"
            )


def _check_calibration(chosen: Sequence[str], weights: Weights) -> None:
    """Raise UsageError for a calibration text that no row would read."""
    if weights == "synthetic":
        raise UsageError("a calibration text is given, and random weights are not calibrated.")
    if not any(get_backend(row).calibrated for row in chosen):
        raise UsageError(
            "a calibration text is given, and no row is gptq or awq.", hint="--backends gptq"
        )


def _with_absolute_paths(evaluation: EvaluationSettings) -> EvaluationSettings:
    """The settings as they can be used again from any folder."""
    return replace(
        evaluation,
        include_path=_absolute(evaluation.include_path),
        hellaswag_file=_absolute(evaluation.hellaswag_file),
        text_file=_absolute(evaluation.text_file),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(expanded(path).absolute())


def _checkpoint_place(place: str) -> str:
    """A path that is there as an absolute one, a hub id as it is."""
    path = expanded(place)
    return str(path.absolute()) if path.exists() else place


def _check_device(asked: str | None, gpus: int) -> None:
    """Raise UsageError for what no machine could be asked for."""
    check_device(asked)
    if asked == "cpu":
        _require_gpus(gpus, 0)


def _device(asked: str | None, machine: Environment, gpus: int) -> Device:
    """Where PyTorch rows run. Raises UsageError where that, or so many GPUs, is not there."""
    _require_gpus(gpus, 0 if asked == "cpu" or machine.gpu is None else machine.gpu_count or 1)
    if asked == "cuda" and machine.gpu is None:
        raise UsageError("no CUDA device is visible to torch.", hint="--device cpu")
    return "cpu" if asked == "cpu" or machine.gpu is None else "cuda"


def _require_gpus(gpus: int, has: int) -> None:
    """Raise UsageError where a model is to be spread over more GPUs than are used."""
    if gpus > 1 and has < gpus:
        raise UsageError(
            f"{gpus} GPUs are asked for, {has or 'none'} {'are' if has > 1 else 'is'} used here.",
            hint=f"llmfit plan MODEL --gpus {gpus}, which tells what each would hold",
        )


def _must_do_without_hub(spec: ModelSpec, evaluation: EvaluationSettings | None) -> bool:
    """True where rows look for evaluation data on this machine alone.

    The hub does not answer, or what it has was fetched just now: no row waits for it in vain.
    """
    if evaluation is None or not may_need_hub(spec, evaluation):
        return False
    if not hub_reachable():
        return True
    if other_tasks(evaluation):  # lm-eval alone knows what data these need
        return False
    fetch_data(spec, evaluation)
    return True


def _plan(base: Plan, backend: str, checkpoint: str | None) -> Plan:
    """The plan of one row; the reference keeps a 16-bit KV cache, which others are held against."""
    kind = get_backend(backend)
    device = base.device if base.device in kind.devices else "cpu"
    plan = replace(
        base,
        backend=backend,
        device=device,
        gpus=base.gpus if device == "cuda" else 1,
        checkpoint=checkpoint,
        calibration_file=base.calibration_file if kind.calibrated else None,
    )
    if backend == REFERENCE and plan.kv_cache_dtype is not None:
        plan = replace(plan, kv_cache_dtype=None, notes=(*plan.notes, _REFERENCE_CACHE))
    return replace(plan, predicted=predict_plan(plan))


def _machine(
    site: Site, gpu_gb: float | None, ram_gb: float | None, device: str | None, runs_dir: str | None
) -> Machine:
    """What predictions are for, with the bandwidths that were measured just now."""
    environment = site.environment
    machine = find_machine(
        gpu_gb=None if device == "cpu" else gpu_gb,
        ram_gb=ram_gb,
        device=None if device == "auto" else device,
        runs_dir=runs_dir,
        site=(environment, *site.hardware),
    )
    if environment.cpu_bandwidth is not None:
        machine = replace(machine, cpu=with_bandwidth(machine.cpu, environment.cpu_bandwidth))
    if environment.gpu_bandwidth is not None and machine.gpu is not None:
        machine = replace(machine, gpu=with_bandwidth(machine.gpu, environment.gpu_bandwidth))
    return machine


def _with_speed(plan: Plan, machine: Machine) -> Plan:
    """The plan with the decode rate that is predicted for it here; of a tensor split it is unknown.

    Layers on several GPUs run one after the other, as fast as on one.
    """
    if plan.gpus > 1 and plan.split == "tensor":
        return plan
    decode, _ = predict_speed(
        plan.model,
        plan.backend,
        plan.workload,
        machine.hardware(plan.device),
        records=machine.records,
        kv_cache_dtype=plan.kv_cache_dtype,
        gpus=plan.gpus,
    )
    return replace(plan, predicted_tokens_per_s=decode)


def _predicted_comparison(
    plans: Sequence[Plan], machine: Machine, environment: Environment, judge: Judge, absent: str
) -> Comparison:
    """The comparison of a model whose weights are not to be had: predictions alone, not kept."""
    rows = tuple(_predicted_record(plan, machine, environment, absent) for plan in plans)
    first = plans[0]
    return Comparison(
        run_id=f"predicted-{first.model.name}",
        model=first.model,
        workload=first.workload,
        budget_bytes=first.budget_bytes,
        ram_budget_bytes=first.ram_budget_bytes,
        gpu=machine.gpu,
        rows=rows,
        verdict=judge.verdict(rows),
        environment=environment,
        command=first.command,
    )


def _predicted_record(
    plan: Plan, machine: Machine, environment: Environment, absent: str
) -> RunRecord:
    """The row as it would be on the machine that is planned for, or why it would be left out."""
    skipped = get_backend(plan.backend).check(plan).skipped
    if skipped is not None:
        plan = replace(plan, predicted=None)
        return replace(
            blank_record(plan),
            status="skipped",
            reason=skipped,
            predicted_only=True,
            environment=environment,
        )
    row = predict_row(
        plan.model, plan.backend, plan.workload, machine, kv_cache_dtype=plan.kv_cache_dtype
    )
    plan = replace(
        plan, device=row.device, predicted=row.memory, predicted_tokens_per_s=row.tokens_per_s
    )
    return replace(
        blank_record(plan),
        status="does_not_fit" if row.fits is False else "skipped",
        reason=row.reason or absent,
        notes=(*plan.notes, *row.notes),
        predicted_only=True,
        environment=environment,
    )
