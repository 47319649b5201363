"""Rows that do not fit say what to change; where none fits, an offloaded one is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmfit.backends.registry import get_backend
from llmfit.comparison import compare
from llmfit.job import nothing_fits
from llmfit.keeping import Keeping
from llmfit.models import data_path, resolve
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Environment, ModelSpec, Plan, RunRecord, Status, Workload
from llmfit.row import _too_large
from llmfit.testing import make_record

pytestmark = pytest.mark.usefixtures("imported_once")
QUICK = Workload(prompt_tokens=16, new_tokens=12, repeats=2)
MACHINE = Environment(platform="Linux", python="3.11", cpu="CPU", cpu_cores=2, ram_bytes=16 * 10**9)


def plan_of(spec: ModelSpec, backend: str, **changes: object) -> Plan:
    """A plan on the CPU."""
    return replace(Plan(backend=backend, model=spec, device="cpu"), **changes)  # type: ignore[arg-type]


def judged(plan: Plan, machine: Environment = MACHINE) -> str | None:
    """Why the row is not tried."""
    return _too_large(plan, machine, on_gpu="cuda" in get_backend(plan.backend).devices)


def test_a_ram_budget_counts_the_interpreter(embedded: ModelSpec) -> None:
    """10 MB of weights need half a GB: what is far below is not tried, a near miss is."""
    need = predict_memory(embedded, "sdpa", Workload(), "cpu")
    assert need is not None and need.total_bytes > 450 * 10**6
    for share, tried in ((1.0, True), (0.97, True), (0.9, False)):
        budget = int(need.total_bytes * share)
        reason = judged(plan_of(embedded, "sdpa", ram_budget_bytes=budget))
        assert (reason is None) is tried, reason
    assert "of RAM, the budget is" in str(reason) and "Try: " in str(reason)


def test_the_machine_s_ram_is_a_limit_without_a_budget(embedded: ModelSpec) -> None:
    """What the machine does not have is not tried, however near."""
    small = replace(MACHINE, ram_bytes=100_000_000)
    assert "this machine has 100 MB" in str(judged(plan_of(embedded, "sdpa"), small))
    assert judged(plan_of(embedded, "sdpa")) is None
    assert judged(plan_of(embedded, "offload"), small) is None


def test_a_gpu_budget_binds_what_could_run_on_a_gpu(embedded: ModelSpec) -> None:
    """1 MB of GPU memory rules bf16 out, with the way to the CPU's row, and lets that one be."""
    reason = judged(plan_of(embedded, "bf16", budget_bytes=10**6))
    assert "the budget is 1.00 MB" in str(reason)
    assert "Try: --backends gguf, on the CPU" in str(reason)
    assert judged(plan_of(embedded, "gguf", budget_bytes=10**6)) is None


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("does_not_fit", "does_not_fit"), True),
        (("does_not_fit", "unavailable", "skipped", "failed"), True),
        (("does_not_fit", "ok"), False),
        (("unavailable", "skipped"), False),
    ],
)
def test_nothing_fits_only_where_no_row_runs(statuses: tuple[Status, ...], expected: bool) -> None:
    """Rows that cannot run here do not count; one that ran is enough."""
    rows = [replace(make_record("nf4"), status=status) for status in statuses]
    assert nothing_fits(rows) is expected
    assert not nothing_fits([*rows, replace(make_record("offload"), status="does_not_fit")])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """300 MB of random bf16 weights: more than the budget below leaves beside the interpreter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=4, vocab_size=2048, max_position_embeddings=256,
        tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("large") / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(folder)
    return resolve(str(folder))


def run(spec: ModelSpec, folder: Path, ram_gb: float | None) -> tuple[RunRecord, ...]:
    """The sdpa row, and what is added to it."""
    return compare(
        spec.path, backends=["sdpa"], workload=QUICK, evaluation=None, ram_gb=ram_gb, threads=1,
        keeping=Keeping(runs_dir=str(folder)), cache_dir=str(folder / "cache"),
    ).rows  # fmt: skip


def held_bytes(record: RunRecord) -> int:
    """The whole worker's peak, as the kernel tells."""
    assert record.memory is not None
    assert record.memory.idle_ram_bytes is not None and record.memory.peak_ram_bytes is not None
    return record.memory.idle_ram_bytes + record.memory.peak_ram_bytes


@pytest.mark.slow
def test_where_nothing_fits_offloaded_weights_run(large: ModelSpec, tmp_path: Path) -> None:
    """Half of the weights' room: sdpa does not fit, offload decodes inside the budget."""
    (whole,) = run(large, tmp_path, None)
    assert whole.status == "ok" and whole.memory is not None, whole.reason
    assert whole.memory.idle_ram_bytes is not None and whole.memory.peak_ram_bytes is not None
    budget = whole.memory.idle_ram_bytes + whole.memory.peak_ram_bytes // 2 + 60_000_000
    sdpa, offload = run(large, tmp_path, budget / 1e9)
    assert sdpa.status == "does_not_fit" and "Try: " in str(sdpa.reason)
    assert offload.backend == "offload" and offload.status == "ok", offload.reason
    assert held_bytes(offload) <= budget < held_bytes(whole)
    assert offload.decode is not None and offload.decode.tokens_per_s.median > 0
    assert any("added as nothing else fits" in note for note in offload.notes)
    assert any("on disk" in note for note in offload.notes)
    assert offload.plan is not None and offload.plan.offload_dir is not None
    assert not Path(offload.plan.offload_dir).exists()
