"""Measured rates in the place of stated efficiencies: whose, in what order, and what they tell."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmfit.models import resolve
from llmfit.planning.speed import calibration
from llmfit.planning.speed.calibration import (
    Sample,
    calibrated,
    fitted,
    measured_bandwidth,
    with_bandwidth,
)
from llmfit.planning.speed.efficiency import Cost, seconds, stated
from llmfit.planning.speed.published import PublishedRate
from llmfit.planning.speed.roofline import predict_speed
from llmfit.planning.speed.work import Work, decode_work, prefill_work
from llmfit.records import (
    Device,
    Environment,
    Hardware,
    MeasurementWarning,
    ModelSpec,
    Plan,
    Prefill,
    RunRecord,
    SpeedPrediction,
    Workload,
)
from llmfit.stats import sampled
from llmfit.testing import make_record

CPU = Hardware(
    name="Example CPU", kind="cpu", memory_bytes=32 << 30, bandwidth=40e9, flops=1e12,
    source="data sheet",
)  # fmt: skip
GPU = Hardware(
    name="NVIDIA GeForce RTX 3090", kind="gpu", memory_bytes=24 << 30, bandwidth=936e9, flops=71e12,
    source="data sheet",
)  # fmt: skip
LARGE, SMALL = "meta-llama/Llama-3.1-8B", None
WORKLOAD = Workload(prompt_tokens=128, new_tokens=64)


def _spec(model: str | None = LARGE) -> ModelSpec:
    return resolve(model, weights=False)


def _machine(**changes: Any) -> Environment:
    machine = Environment(
        platform="Linux", python="3.12.1", cpu=CPU.name, cpu_cores=8, ram_bytes=32 << 30
    )
    return replace(machine, **changes)


def _record(
    backend: str,
    tokens_per_s: float,
    *,
    model: str | None = LARGE,
    device: Device = "cpu",
    workload: Workload = WORKLOAD,
    prefill: float | None = None,
    machine: Environment | None = None,
    plan: dict[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """A measured row of ``model`` on the example machine, every sample the same."""
    asked = Plan(backend=backend, model=_spec(model), device=device, workload=workload)
    record = make_record(backend, tokens_per_s=tokens_per_s, spread=0.0, device=device)
    if prefill is not None:
        changes["prefill"] = Prefill(tokens_per_s=sampled([prefill] * 5))
    return replace(
        record,
        plan=replace(asked, **(plan or {})),
        environment=machine or _machine(),
        **changes,
    )


def _decode(
    records: list[RunRecord],
    *,
    backend: str = "sdpa",
    model: str | None = LARGE,
    hardware: Hardware = CPU,
    workload: Workload = WORKLOAD,
    **options: Any,
) -> SpeedPrediction:
    decode, _ = predict_speed(_spec(model), backend, workload, hardware, records=records, **options)
    assert decode is not None
    return decode


# ---------------------------------------------------------------- what a record tells


@pytest.mark.parametrize("model", [LARGE, SMALL])
@pytest.mark.parametrize("rate", [0.3, 1.7, 25.0, 900.0])
def test_a_row_that_was_measured_is_predicted_as_it_was(model: str | None, rate: float) -> None:
    """The same model, format and workload again: the record's own decode and prefill rates, with
    a tenth on either side, and the record named as the basis."""
    records = [_record("sdpa", rate, model=model, prefill=30 * rate)]
    decode, prefill = predict_speed(_spec(model), "sdpa", WORKLOAD, CPU, records=records)
    assert decode is not None and prefill is not None
    assert decode.estimate == pytest.approx(rate)
    assert (decode.low, decode.high) == pytest.approx((rate / 1.1, rate * 1.1))
    assert prefill.estimate == pytest.approx(30 * rate)
    assert decode.basis == "own records: 1 row of sdpa on this machine"


def test_several_records_give_their_median_and_their_range() -> None:
    """Three runs of the same row: the middle one is expected, slowest and fastest bound it."""
    decode = _decode([_record("sdpa", rate) for rate in (2.0, 1.0, 1.5)])
    assert decode.estimate == pytest.approx(1.5)
    assert (decode.low, decode.high) == pytest.approx((1.0 / 1.1, 2.0 * 1.1))
    assert decode.basis == "own records: 3 rows of sdpa on this machine"


def test_repeats_that_differed_widen_the_range() -> None:
    """A row whose repeats lay between half and one and a half of its median says no more."""
    rates = sampled([1.0, 0.5, 1.5])
    wide = replace(rates, low=0.5, high=1.5)
    record = _record("sdpa", 1.0)
    assert record.decode is not None
    decode = _decode([replace(record, decode=replace(record.decode, tokens_per_s=wide))])
    assert (decode.low, decode.estimate, decode.high) == pytest.approx((0.5, 1.0, 1.5))


def test_a_large_model_tells_the_share_of_the_bandwidth() -> None:
    """A row of 8 B parameters that reaches a third of the limit says the same of 70 B."""
    waiting = stated("sdpa", CPU, None).estimate.layer_s
    large = decode_work(_spec(), "sdpa", WORKLOAD)
    huge = decode_work(_spec("meta-llama/Llama-3.1-70B"), "sdpa", WORKLOAD)
    assert large is not None and huge is not None and CPU.bandwidth is not None
    taken = 3 * large.read_bytes / CPU.bandwidth + 32 * waiting
    decode = _decode([_record("sdpa", 1 / taken)], model="meta-llama/Llama-3.1-70B")
    assert 1 / decode.estimate == pytest.approx(3 * huge.read_bytes / CPU.bandwidth + 80 * waiting)


def test_a_small_model_tells_nothing_of_the_bandwidth() -> None:
    """Half the default's rate of the embedded model is laid to its 6 layers' waiting: 8 B
    parameters lose 32 times as much a layer, not half of their rate, and the basis says on what
    the rest stands."""
    plain, small = _decode([]), _decode([], model=SMALL)
    slow = _record("sdpa", small.estimate / 2, model=SMALL)
    decode = _decode([slow])
    lost = 32 * (1 / (small.estimate / 2) - 1 / small.estimate) / 6
    assert 1 / decode.estimate == pytest.approx(1 / plain.estimate + lost)
    own = "own records: 1 row of sdpa on this machine, otherwise bound"
    assert decode.basis == f"{own}; {plain.basis}"
    assert decode.low <= plain.low and decode.high >= plain.high


def test_a_model_that_sat_in_caches_tells_nothing_of_another() -> None:
    """Decoded faster than memory allows: its own rate is known by that, and no larger one's."""
    work = decode_work(_spec(SMALL), "sdpa", WORKLOAD)
    assert work is not None and CPU.bandwidth is not None
    rate = 1.5 * CPU.bandwidth / work.read_bytes
    record = _record("sdpa", rate, model=SMALL)
    assert _decode([record]) == _decode([])
    assert _decode([record], model=SMALL).estimate == pytest.approx(rate)


def test_the_bandwidth_of_the_hour_is_taken_out() -> None:
    """Rates that went with the machine's bandwidth, 30 then 45 GB/s, tell one and the same share:
    the prediction at the median bandwidth has no spread beyond the margin."""
    waiting = 32 * stated("sdpa", CPU, None).estimate.layer_s
    work = decode_work(_spec(), "sdpa", WORKLOAD)
    assert work is not None

    def at(bandwidth: float) -> RunRecord:
        taken = work.read_bytes / (0.8 * bandwidth) + waiting
        return _record("sdpa", 1 / taken, machine=_machine(cpu_bandwidth=bandwidth))

    decode = _decode([at(30e9), at(45e9)])
    expected = 1 / (work.read_bytes / (0.8 * 37.5e9) + waiting)
    assert decode.estimate == pytest.approx(expected)
    assert (decode.low, decode.high) == pytest.approx((expected / 1.1, expected * 1.1))


def test_other_models_widen_the_range() -> None:
    """A quarter on either side where the records are of other models than the one asked for."""
    decode = _decode([_record("sdpa", 1.5, model="Qwen/Qwen2.5-7B-Instruct")])
    assert decode.high / decode.estimate == pytest.approx(1.25)
    assert decode.estimate / decode.low == pytest.approx(1.25)


# ---------------------------------------------------------------- whose records count


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": _machine(cpu="Another CPU")},
        {"device": "cuda", "machine": _machine(gpu="NVIDIA GeForce RTX 3090")},
        {"plan": {"kv_cache_dtype": "q8_0"}},
        {"plan": {"threads": 1}},
        {"plan": {"gpus": 2}},
        {"plan": {"gpus": 2, "split": "tensor"}},
        {"decode": None},
        {"plan": {"model": replace(_spec(), shape=None)}},
    ],
    ids=[
        "other CPU",
        "on the GPU",
        "other KV cache",
        "one thread",
        "two GPUs",
        "halves",
        "not timed",
        "no shape",
    ],
)
def test_records_of_something_else_are_left_out(changes: dict[str, Any]) -> None:
    """The prediction is the stated default's, word for word."""
    assert _decode([_record("sdpa", 0.1, **changes)]) == _decode([])


def test_records_of_another_format_are_left_out() -> None:
    """What bf16 reached is not held for what nf4 would."""
    assert _decode([_record("bf16", 0.1)], backend="nf4") == _decode([], backend="nf4")


def test_types_of_a_format_stand_in_for_one_another() -> None:
    """Without a row of q3_k_m one of q4_k_m serves, and is named; with one it does not count."""
    other, same = _record("gguf:q4_k_m", 6.0), _record("gguf:q3_k_m", 8.0)
    stood_in = _decode([other], backend="gguf:q3_k_m")
    assert stood_in.basis == "own records: 1 row of gguf:q4_k_m on this machine"
    assert _decode([other, same], backend="gguf:q3_k_m").estimate == pytest.approx(8.0)


def test_a_row_of_a_busy_machine_counts_only_where_there_is_no_other() -> None:
    """A rate that its own warnings put in doubt gives way to one without."""
    doubt = MeasurementWarning(code="busy_cpu", message="busy", hint="wait")
    busy, calm = _record("sdpa", 0.5, warnings=(doubt,)), _record("sdpa", 1.5)
    assert _decode([busy, calm]).estimate == pytest.approx(1.5)
    alone, plain = _decode([busy]), _decode([])
    assert alone.estimate == pytest.approx(0.5)
    assert (alone.low, alone.high) == pytest.approx((0.5 / 1.1, plain.high))
    assert alone.basis == (
        f"own records: 1 row of sdpa on this machine while it was busy; {plain.basis}"
    )


def test_the_newest_records_count() -> None:
    """Of ten records the eight newest: the two last ones of the list do not widen the range."""
    newest = [_record("sdpa", 1.5)] * 8
    assert _decode([*newest, _record("sdpa", 0.2), _record("sdpa", 9.0)]) == _decode(newest)


def test_a_gpus_records_are_found_by_its_drivers_name() -> None:
    """The driver says NVIDIA GeForce RTX 3090 and the table of parts may say it its own way."""
    from llmfit.planning.speed.hardware import find_gpu

    card = find_gpu("RTX 3090")
    record = _record("nf4", 33.0, device="cuda", machine=_machine(gpu="NVIDIA GeForce RTX 3090"))
    decode = _decode([record], backend="nf4", hardware=card)
    assert decode.estimate == pytest.approx(33.0)
    assert decode.basis == "own records: 1 row of nf4 on this machine"


def test_the_measured_bandwidth_takes_the_place_of_the_data_sheets() -> None:
    """The median over this part's records; other parts' and none leave it as it is, and what was
    measured just now stays."""
    machines = [_machine(cpu_bandwidth=value) for value in (30e9, 36e9, 33e9)]
    records = [_record("sdpa", 1.0, machine=machine) for machine in machines]
    guess = replace(CPU, source="expected of 8 cores", assumed=True)
    found = measured_bandwidth(guess, records)
    assert found == with_bandwidth(CPU, 33e9)
    assert (found.bandwidth, found.assumed) == (33e9, False)
    assert "measured" in found.source
    doubt = MeasurementWarning(code="busy_cpu", message="busy", hint="wait")
    busy = _record("sdpa", 1.0, machine=_machine(cpu_bandwidth=5e9), warnings=(doubt,))
    assert measured_bandwidth(guess, [busy, *records, *records[:1] * 9]).bandwidth == 33e9
    assert measured_bandwidth(guess, [busy]).bandwidth == 5e9
    just_now = with_bandwidth(guess, 20e9)
    assert measured_bandwidth(just_now, records) == just_now
    assert measured_bandwidth(GPU, records) == GPU
    assert measured_bandwidth(guess, []) == guess


# ---------------------------------------------------------------- published figures


def _publish(monkeypatch: pytest.MonkeyPatch, *rates: float, one_graph: bool = True) -> None:
    """Let these decode rates of Llama-3.1-8B be all that was published."""
    table = tuple(
        PublishedRate(
            hardware=GPU.name, backend="sdpa", model=LARGE, tokens_per_s=rate,
            engine="an engine", one_graph=one_graph, source="a report",
        )
        for rate in rates
    )  # fmt: skip
    found = {(GPU.name, "sdpa", one_graph): table}

    def published(hardware: str, backend: str, *, one_graph: bool) -> tuple[PublishedRate, ...]:
        return found.get((hardware, backend, one_graph), ())

    monkeypatch.setattr(calibration, "published", published)


def test_figures_of_engines_that_launch_each_kernel_are_of_rows_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They say nothing of a step that is one graph, and all of layers on several GPUs."""
    _publish(monkeypatch, 20.0, one_graph=False)
    assert _decode([], hardware=GPU, workload=Workload()).basis.startswith("stated default")
    spread = _decode([], hardware=GPU, workload=Workload(), gpus=2)
    assert spread.estimate == pytest.approx(20.0)


def test_own_records_come_before_published_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then published ones, then the default; each basis says which it is."""
    _publish(monkeypatch, 50.0)
    own = _record("sdpa", 40.0, device="cuda", machine=_machine(gpu=GPU.name))
    first = _decode([own], hardware=GPU)
    second = _decode([], hardware=GPU, workload=Workload())
    third = _decode([], hardware=replace(GPU, name="another card"), backend="awq")
    assert first.estimate == pytest.approx(40.0)
    assert first.basis.startswith("own records: 1 row of sdpa")
    assert second.estimate == pytest.approx(50.0)
    assert second.basis == "published for this GPU: Llama-3.1-8B by an engine"
    assert third.basis.startswith("stated default")


def test_a_published_figure_that_the_card_cannot_reach_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """68 tokens/s of 8 B parameters in 16 bits would read 1,020 GB/s of the RTX 3090's 936."""
    plain = _decode([], hardware=GPU)
    _publish(monkeypatch, 68.0)
    decode = _decode([], hardware=GPU)
    assert decode.basis.startswith("stated default")
    assert decode.limit is not None and decode.limit < 68.0
    _publish(monkeypatch)
    assert decode == _decode([], hardware=GPU)
    assert plain.limit == decode.limit


def test_plain_attention_goes_by_what_was_published_of_fused_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bf16 without a figure of its own takes that of sdpa; a 4-bit format does not."""
    _publish(monkeypatch, 50.0)
    plain = _decode([], backend="bf16", hardware=GPU, workload=Workload())
    assert plain.estimate == pytest.approx(50.0)
    assert _decode([], backend="nf4", hardware=GPU).basis.startswith("stated default")


def test_no_range_goes_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 tokens/s of a card that allows 62 leave no room for a margin above."""
    _publish(monkeypatch, 60.0)
    decode = _decode([], hardware=GPU)
    assert decode.high == decode.limit
    assert decode.low < decode.estimate <= decode.high


# ---------------------------------------------------------------- the arithmetic


def test_a_cost_is_moved_until_it_predicts_the_sample() -> None:
    """Whatever work, part and time: the moved cost predicts the time, and all of it is positive."""
    rng = random.Random(0)
    for _ in range(500):
        work = Work(
            tokens=1,
            read_bytes=10 ** rng.uniform(6, 11),
            detour_bytes=rng.choice([0.0, 10 ** rng.uniform(6, 11)]),
            flops=10 ** rng.uniform(6, 13),
            layer_runs=rng.randint(1, 100),
        )
        part = replace(rng.choice([CPU, GPU]), flops=rng.choice([None, 1e12]))
        start = Cost(
            bandwidth_share=rng.uniform(0.1, 1.0),
            compute_share=rng.uniform(0.1, 1.0),
            layer_s=10 ** rng.uniform(-6, -2),
            adds_up=rng.choice([True, False]),
        )
        taken = 10 ** rng.uniform(-4, 2)
        sample = Sample(work=work, seconds=taken, hardware=part, model="m", label="l", margin=0.1)
        moved = fitted(start, sample)
        assert seconds(work, moved, part) == pytest.approx(taken)
        assert min(moved.bandwidth_share, moved.compute_share, moved.layer_s) > 0


def _labels(used: Sequence[Sample]) -> str:
    return ", ".join(sample.label for sample in used)


def test_samples_decided_as_the_work_is_come_first() -> None:
    """Beside a row that waits, one that reads: for a large model only the latter counts."""
    default = stated("sdpa", CPU, None)
    large = prefill_work(_spec(), "sdpa", WORKLOAD)
    small = prefill_work(_spec(SMALL), "sdpa", Workload(prompt_tokens=1))
    assert large is not None and small is not None
    known = Sample(work=large, seconds=90.0, hardware=CPU, model="large", label="one", margin=0.1)
    strange = Sample(
        work=small, seconds=9.0, hardware=CPU, model="small", label="other", margin=0.1
    )
    both = calibrated(large, [strange, known], default, CPU, _labels)
    assert both == calibrated(large, [known], default, CPU, _labels)
    assert seconds(large, both.estimate, CPU) == pytest.approx(90.0)
    assert both.basis == "one"
