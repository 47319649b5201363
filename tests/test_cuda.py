"""The rows on a GPU: where they run, what they hold, and the memory limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmfit.backends.registry import ON_REQUEST, default_backends, get_backend
from llmfit.comparison import compare
from llmfit.decode.torch_decoder import TorchDecoder
from llmfit.keeping import Keeping
from llmfit.models import resolve
from llmfit.records import EvaluationSettings, ModelSpec, Plan, Workload
from llmfit.runner.isolate import run_isolated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

ROWS = (*default_backends(resolve(None)), *ON_REQUEST)
ON_GPU = [name for name in ROWS if "cuda" in get_backend(name).devices]
QUICK = Workload(prompt_tokens=32, new_tokens=16)


@pytest.mark.parametrize("backend", ON_GPU)
def test_row_runs_on_the_gpu(embedded: ModelSpec, artifact_cache: Path, backend: str) -> None:
    """The row is ok, and its peak is GPU memory that holds at least the weights."""
    row = get_backend(backend)
    if row.missing():
        pytest.skip(f"{backend}: {row.install_hint()}")
    plan = Plan(
        backend=backend,
        model=embedded,
        device="cuda",
        workload=QUICK,
        evaluation=None,
        cache_dir=str(artifact_cache),
    )
    record = run_isolated(plan)
    assert record.status == "ok", record.reason
    assert record.memory is not None and record.memory.device == "cuda"
    if row.gpu_memory == "driver" and record.memory.driver_peak_bytes is None:
        pytest.skip("the driver does not tell here what a process has, as in some containers")
    assert record.weights_bytes is not None and record.memory.peak_bytes is not None
    assert record.memory.peak_bytes >= record.weights_bytes
    assert record.memory.reserved_bytes is not None
    if row.gpu_memory == "torch":
        assert record.memory.reserved_bytes >= record.memory.peak_bytes
    else:
        assert record.memory.driver_peak_bytes is not None
        assert record.memory.peak_bytes < record.memory.driver_peak_bytes
    slower = [note for note in record.notes if note.startswith("decode steps are not")]
    assert not slower or backend in ON_REQUEST, slower
    assert record.kernel is not None
    tried = {"compiled", "int8", "nf4", "gptq", "awq"}
    assert bool(record.kernel.trial_s) == (backend in tried) or backend in ON_REQUEST, record.kernel


def test_the_budget_is_a_hard_limit(embedded: ModelSpec) -> None:
    """A row that needs more than its budget runs out of memory, and says so."""
    plan = Plan(
        backend="sdpa",
        model=embedded,
        device="cuda",
        workload=QUICK,
        evaluation=None,
        budget_bytes=2_000_000,
    )
    record = run_isolated(plan)
    assert record.status == "does_not_fit"
    assert "budget of 2.00 MB" in str(record.reason)


def test_a_row_inside_its_budget_leaves_room_for_the_driver(embedded: ModelSpec) -> None:
    """What the driver gave to the process, context included, is within the budget."""
    plan = Plan(
        backend="sdpa", model=embedded, device="cuda", workload=QUICK, evaluation=None,
        budget_bytes=2_000_000_000,
    )  # fmt: skip
    record = run_isolated(plan)
    assert record.status == "ok", record.reason
    assert record.memory is not None and record.memory.reserved_bytes is not None
    assert record.memory.reserved_bytes < 2_000_000_000
    assert (record.memory.driver_peak_bytes or 0) <= 2_000_000_000


def test_graph_replay_equals_generate(embedded: ModelSpec) -> None:
    """The compiled step, a CUDA graph here, chooses generate's tokens in float32, run after run."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(embedded.path, dtype=torch.float32)
    model = model.eval().cuda()
    prompt = list(range(20, 45))
    ids = torch.tensor([prompt], device="cuda")
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
    )[0, 25:].tolist()
    decoder = TorchDecoder(model, batch=1, capacity=64, compiled=True)
    for _ in range(3):
        decoder.prefill([prompt])
        ours = decoder.tokens()
        for _ in range(19):
            decoder.step()
            ours += decoder.tokens()
        assert ours == expected


def test_quality_on_the_gpu_is_that_of_the_cpu(tmp_path: Path) -> None:
    """Perplexity agrees within 0.5 %, and the divergence between the rows is bf16's rounding."""
    perplexity = {}
    for device in ("cpu", "cuda"):
        rows = compare(
            backends=["bf16", "sdpa"],
            workload=QUICK,
            evaluation=EvaluationSettings(limit=40),
            device=device,
            keeping=Keeping(runs_dir=str(tmp_path)),
        ).rows
        assert [row.status for row in rows] == ["ok", "ok"], [row.reason for row in rows]
        assert rows[0].perplexity is not None and rows[1].kl_divergence is not None
        assert rows[1].kl_divergence < 0.001
        perplexity[device] = rows[0].perplexity.token
    assert perplexity["cuda"] == pytest.approx(perplexity["cpu"], rel=0.005)
