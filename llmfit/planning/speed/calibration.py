"""Measured rates in the place of stated efficiencies: own records first, then published figures.

    RunRecord, PublishedRate ─► Sample (work, seconds) ─► the default cost, moved until it predicts
                                                          the sample ─► Efficiency for other work

One sample cannot tell a slow memory from slow launches, so only the part of the cost that decides
its time is moved: a model of 5 M parameters says how long layers are waited for, one of 8 B how
much of the bandwidth is reached. Samples that are decided as the work at hand is come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from llmfit.planning.architectures import read_shape
from llmfit.planning.catalogue import find
from llmfit.planning.speed.efficiency import Cost, Efficiency, busy_and_waiting_s, seconds, stated
from llmfit.planning.speed.hardware import match_gpu
from llmfit.planning.speed.published import PublishedRate, published
from llmfit.planning.speed.work import Work, decode_work, prefill_work
from llmfit.records import Hardware, KvCacheDtype, ModelSpec, RunRecord, Workload

Phase = Literal["decode", "prefill"]

MOST_RECORDS = 8
"""Newest records that a prediction rests on: older ones may be of older versions."""
SAME_MODEL_MARGIN = 0.10
"""Beyond the slowest and the fastest record: how far a machine's medians wander from hour to
hour. 29 to 39 GB/s were seen on a shared machine; the part that bandwidth explains is taken out."""
OTHER_MODEL_MARGIN = 0.25
"""Likewise where the records are of other models."""
PUBLISHED_MARGIN = 0.30
"""Likewise of published figures: the same card beside another host, and another engine."""

_MEASURED_HERE = "measured on this machine"
_SIBLINGS = {"bf16": "sdpa", "sdpa": "bf16"}
"""Formats that differ in the attention kernel alone, of which others publish one figure."""
_DOUBTS = frozenset({"busy_cpu", "busy_gpu", "throttled", "power_cap", "swap"})
"""Warnings of a record that say that the machine, and not the format, set the pace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Work whose time was measured."""

    work: Work
    seconds: float
    hardware: Hardware
    """The part as it was at that time: with its bandwidth measured then, where it was."""
    model: str
    label: str
    """Of an own record its backend's id, of a published figure its engine."""
    margin: float
    """Share by which the same work may take less or more another time."""
    slowest: float = 1.0
    """Time of its slowest repeats, over ``seconds``."""
    fastest: float = 1.0
    """Time of its fastest repeats, over ``seconds``."""
    doubtful: bool = False
    """The machine was busy or held back, and not the format, set the pace."""

    def range(self, cost: Cost) -> tuple[Cost, Cost]:
        """``cost`` as slow and as fast as another time it may be."""
        slow = 1 / max(1 + self.margin, self.slowest)
        fast = max(1 + self.margin, 1 / self.fastest)
        return cost.faster(slow, slow), cost.faster(fast, fast)


def with_bandwidth(hardware: Hardware, bandwidth: float) -> Hardware:
    """``hardware`` with the bandwidth, in bytes per second, that was measured on it here."""
    return replace(hardware, bandwidth=bandwidth, source=_MEASURED_HERE, assumed=False)


def measured_bandwidth(hardware: Hardware, records: Iterable[RunRecord]) -> Hardware:
    """``hardware`` with the median of the bandwidths measured on it, where records tell any.

    Those of a machine that was not busy, where there are some. What has a measured bandwidth
    already keeps it.
    """
    if hardware.source == _MEASURED_HERE:
        return hardware
    told = [
        (record, bandwidth)
        for record in records
        if (bandwidth := _bandwidth_then(record, hardware)) is not None
    ]
    calm = [pair for pair in told if not _is_doubtful(pair[0])] or told
    # Rows of one comparison carry one and the same measurement.
    distinct = list(dict.fromkeys(bandwidth for _, bandwidth in calm))[:MOST_RECORDS]
    return with_bandwidth(hardware, median(distinct)) if distinct else hardware


def efficiency_for(
    phase: Phase,
    work: Work,
    spec: ModelSpec,
    backend: str,
    hardware: Hardware,
    *,
    records: Sequence[RunRecord],
    kv_cache_dtype: KvCacheDtype | None = None,
    gpus: int = 1,
) -> Efficiency:
    """What ``backend`` reaches on ``hardware`` at ``work``, and what that rests on.

    A decode step is one graph, but over several ``gpus`` and with a quantised cache.

    Records of the same format, KV cache, part and number of GPUs, newest first, as many as
    ``MOST_RECORDS``; then what others published for that very part; then the stated default.
    """
    # Of the compiled row the decode step alone is compiled.
    runs_as = "sdpa" if (phase, backend) == ("prefill", "compiled") else backend
    one_graph = phase == "decode" and kv_cache_dtype is None and gpus == 1
    default = stated(runs_as, hardware, kv_cache_dtype, one_graph=one_graph)
    own = _own(phase, spec, backend, hardware, records, kv_cache_dtype, gpus)
    if own:
        return calibrated(work, own, default, hardware, _own_basis)
    if phase == "decode" and kv_cache_dtype is None:
        found = _published(spec, backend, hardware, one_graph)
        if found:
            return calibrated(work, found, default, hardware, _published_basis)
    return default


def calibrated(
    work: Work,
    samples: Sequence[Sample],
    default: Efficiency,
    hardware: Hardware,
    basis: Callable[[Sequence[Sample]], str],
) -> Efficiency:
    """The efficiency that ``samples`` tell for ``work``, slowest and fastest widened by a margin.

    Where every sample is decided by another part of the cost than ``work`` is, or is in doubt, the
    default's own range is kept beside them and the basis says so. ``basis`` names the samples
    that are used.
    """

    def taken_s(cost: Cost) -> float:
        return seconds(work, cost, hardware)

    waits = _waits(work, default.estimate, hardware)
    alike = [s for s in samples if _waits(s.work, default.estimate, s.hardware) == waits]
    used = alike or samples
    costs = [fitted(default.estimate, sample) for sample in used]
    ranges = [sample.range(cost) for sample, cost in zip(used, costs, strict=True)]
    low = max((slow for slow, _ in ranges), key=taken_s)
    high = min((fast for _, fast in ranges), key=taken_s)
    text = basis(used)
    doubtful = all(sample.doubtful for sample in used)
    if doubtful:
        text += " while it was busy"
    if not alike:
        text += ", otherwise bound"
    if doubtful or not alike:
        low, high = max(low, default.low, key=taken_s), min(high, default.high, key=taken_s)
        text += f"; {default.basis}"
    estimate = sorted(costs, key=taken_s, reverse=True)[(len(costs) - 1) // 2]
    return Efficiency(low=low, estimate=estimate, high=high, basis=text)


def fitted(cost: Cost, sample: Sample) -> Cost:
    """``cost`` moved no further than it takes to predict the sample's time exactly.

    The part that decides the time takes the difference. The other one keeps its default, unless
    that alone would be longer: then it is cut, to half the time where the two add up.
    """
    busy, waiting = busy_and_waiting_s(sample.work, cost, sample.hardware)
    taken = sample.seconds
    room = taken / 2 if cost.adds_up else taken
    if waiting > busy:
        new_busy = min(busy, room)
        new_waiting = taken - new_busy if cost.adds_up else taken
    else:
        new_waiting = min(waiting, room)
        new_busy = taken - new_waiting if cost.adds_up else taken
    return cost.faster(busy / new_busy, waiting / new_waiting)


def _waits(work: Work, cost: Cost, hardware: Hardware) -> bool:
    """Whether the waiting for layers decides the time, and not bytes or arithmetic."""
    busy, waiting = busy_and_waiting_s(work, cost, hardware)
    return waiting > busy


# ---------------------------------------------------------------- own records


def runs_on(record: RunRecord, hardware: Hardware) -> bool:
    """Whether a record's row ran on this part."""
    machine = record.environment
    if machine is None:
        return False
    if record.device == "cuda":
        return hardware.kind != "cpu" and _is_gpu(machine.gpu, hardware)
    return hardware.kind == "cpu" and machine.cpu == hardware.name


def _is_gpu(driver_name: str | None, hardware: Hardware) -> bool:
    if driver_name is None:
        return False
    if driver_name == hardware.name:
        return True
    known = match_gpu(driver_name, hardware.memory_bytes)
    return known is not None and known.name == hardware.name


def _bandwidth_then(record: RunRecord, hardware: Hardware) -> float | None:
    """The bandwidth of the part as it was measured before the record's row, if it was."""
    machine = record.environment
    if machine is None:
        return None
    if hardware.kind == "cpu":
        return machine.cpu_bandwidth if machine.cpu == hardware.name else None
    return machine.gpu_bandwidth if _is_gpu(machine.gpu, hardware) else None


def _own(
    phase: Phase,
    spec: ModelSpec,
    backend: str,
    hardware: Hardware,
    records: Sequence[RunRecord],
    kv_cache_dtype: KvCacheDtype | None,
    gpus: int,
) -> list[Sample]:
    """Samples of own records of this very backend id, else of its format's other types.

    Over as many GPUs, layer by layer: a tensor split reads each GPU's part at once.

    Those without a doubt about the machine, and of the same model, where there are any.
    """
    name = backend.partition(":")[0]
    rows = [
        record
        for record in records
        if record.backend.partition(":")[0] == name
        and runs_on(record, hardware)
        and record.plan is not None
        and record.plan.kv_cache_dtype == kv_cache_dtype
        and record.plan.gpus == gpus
        and (gpus == 1 or record.plan.split == "balanced")
        and _has_usual_threads(record)
    ]
    rows = [record for record in rows if record.backend == backend] or rows
    rows = [record for record in rows if not _is_doubtful(record)] or rows
    samples = (_of_record(phase, row, spec, hardware) for row in rows)
    return _same_model([sample for sample in samples if sample is not None], spec)[:MOST_RECORDS]


def _is_doubtful(record: RunRecord) -> bool:
    return any(warning.code in _DOUBTS for warning in record.warnings)


def _same_model(samples: list[Sample], spec: ModelSpec) -> list[Sample]:
    """Those of the model that is asked for, else all."""
    return [sample for sample in samples if sample.model == spec.name] or samples


def _own_basis(used: Sequence[Sample]) -> str:
    rows = "1 row" if len(used) == 1 else f"{len(used)} rows"
    return f"own records: {rows} of {_listed(sample.label for sample in used)} on this machine"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _has_usual_threads(record: RunRecord) -> bool:
    """Whether the row ran on all cores, as a plan supposes."""
    assert record.plan is not None and record.environment is not None
    return record.plan.threads in (None, record.environment.cpu_cores)


def _of_record(
    phase: Phase, record: RunRecord, spec: ModelSpec, hardware: Hardware
) -> Sample | None:
    assert record.plan is not None
    timed = record.decode if phase == "decode" else record.prefill
    count: Callable[..., Work | None] = decode_work if phase == "decode" else prefill_work
    plan = record.plan
    work = count(plan.model, record.backend, plan.workload, plan.kv_cache_dtype, device=plan.device)
    if timed is None or work is None:
        return None
    rate, then = timed.tokens_per_s, _bandwidth_then(record, hardware)
    part = hardware if then is None else replace(hardware, bandwidth=then)
    same = plan.model.name == spec.name
    taken = work.tokens / rate.median
    if not same and part.bandwidth and taken < work.read_bytes / part.bandwidth:
        return None  # it sat in the caches, which says nothing of another model
    return Sample(
        work=work,
        seconds=taken,
        hardware=part,
        model=plan.model.name,
        label=record.backend,
        margin=SAME_MODEL_MARGIN if same else OTHER_MODEL_MARGIN,
        slowest=rate.median / rate.low,
        fastest=rate.median / rate.high,
        doubtful=_is_doubtful(record),
    )


# ---------------------------------------------------------------- published figures


def _published(spec: ModelSpec, backend: str, hardware: Hardware, one_graph: bool) -> list[Sample]:
    """What was published for this part and format, without what its bandwidth rules out."""
    rates = published(hardware.name, backend, one_graph=one_graph)
    if not rates and backend in _SIBLINGS:
        rates = published(hardware.name, _SIBLINGS[backend], one_graph=one_graph)
    samples = (_of_published(rate, spec, backend, hardware) for rate in rates)
    return _same_model([sample for sample in samples if sample is not None], spec)


def _of_published(
    rate: PublishedRate, spec: ModelSpec, backend: str, hardware: Hardware
) -> Sample | None:
    """The figure as a sample: batch 1, at the default workload's context, which few state."""
    entry = find(rate.model)
    shape = None if entry is None else read_shape(entry.config)
    if shape is None:
        return None
    work = decode_work(replace(spec, name=rate.model, shape=shape), backend, Workload())
    if work is None or hardware.bandwidth is None:
        return None
    taken = work.tokens / rate.tokens_per_s
    if taken < work.read_bytes / hardware.bandwidth:
        return None  # faster than the card can read the weights: a slip, or another protocol
    return Sample(
        work=work,
        seconds=taken,
        hardware=hardware,
        model=rate.model,
        label=rate.engine,
        margin=PUBLISHED_MARGIN,
    )


def _published_basis(used: Sequence[Sample]) -> str:
    """The model where it is one, else how many; and the engines."""
    models = list(dict.fromkeys(sample.model.rpartition("/")[2] for sample in used))
    what = models[0] if len(models) == 1 else f"{len(models)} models"
    return f"published for this GPU: {what} by {_listed(sample.label for sample in used)}"
