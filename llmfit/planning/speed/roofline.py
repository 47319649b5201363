"""Predicted speed: the hardware's limits, and the share of them that a format reaches.

    limit = tokens ÷ max(bytes ÷ bandwidth, FLOPs ÷ arithmetic)      nobody gets beyond it
    rate  = tokens ÷ seconds, from the efficiency of own records, published figures or defaults

A prediction is a range with its basis. Source: Williams, Waterman and Patterson, Roofline, 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmfit.planning.speed.calibration import efficiency_for, measured_bandwidth
from llmfit.planning.speed.efficiency import Efficiency, is_guess, seconds
from llmfit.planning.speed.work import Work, bytes_per_step, decode_work, prefill_work
from llmfit.records import (
    Device,
    Environment,
    Hardware,
    KvCacheDtype,
    ModelSpec,
    Roofline,
    RunRecord,
    SpeedPrediction,
    Workload,
)

_NEVER_PREDICTED = frozenset({"offload"})
"""What is read there comes over a bus or from a disk, of which nothing is known."""
_IN_CACHES = "faster than memory allows: what a step reads stays in the caches"


def predict_speed(
    spec: ModelSpec,
    backend: str,
    workload: Workload,
    hardware: Hardware,
    *,
    records: Sequence[RunRecord],
    kv_cache_dtype: KvCacheDtype | None = None,
    gpus: int = 1,
) -> tuple[SpeedPrediction | None, SpeedPrediction | None]:
    """Decode and prefill rates of a row on ``hardware``, the part that it would run on.

    Layers on several ``gpus`` run one after the other, as fast as on one but for their launches.
    ``records`` are this machine's, newest first; those of other parts are left out, and the
    bandwidth that they measured takes the place of the data sheet's, unless ``hardware`` was
    measured itself. None where the shape, the format's layout, or a limit of the hardware is not
    known.
    """
    hardware = measured_bandwidth(hardware, records)
    if hardware.bandwidth is None or backend.partition(":")[0] in _NEVER_PREDICTED:
        return None, None
    device: Device = "cpu" if hardware.kind == "cpu" else "cuda"
    decode = decode_work(spec, backend, workload, kv_cache_dtype, device=device)
    prefill = prefill_work(spec, backend, workload, kv_cache_dtype, device=device)
    if decode is None or prefill is None:
        return None, None
    reached = efficiency_for(
        "decode", decode, spec, backend, hardware, records=records, kv_cache_dtype=kv_cache_dtype,
        gpus=gpus,
    )  # fmt: skip
    decode_rate = predicted_rate(decode, hardware, reached)
    if hardware.flops is None:  # the arithmetic decides a prefill
        return decode_rate, None
    reached = efficiency_for(
        "prefill", prefill, spec, backend, hardware, records=records, kv_cache_dtype=kv_cache_dtype
    )
    return decode_rate, predicted_rate(prefill, hardware, reached)


def predicted_rate(work: Work, hardware: Hardware, efficiency: Efficiency) -> SpeedPrediction:
    """Tokens per second of ``work``; ``hardware.bandwidth`` is known.

    The range ends at the limit, unless that is a guess itself, or measured rates of a model that
    sits in caches pass it.
    """
    limit = work.tokens / limit_s(work, hardware)
    low, estimate, high = (
        work.tokens / seconds(work, cost, hardware)
        for cost in (efficiency.low, efficiency.estimate, efficiency.high)
    )
    if estimate <= limit and not is_guess(hardware):
        high = min(high, limit)
    return SpeedPrediction(
        estimate=estimate, low=low, high=high, basis=efficiency.basis, limit=limit
    )


def limit_s(work: Work, hardware: Hardware) -> float:
    """The least time that ``work`` can take: its bytes at full bandwidth, or its arithmetic."""
    assert hardware.bandwidth is not None
    arithmetic = work.flops / hardware.flops if hardware.flops else 0.0
    return max(work.read_bytes / hardware.bandwidth, arithmetic)


def attach_roofline(record: RunRecord, machine: Environment) -> RunRecord:
    """``record`` with the bandwidth's limit of its decode rate, and the share of it reached.

    As it is where nothing was timed, the bandwidth was not measured, or the bytes are not known.
    With a note where it was faster than memory allows.
    GPUs that hold a part of every matrix read at once, those with layers one after the other.
    """
    bandwidth = machine.gpu_bandwidth if record.device == "cuda" else machine.cpu_bandwidth
    plan = record.plan
    if record.decode is None or plan is None or bandwidth is None:
        return record
    read = bytes_per_step(
        plan.model, record.backend, plan.workload, plan.kv_cache_dtype, device=plan.device
    )
    if read is None:
        return record
    at_once = plan.gpus if plan.split == "tensor" else 1
    limit = plan.workload.batch * at_once * bandwidth / read
    reached = record.decode.tokens_per_s.median / limit
    roofline = Roofline(limit_tokens_per_s=limit, fraction=reached)
    notes = record.notes if reached <= 1.0 else (*record.notes, _IN_CACHES)
    return replace(record, roofline=roofline, notes=notes)
