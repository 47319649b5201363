"""Two processes that share a model compute what one does."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from logits_rank import NEW_TOKENS, greedy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmfit.backends._several import placement
from llmfit.backends.registry import get_backend
from llmfit.errors import BackendUnavailable, UsageError
from llmfit.models import data_path, resolve
from llmfit.parallel.launch import run_group
from llmfit.planning.memory import tensor_plan
from llmfit.planning.memory.prediction import weights_bytes
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import EvaluationSettings, ModelSpec, Plan, Workload, to_builtins
from llmfit.runner.isolate import run_isolated
from llmfit.runner.shared import RANK_MODULE

HERE = Path(__file__).parent
IDS = [1, 77, 300, 5, 901, 44, 2, 2, 610, 33, 12, 1040, 9]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A random Llama whose vocabulary and MLP do not divide by two."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96, intermediate_size=201, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=1601, max_position_embeddings=256,
        tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tensor") / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(data_path("embedded")).save_pretrained(folder)
    return resolve(str(folder))


def plan(spec: ModelSpec, **options: Any) -> Plan:
    return Plan(
        backend="sdpa", model=spec, device="cpu", threads=2, evaluation=None,
        workload=Workload(prompt_tokens=24, new_tokens=9, repeats=2, warmup=1), **options,
    )  # fmt: skip


def in_two_processes(
    spec: ModelSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[int, Any]:
    """What each of two ranks tells."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    asked = plan(spec, gpus=2, split="tensor")
    (folder / "plan.json").write_bytes(msgspec.json.encode(to_builtins(asked)))
    (folder / "ids.json").write_text(json.dumps(IDS))
    told: dict[int, Any] = {}

    def receive(rank: int, line: bytes) -> bool:
        told[rank] = json.loads(line)
        return len(told) == 2

    assert run_group("logits_rank", 2, folder, receive) is None
    return told


@pytest.mark.slow
def test_logits_and_tokens_are_those_of_one_process(
    odd: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 within rounding, greedy tokens exactly; each rank holds the bytes predicted."""
    told = in_two_processes(odd, tmp_path, monkeypatch)
    whole: Any = AutoModelForCausalLM.from_pretrained(
        odd.path, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    with torch.inference_mode():
        wanted = whole(torch.tensor([IDS])).logits[0]
    tokens = greedy(whole, IDS)
    assert len(tokens) == NEW_TOKENS
    first, second = (torch.load(tmp_path / f"logits-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)  # in lockstep: both choose by the same bits
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-4)
    shape = odd.shape
    assert shape is not None
    for rank, found in told.items():
        assert found["size"] == 2 and found["of_all"] == [0, 10]
        assert found["tokens"] == tokens
        held = tensor_plan.share(shape, 2, rank)
        matrices = [m.parameters for layer in held.of_layers() for m in layer.matrices]
        outside = held.embedding.parameters * (1 if held.tied else 2)
        assert found["weights"] - found["vectors"] == 4 * (sum(matrices) + outside)


@pytest.mark.slow
def test_a_row_of_two_processes_is_a_row_of_equal_quality(embedded: ModelSpec) -> None:
    """Timed, each process's memory known, its weights those of both.

    Perplexity within the rounding of bf16 sums, as many questions right but for ties.
    """
    pytest.importorskip("lm_eval")
    stages: list[str] = []
    asked = replace(plan(embedded), evaluation=EvaluationSettings(limit=12))
    one = run_isolated(asked)
    two = run_isolated(
        replace(asked, gpus=2, split="tensor"), progress=lambda stage, *_: stages.append(stage)
    )
    assert (one.status, two.status) == ("ok", "ok"), (one.reason, two.reason)
    assert two.decode is not None and two.prefill is not None
    assert two.memory is not None and len(two.memory.per_gpu_peak_bytes) == 2
    assert two.memory.peak_bytes == max(two.memory.per_gpu_peak_bytes)
    assert any("tensor parallelism over 2 processes" in note for note in two.notes)
    assert stages[0] == "import" and stages.count("load") == 1
    assert two.plan is not None and two.plan.threads == 2
    shape = embedded.shape
    assert shape is not None and two.weights_bytes is not None
    vectors = sum(layer.vectors for layer in shape.of_layers()) + shape.vectors
    whole = weights_bytes(embedded, "sdpa", "cpu")
    assert whole is not None
    # Norms twice, and each process's rotary frequencies in float32.
    width = embedded.hidden_size // embedded.num_attention_heads
    assert two.weights_bytes - whole - 2 * vectors == 2 * 2 * 4 * (width // 2)
    assert one.perplexity is not None and two.perplexity is not None
    assert two.perplexity.n_tokens == one.perplexity.n_tokens
    assert two.perplexity.token == pytest.approx(one.perplexity.token, rel=5e-3)
    assert one.hellaswag is not None and two.hellaswag is not None
    assert abs(two.hellaswag.acc_norm - one.hellaswag.acc_norm) <= 1 / 12 + 1e-9


@pytest.mark.slow
def test_a_rank_that_cannot_go_on_fails_the_row(odd: ModelSpec) -> None:
    """A workload beyond the context fails the row with its own reason, and nothing hangs."""
    asked = plan(odd, gpus=2, split="tensor")
    record = run_isolated(replace(asked, workload=Workload(prompt_tokens=300, new_tokens=9)))
    assert record.status == "failed"
    assert "exceed the model's context of 256" in str(record.reason)


@pytest.mark.slow
def test_a_row_past_its_time_leaves_nothing(odd: ModelSpec, tmp_path: Path) -> None:
    """The worker is killed, and with it torchrun and both ranks, though in other sessions.

    What its pipes were in is swept, as ``compare`` does after every row.
    """
    asked = replace(plan(odd, gpus=2, split="tensor"), cache_dir=str(tmp_path))
    endless = Workload(prompt_tokens=24, new_tokens=9, repeats=10**6)
    record = run_isolated(replace(asked, workload=endless), time_limit_s=30)
    assert record.status == "failed" and "time limit of 30 s" in str(record.reason)
    deadline = time.monotonic() + 20
    while (left := group_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert len(list(tmp_path.glob(".making-group-*"))) == 1
    ArtifactCache(tmp_path).sweep()
    assert not list(tmp_path.glob(".making-group-*"))


def group_processes() -> list[str]:
    """Command lines of torchrun's agents and of ranks that are running."""
    lines = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended
            lines.append(" ".join(each.cmdline()))
    return [line for line in lines if "llmfit.parallel.agent" in line or RANK_MODULE in line]


def test_what_cannot_be_shared_says_why_before_anything_starts(odd: ModelSpec) -> None:
    """Six query heads over four; formats of one GPU; layers spread over no GPU; a process alone."""
    checks = {
        ("sdpa", 4, "tensor"): "its 6 query heads cannot be shared out over 4 GPUs",
        ("compiled", 2, "tensor"): "its decode step is one graph on one GPU",
        ("nf4", 2, "tensor"): "not cut into parts; --split balanced is possible",
        ("sdpa", 2, "balanced"): "layers are spread over GPUs alone, and none is used here",
        ("gguf", 2, "balanced"): "it runs on the CPU",
    }
    for (backend, gpus, split), reason in checks.items():
        if get_backend(backend).missing():
            continue
        asked = Plan(backend=backend, model=odd, device="cpu", gpus=gpus, split=split)  # type: ignore[arg-type]
        assert reason in str(get_backend(backend).check(asked).skipped)
        with pytest.raises(BackendUnavailable, match=backend):
            get_backend(backend).require(asked)
    with pytest.raises(UsageError, match="this one is of a group of 1"):
        placement(plan(odd, gpus=2, split="tensor"))
