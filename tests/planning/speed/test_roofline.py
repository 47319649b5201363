"""Predicted rates and their limit, against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.models import resolve
from llmfit.planning.speed.roofline import attach_roofline, predict_speed
from llmfit.records import Environment, Hardware, ModelSpec, Plan, SpeedPrediction, Workload
from llmfit.testing import make_record

LLAMA_BLOCKS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
LLAMA_HEAD = 128256 * 4096
LLAMA_NORMS = (2 * 32 + 1) * 4096
KV_BYTES_PER_TOKEN = 32 * 2 * 8 * 128 * 2
BACKENDS = ("bf16", "sdpa", "compiled", "int8", "nf4", "gptq", "awq", "gguf")

GPU = Hardware(
    name="a GPU", kind="gpu", memory_bytes=24 << 30, bandwidth=936e9, flops=71e12, source="test"
)
CPU = Hardware(
    name="a CPU", kind="cpu", memory_bytes=32 << 30, bandwidth=40e9, flops=1e12, source="test"
)


def _llama() -> ModelSpec:
    return resolve("meta-llama/Llama-3.1-8B", weights=False)


def _speed(
    backend: str, hardware: Hardware, workload: Workload | None = None
) -> tuple[SpeedPrediction, SpeedPrediction]:
    decode, prefill = predict_speed(_llama(), backend, workload or Workload(), hardware, records=())
    assert decode is not None and prefill is not None
    return decode, prefill


def test_the_limit_of_decode_is_bandwidth_over_bytes() -> None:
    """Llama-3.1-8B in bf16 after 512 + 64 tokens: blocks, head, norms, one embedding row, cache."""
    weights = 2 * (LLAMA_BLOCKS + LLAMA_HEAD + LLAMA_NORMS + 4096)
    decode, _ = _speed("sdpa", GPU)
    assert decode.limit == pytest.approx(936e9 / (weights + 576 * KV_BYTES_PER_TOKEN))


def test_the_limit_of_a_large_batch_is_arithmetic() -> None:
    """Of 512 sequences after 48 tokens each, 2 FLOPs a weight and 4 × context × heads × size."""
    workload = Workload(prompt_tokens=16, new_tokens=64, batch=512)
    decode, _ = _speed("sdpa", GPU, workload)
    flops = 2 * (LLAMA_BLOCKS + LLAMA_HEAD) + 32 * 4 * 48 * 32 * 128
    assert decode.limit == pytest.approx(71e12 / flops)


def test_a_long_prefill_is_bound_by_arithmetic_and_a_short_one_by_bandwidth() -> None:
    """512 tokens: 2 FLOPs a weight of the blocks, the head once; 4 tokens: every weight read."""
    _, long = _speed("sdpa", GPU, Workload(prompt_tokens=512))
    attention = 32 * 4 * 512 * 32 * 128
    assert long.limit == pytest.approx(
        512 * 71e12 / (512 * (2 * LLAMA_BLOCKS + attention) + 2 * LLAMA_HEAD)
    )
    _, short = _speed("sdpa", GPU, Workload(prompt_tokens=4))
    weights = 2 * (LLAMA_BLOCKS + LLAMA_HEAD + LLAMA_NORMS)
    assert short.limit == pytest.approx(4 * 936e9 / weights, rel=1e-4)


def test_a_chunked_prefill_reads_the_weights_once_a_chunk() -> None:
    """Where bandwidth binds, four chunks take four times as long as one pass."""
    part = replace(GPU, flops=1e18)
    _, whole = _speed("sdpa", part, Workload(prompt_tokens=64))
    _, chunked = _speed("sdpa", part, Workload(prompt_tokens=64, prefill_chunk=16))
    assert whole.limit is not None and chunked.limit is not None
    assert whole.limit / chunked.limit == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("hardware", [GPU, CPU], ids=["gpu", "cpu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_prediction_is_a_range_below_the_limit_with_its_basis(
    backend: str, hardware: Hardware
) -> None:
    """By stated defaults no rate, not even the fastest, passes what the hardware allows."""
    for rate in _speed(backend, hardware):
        assert rate.limit is not None
        assert 0 < rate.low < rate.estimate < rate.high <= rate.limit
        assert rate.basis.startswith("stated default, after ")


def test_a_guessed_bandwidth_bounds_nothing() -> None:
    """Where nobody measured the RAM, a machine may be faster than its guessed limit."""
    known, _ = _speed("gguf", CPU)
    guessed, _ = _speed("gguf", replace(CPU, assumed=True))
    assert known.limit == guessed.limit and known.estimate == guessed.estimate
    assert known.high <= known.limit < guessed.high


def test_smaller_formats_decode_faster_where_bandwidth_binds() -> None:
    """On a CPU, where weights are read slowly, 4 bits before 8 before 16, and less so fast."""
    rates = {backend: _speed(backend, CPU)[0].estimate for backend in BACKENDS}
    assert rates["gguf"] > rates["gptq"] > rates["sdpa"]
    assert rates["nf4"] > rates["sdpa"]
    assert rates["gguf"] < 16 / 4 * rates["sdpa"] * 1.5


def test_what_is_not_known_of_the_hardware_or_the_model_is_none() -> None:
    """No bandwidth: nothing; no arithmetic: no prefill; no shape and no bus's speed: nothing."""
    spec, work = _llama(), Workload()
    unknown = replace(GPU, bandwidth=None)
    assert predict_speed(spec, "sdpa", work, unknown, records=()) == (None, None)
    decode, prefill = predict_speed(spec, "sdpa", work, replace(GPU, flops=None), records=())
    assert decode is not None and prefill is None
    shapeless = replace(spec, shape=None)
    assert predict_speed(shapeless, "sdpa", work, GPU, records=()) == (None, None)
    assert predict_speed(spec, "offload", work, GPU, records=()) == (None, None)


# ---------------------------------------------------------------- measured rows


def _measured(backend: str, rate: float, *, batch: int = 1) -> tuple[Plan, Environment]:
    plan = Plan(backend=backend, model=_llama(), device="cuda", workload=Workload(batch=batch))
    machine = Environment(
        platform="Linux", python="3.12", cpu="a CPU", cpu_cores=8, ram_bytes=1 << 35,
        gpu="a GPU", cpu_bandwidth=40e9, gpu_bandwidth=860e9,
    )  # fmt: skip
    return plan, machine


@pytest.mark.parametrize("batch", [1, 4])
def test_a_measured_row_has_its_limit_and_the_share_reached(batch: int) -> None:
    """Limit: batch × measured bandwidth ÷ bytes of a step; share: the median rate over it."""
    plan, machine = _measured("sdpa", 40.0, batch=batch)
    record = make_record("sdpa", tokens_per_s=40.0, plan=plan)
    roofline = attach_roofline(record, machine).roofline
    shared = 2 * (LLAMA_BLOCKS + LLAMA_HEAD + LLAMA_NORMS)
    own = batch * (2 * 4096 + 576 * KV_BYTES_PER_TOKEN)
    assert roofline.limit_tokens_per_s == pytest.approx(batch * 860e9 / (shared + own))
    assert roofline.limit_tokens_per_s is not None
    assert roofline.fraction == pytest.approx(40.0 / roofline.limit_tokens_per_s)


def test_a_rate_beyond_the_memorys_has_a_note() -> None:
    """A tiny model decodes out of a cache; a row within the limit has no such note."""
    plan, machine = _measured("sdpa", 40.0)
    slow = attach_roofline(make_record("sdpa", tokens_per_s=40.0, plan=plan), machine)
    fast = attach_roofline(make_record("sdpa", tokens_per_s=400.0, plan=plan), machine)
    assert slow.roofline.fraction is not None and slow.roofline.fraction < 1 and not slow.notes
    assert fast.roofline.fraction is not None and fast.roofline.fraction > 1
    assert any("stays in the caches" in note for note in fast.notes)


def test_a_row_is_held_against_the_memory_that_it_ran_in() -> None:
    """A row on the CPU has the RAM's limit, also where the machine has a GPU."""
    plan, machine = _measured("gguf", 8.0)
    plan = replace(plan, device="cpu")
    record = make_record("gguf", tokens_per_s=8.0, device="cpu", plan=plan)
    on_cpu = attach_roofline(record, machine).roofline.limit_tokens_per_s
    without_gpu = replace(machine, gpu=None, gpu_bandwidth=None)
    assert on_cpu == attach_roofline(record, without_gpu).roofline.limit_tokens_per_s
    assert on_cpu is not None and 40e9 / 5.5e9 < on_cpu < 40e9 / 4.5e9  # Q4_K_M: some 4.7 GB read


def test_a_row_without_a_measurement_stays_as_it_is() -> None:
    """Nothing timed, no bandwidth measured, or no plan in the record: no limit, and no 0."""
    plan, machine = _measured("sdpa", 40.0)
    unmeasured = replace(machine, gpu_bandwidth=None)
    for record, where in (
        (make_record("sdpa", plan=plan, decode=None), machine),
        (make_record("sdpa", plan=plan), unmeasured),
        (make_record("sdpa"), machine),
    ):
        assert attach_roofline(record, where) == record
        assert record.roofline.limit_tokens_per_s is None
