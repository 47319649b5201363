"""The path to a memory target: what is run, what is not, and what then decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.comparison import compare
from llmfit.errors import UsageError
from llmfit.keeping import Keeping
from llmfit.path import Measuring, find_path
from llmfit.planning.advice.ladder import Rung, ladder
from llmfit.records import RunRecord, Workload
from llmfit.testing import make_record

pytestmark = pytest.mark.usefixtures("imported_once")
SHORT = Workload(prompt_tokens=16, new_tokens=4, repeats=1, warmup=0)


@pytest.mark.parametrize("target_gb", [0, -8, float("nan"), float("inf"), 1e305])
def test_a_target_that_cannot_be_meant(target_gb: float) -> None:
    """It is a usage error with the value."""
    with pytest.raises(
        UsageError, match="to_gb must be a number of GB above 0, at most 1,000,000, not"
    ):
        find_path("llama-3.1-8b", to_gb=target_gb)


def test_a_path_without_measuring_is_the_ladder_as_far_as_needed() -> None:
    """Nothing is run: the rungs are the ladder's down to the first that is predicted to fit."""
    path = find_path("llama-3.1-8b", to_gb=12, device="cuda")
    assert path.reached and not path.measured
    rungs = ladder(path.model, path.rungs[0].workload, "cuda", path.target_bytes)
    assert path.rungs == rungs[: len(path.rungs)]
    assert [rung.fits for rung in path.rungs] == [False, False, False, True]
    assert all(rung.status is None and rung.measured_bytes is None for rung in path.rungs)


def test_a_context_stands_for_the_workload() -> None:
    """With a context the prompt fills it but for the new tokens."""
    work = find_path("llama-3.1-8b", to_gb=40, device="cuda", context=8192).rungs[0].workload
    assert work.prompt_tokens + work.new_tokens == 8192


def test_weights_that_are_not_here_are_not_measured() -> None:
    """The error names the way that needs none, before anything is run."""
    with pytest.raises(UsageError, match="--weights synthetic"):
        find_path("llama-3.1-8b", to_gb=12, device="cpu", measuring=Measuring())


@pytest.mark.slow
def test_rungs_that_run_beyond_the_target_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is predicted not to fit runs without the budget, to show what it takes."""
    import llmfit.path

    monkeypatch.setattr(llmfit.path, "ladder", lambda *asked: ladder(*asked)[:3])
    path = find_path(
        None,
        to_gb=0.02,
        workload=SHORT,
        device="cpu",
        measuring=Measuring(threads=1, keeping=Keeping(runs_dir=str(tmp_path)), time_limit_s=200),
    )
    assert not path.reached and "nothing here fits 20.0 MB" in path.notes[-1]
    for rung in path.rungs[1:]:
        assert rung.status == "ok" and rung.fits is False
        assert rung.measured_total_bytes is not None
        assert rung.measured_total_bytes > path.target_bytes


@pytest.mark.slow
def test_a_comparison_of_one_rung_adds_no_row(tmp_path: Path) -> None:
    """Where the row does not fit, offloaded weights are not tried unless they are asked for."""
    comparison = compare(
        backends=("sdpa",),
        workload=SHORT,
        evaluation=None,
        ram_gb=0.02,
        device="cpu",
        keeping=Keeping(runs_dir=str(tmp_path)),
        last_resort=False,
    )
    assert [(row.backend, row.status) for row in comparison.rows] == [("sdpa", "does_not_fit")]


def test_only_rungs_that_this_machine_can_hold_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model larger than the machine is not tried: the reason has both sizes, and no row runs."""
    import llmfit.path

    here = llmfit.path.detect_cpu()
    monkeypatch.setattr(llmfit.path, "detect_cpu", lambda: replace(here, memory_bytes=10**9))
    path = find_path(
        "llama-3.3-70b", to_gb=0.9, device="cpu", measuring=Measuring(weights="synthetic")
    )
    assert not path.reached
    for rung in path.rungs[1:]:
        assert rung.status is None and "this machine has 1.00 GB" in (rung.measured_reason or "")


def test_a_rung_that_did_not_run_is_not_said_to_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A package that is missing says nothing of memory; the last note names what is not known."""
    import llmfit.path

    def run(model: str | None, rung: Rung, *_: object) -> RunRecord:
        record = make_record(str(rung.backend), device="cpu", peak_gb=20)
        if rung.backend != "nf4":
            return record
        return replace(record, status="unavailable", reason="bitsandbytes is missing")

    monkeypatch.setattr(llmfit.path, "_run", run)
    path = find_path(
        "llama-3.2-1b", to_gb=1.2, device="cpu", measuring=Measuring(weights="synthetic")
    )
    fits = {rung.backend: rung.fits for rung in path.rungs if rung.status is not None}
    assert fits.pop("nf4") is None and set(fits.values()) == {False}
    assert "nothing that ran here fits 1.20 GB" in path.notes[-1]
    assert "NF4 did not run" in path.notes[-1]
