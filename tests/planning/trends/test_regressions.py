"""What stands as a regression, with its cause: on records whose change is put there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.planning.trends.causes import NOTHING, likely_causes
from llmfit.planning.trends.figures import BETTER, figures_of
from llmfit.planning.trends.regressions import STATUS, regressions
from llmfit.records import (
    Environment,
    Kernel,
    MeasurementWarning,
    Plan,
    RunRecord,
    TaskMetric,
    TaskResult,
)
from llmfit.testing import make_model, make_record
from llmfit.trend_records import Observation, Outcome, Regression, RowHistory, Series, SeriesKey

HERE = Environment(
    platform="Linux-6.1",
    python="3.12.1",
    cpu="CPU",
    cpu_cores=8,
    ram_bytes=2**35,
    gpu="RTX 4090",
    gpu_memory_bytes=24 * 2**30,
    cuda="13.0",
    driver="580.10",
    packages={"torch": "2.13.0"},
)


def run(metric: str, records: list[RunRecord]) -> tuple[Regression, ...]:
    """Regressions of one metric over ``records``, a night each."""
    key = SeriesKey(machine="m", model="x", backend="nf4", settings="s", metric=metric)
    points = []
    for index, record in enumerate(records):
        figure = next(f for f in figures_of(record) if f.metric == metric)
        points.append(
            Observation(
                run_id=str(index),
                started_at=f"2026-01-{index + 1:02d}",
                value=figure.value,
                low=figure.low,
                high=figure.high,
            )
        )
    series = Series(key=key, label="NF4", better=BETTER[metric], points=tuple(points))
    return regressions([series], [], lambda run_id, backend: records[int(run_id)])


def rate(value: float, **changes: object) -> RunRecord:
    """A row of that speed."""
    return make_record("nf4", tokens_per_s=value, environment=HERE, **changes)  # type: ignore[arg-type]


def test_a_step_for_the_worse_names_its_runs_and_cause() -> None:
    """From the fourth night on, with a newer driver."""
    newer = replace(HERE, driver="590.2")
    slow = [replace(rate(30), environment=newer) for _ in range(3)]
    (found,) = run("decode.tokens_per_s", [rate(40), rate(40), rate(40), *slow])
    assert (found.good_run, found.since_run) == ("2", "3")
    assert found.change == pytest.approx(-0.25)
    assert found.causes == ("driver 580.10 → 590.2",)


def test_what_recovered_is_no_regression() -> None:
    """Nor what became better."""
    assert run("decode.tokens_per_s", [rate(v) for v in (40, 40, 30, 30, 40, 40)]) == ()
    assert run("decode.tokens_per_s", [rate(v) for v in (30, 30, 40, 40)]) == ()


def test_a_recovery_in_part_leaves_it_standing() -> None:
    """40, then 20, then 30: still a quarter below, since the first slow night."""
    (found,) = run("decode.tokens_per_s", [rate(v) for v in (40, 40, 40, 20, 20, 20, 30, 30, 30)])
    assert found.since_run == "3" and found.change == pytest.approx(-0.25)


def test_a_standing_regression_stays_one_every_night() -> None:
    """The tenth slow night is as red as the first."""
    (found,) = run("decode.tokens_per_s", [rate(v) for v in (40, 40, 40, *[30] * 10)])
    assert found.since_run == "3"


def test_quality_on_the_same_items_is_judged_by_pairs() -> None:
    """One answer of 30 turned is 3 points and 4 %; six turned are more than chance."""
    base = make_record("nf4", acc_norm=0.8, n=30)
    one, many = (
        make_record("nf4", acc_norm=23 / 30, n=30),
        make_record("nf4", acc_norm=14 / 30, n=30),
    )
    two = make_record("nf4", acc_norm=22 / 30, n=30)
    assert run("hellaswag.acc_norm", [base, one]) == ()
    assert run("hellaswag.acc_norm", [base, two]) == ()  # 8 % less, and a tie all the same
    assert len(run("hellaswag.acc_norm", [base, many])) == 1


def test_a_pair_of_one_figure_says_nothing_of_another() -> None:
    """acc falls from 80 to 50 % where acc_norm, whose answers are kept, stays."""
    before = make_record("nf4", acc_norm=0.8, n=1000)
    assert before.hellaswag is not None
    after = replace(before, hellaswag=replace(before.hellaswag, acc=0.5))
    (found,) = run("hellaswag.acc", [before, after])
    assert (found.before, found.after) == (0.8, 0.5)
    assert run("hellaswag.acc_norm", [before, after]) == ()


def test_a_row_that_ran_and_does_not_any_more() -> None:
    """Its figures are not judged beside it; a row that was skipped tells nothing."""
    key = SeriesKey(machine="m", model="x", backend="nf4", settings="s", metric=STATUS)
    good = Outcome(run_id="0", started_at="1", status="ok")
    bad = Outcome(run_id="1", started_at="2", status="failed", reason="no kernel")
    skipped = Outcome(run_id="2", started_at="3", status="skipped", reason="interrupted")
    records = {"0": rate(40), "1": replace(rate(1), status="failed")}

    def judged(*outcomes: Outcome) -> tuple[Regression, ...]:
        row = RowHistory(key=key, label="NF4", outcomes=outcomes)
        return regressions([], [row], lambda run_id, backend: records.get(run_id))

    (found,) = judged(good, bad)
    assert (found.since_run, found.good_run, found.reason) == ("1", "0", "no kernel")
    assert found.change is None and found.status == "failed"
    (found,) = judged(good, bad, skipped)
    assert found.since_run == "1"
    assert judged(good, skipped) == judged(bad) == judged(bad, good) == ()


# ---------------------------------------------------------------- causes


def causes(**changes: object) -> tuple[str, ...]:
    """Of a row whose fields change so."""
    return likely_causes(rate(40), replace(rate(30), **changes))  # type: ignore[arg-type]


def test_causes_are_what_changed() -> None:
    """Model, kernel, hardware, versions, the state of the machine; else that nothing did."""
    assert causes() == (NOTHING,)
    card = replace(HERE, gpu="RTX 3090", packages={"torch": "2.14.0"})
    assert causes(environment=card) == ("gpu RTX 4090 → RTX 3090", "torch 2.13.0 → 2.14.0")
    slow = replace(HERE, cpu_bandwidth=20e9)
    fast = replace(HERE, cpu_bandwidth=30e9)
    before = replace(rate(40), environment=fast)
    (told,) = likely_causes(before, replace(before, environment=slow))
    assert "bandwidth" in told and "30.0 → 20.0 GB/s" in told
    assert likely_causes(
        before, replace(before, environment=replace(HERE, cpu_bandwidth=29e9))
    ) == (NOTHING,)
    assert causes(kernel=Kernel(linear="Linear4bit", attention="sdpa")) == (
        "linear kernel Linear → Linear4bit",
    )
    hot = MeasurementWarning(code="throttled", message="the GPU was at 95 °C", hint="cool it")
    assert causes(warnings=(hot,)) == ("throttled: the GPU was at 95 °C",)


def test_changed_files_come_first() -> None:
    """By their hashes, and without their paths."""
    old = Plan(backend="nf4", model=make_model(content_hash="a" * 20), device="cuda")
    new = replace(old, model=make_model(content_hash="b" * 20), inputs={"/home/me/x": "1"})
    newer = replace(HERE, driver="590.2")
    found = likely_causes(rate(40, plan=old), replace(rate(30, plan=new), environment=newer))
    assert found[0] == "the model's files changed (aaaaaaaa → bbbbbbbb)"
    assert found[1] == "other input files changed" and found[2].startswith("driver")
    assert "/home" not in " ".join(found)


def test_every_figure_has_its_direction_and_interval() -> None:
    """Of a row with all kinds of them; a task's direction is lm-eval's."""
    metric = TaskMetric(name="acc", filter="none", value=0.5, stderr=0.1, higher_is_better=True)
    blind = TaskMetric(name="alias", filter="none", value=1.0)
    task = TaskResult(task="arc", version="1", n=10, num_fewshot=0, metrics=(metric, blind))
    found = {f.metric: f for f in figures_of(rate(40, kl_divergence=0.01, tasks=(task,)))}
    assert found["tasks.arc.acc,none"].better == "higher"
    assert found["tasks.arc.acc,none"].low == pytest.approx(0.5 - 0.196, abs=1e-3)
    assert "tasks.arc.alias,none" not in found
    assert {"decode.tokens_per_s", "ttft_s", "kl_divergence", "top1_agreement"} <= found.keys()
    assert figures_of(replace(rate(40), status="failed")) == ()
