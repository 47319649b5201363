"""``llmfit.plan``: from config facts to a row per format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import llmfit
from llmfit.errors import ModelNotFound, UsageError
from llmfit.records import ModelPlan, PlanRow, Workload, from_json, to_json

LLAMA = "meta-llama/Llama-3.1-8B"
FOUR_BIT = ("nf4", "gptq", "awq")


@pytest.fixture(autouse=True)
def no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are not calibrated by what happened to run on this machine."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def rows(plan: ModelPlan) -> dict[str, PlanRow]:
    return {row.backend: row for row in plan.rows}


def test_eight_formats_of_a_catalogue_model_within_8_gb() -> None:
    """Offline, no weights: the 4-bit formats of an 8 B model fit 8 GB, 16 and 8 bits do not."""
    plan = llmfit.plan(LLAMA, gpu_gb=8)
    found = rows(plan)
    assert list(found) == ["bf16", "sdpa", "compiled", "int8", "nf4", "gptq", "awq", "gguf"]
    assert plan.parameters == 8_030_261_248  # transformers' own count
    assert plan.gpu is not None and plan.gpu.assumed
    for name in ("bf16", "sdpa", "compiled", "int8"):
        row = found[name]
        assert row.fits is False and row.max_context == 0
        assert row.reason is not None and "Try: " in row.reason
    for name in FOUR_BIT:
        assert found[name].fits is True and (found[name].max_context or 0) > 640
    assert found["gguf"].device == "cpu"


def test_every_part_is_there_and_adds_up() -> None:
    """Weights, KV cache, activations and runtime are each above 0 and sum to the total."""
    for row in llmfit.plan(LLAMA, gpu="RTX 4090").rows:
        memory = row.memory
        assert memory is not None
        parts = (
            memory.weights_bytes,
            memory.kv_cache_bytes,
            memory.activation_bytes,
            memory.runtime_bytes,
        )
        assert min(parts) > 0 and sum(parts) == memory.total_bytes


def test_a_speed_is_a_range_with_its_basis_and_below_the_roofline() -> None:
    """No row gives a bare number, and none beats the memory's bandwidth."""
    plan = llmfit.plan(LLAMA, gpu="RTX 4090")
    for row in plan.rows:
        speed = row.tokens_per_s
        assert speed is not None and speed.basis
        assert 0 < speed.low < speed.estimate < speed.high
        if row.device == "cuda":  # of the CPU the bandwidth itself is assumed
            assert speed.limit is not None and speed.high <= speed.limit * 1.001
    assert plan.gpu is not None and plan.gpu.bandwidth is not None
    # Closed form: 7.5 B parameters a token in 16 bits over 1,008 GB/s is 67 tokens/s at most.
    sdpa = rows(plan)["sdpa"].tokens_per_s
    assert sdpa is not None and sdpa.limit == pytest.approx(1008e9 / (7.505e9 * 2), rel=0.02)


def test_a_context_alone_fills_the_cache() -> None:
    """``context`` is prompt and new tokens together; Llama-3.1-8B caches 131,072 bytes a token."""
    plan = llmfit.plan(LLAMA, context=8192, gpu="RTX 4090", backends=["sdpa"])
    work = plan.workload
    assert work.prompt_tokens + work.new_tokens == 8192
    memory = plan.rows[0].memory
    assert memory is not None and memory.kv_cache_bytes == 8192 * 131_072


def test_the_largest_context_fits_and_one_more_token_does_not() -> None:
    """Planned again at ``max_context`` a row fits, and one token above it no longer."""
    row = llmfit.plan(LLAMA, gpu_gb=8, backends=["nf4"], context=1024).rows[0]
    assert row.max_context is not None and 1024 < row.max_context < 131_072
    at = llmfit.plan(LLAMA, gpu_gb=8, backends=["nf4"], context=row.max_context).rows[0]
    above = llmfit.plan(LLAMA, gpu_gb=8, backends=["nf4"], context=row.max_context + 1).rows[0]
    assert at.fits is True and above.fits is False


def test_chunks_of_the_prompt_need_less_than_all_of_it() -> None:
    """A prompt in one pass holds the MLP's intermediates of all its tokens, a chunked one not."""

    def activations(chunk: int | None) -> int:
        work = Workload(prompt_tokens=8192, new_tokens=128, prefill_chunk=chunk)
        plan = llmfit.plan(LLAMA, workload=work, gpu="A100 80GB", backends=["sdpa"])
        memory = plan.rows[0].memory
        assert memory is not None
        return memory.activation_bytes

    mlp = (8192 - 512) * 3 * 14336 * 2  # closed form: gate, up and their product, in 16 bits
    assert activations(None) - activations(512) >= mlp
    assert activations(8192) == activations(None)


def test_without_a_gpu_everything_is_planned_on_the_cpu() -> None:
    """``device="cpu"`` plans each row in the RAM, within ``ram_gb``."""
    plan = llmfit.plan(LLAMA, device="cpu", ram_gb=12)
    assert plan.gpu is None and plan.ram_budget_bytes == 12 * 10**9
    assert {row.device for row in plan.rows} == {"cpu"}
    assert rows(plan)["bf16"].fits is False and rows(plan)["gguf"].fits is True


def test_a_card_without_a_bf16_rate_says_why() -> None:
    """A T4 has no bf16 units: its prefill stays unknown, and the plan's notes say so."""
    assert "Tesla T4: no bf16 units: Turing" in llmfit.plan(LLAMA, gpu="T4").notes
    assert llmfit.plan(LLAMA, gpu="RTX 4090").notes == ()


def test_a_local_folder_needs_only_its_config(tmp_path: Path) -> None:
    """A folder with nothing but config.json is planned, its parameters counted from it."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 256, "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = llmfit.plan(str(tmp_path), device="cpu")
    # Embedding, and per layer four square matrices, three of the MLP and two norms; a last norm.
    assert plan.parameters == 256 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert plan.workload.prompt_tokens + plan.workload.new_tokens <= 512


def test_the_fewest_cards_that_hold_a_model() -> None:
    """Llama-3.3-70B in bf16 on cards of 25.8 GB: six hold its layers, heads go over eight alone.

    Closed form: 141.1 GB of weights over 25.77 − 0.5 GB a card are 5.6 cards.
    """
    plan = llmfit.plan("meta-llama/Llama-3.3-70B-Instruct", gpu="RTX 4090", gpus=8)
    assert plan.gpus == 8
    found = rows(plan)
    balanced, tensor = found["sdpa"].splits
    assert (balanced.split, tensor.split) == ("balanced", "tensor")
    assert balanced.fits is True and balanced.fewest_gpus == 6
    assert tensor.fits is True and tensor.fewest_gpus == 8  # 64 heads over 6 or 7 do not divide
    assert found["sdpa"].fits is False and found["sdpa"].max_context == 0  # of one card
    for split in (balanced, tensor):
        assert len(split.per_gpu) == split.gpus == 8
        assert split.fullest_bytes == max(gpu.total_bytes for gpu in split.per_gpu)
    for count, fits in ((5, False), (6, True)):
        row = llmfit.plan(
            "meta-llama/Llama-3.3-70B-Instruct", gpu="RTX 4090", gpus=count, backends=["sdpa"]
        ).rows[0]
        assert row.splits[0].fits is fits
    assert from_json(ModelPlan, to_json(plan)) == plan


def test_formats_of_one_gpu_say_why() -> None:
    """Each row has both ways to split or the reason why not; what fits one card needs one."""
    found = rows(llmfit.plan(LLAMA, gpu_gb=8, gpus=3))
    for name in ("compiled", "gptq", "awq", "gguf"):
        for split in found[name].splits:
            assert split.fits is False and split.per_gpu == () and split.fullest_bytes is None
            assert split.reason
    assert found["gguf"].splits[0].reason == "it runs on the CPU"
    assert found["gguf"].splits[0].fewest_gpus is None
    assert found["gptq"].splits[0].fewest_gpus == 1
    for name in ("int8", "nf4"):
        balanced, tensor = found[name].splits
        assert balanced.fits is True and balanced.reason is None
        assert "not cut into parts" in str(tensor.reason)
    tensor = found["sdpa"].splits[1]
    assert tensor.reason == "its 32 query heads cannot be shared out over 3 GPUs"
    assert all(row.splits == () for row in llmfit.plan(LLAMA, gpu_gb=8).rows)


def test_a_plan_is_a_record() -> None:
    """The JSON reads back as the same plan, schema_version first."""
    plan = llmfit.plan(LLAMA, gpu_gb=8)
    text = to_json(plan)
    assert next(iter(json.loads(text))) == "schema_version"
    assert from_json(ModelPlan, text) == plan


def test_wrong_input_is_refused_with_its_value() -> None:
    """Negative sizes, a context beyond the model's, unknown cards, models and formats."""
    with pytest.raises(UsageError, match="gpu_gb must be above 0, not -8"):
        llmfit.plan(LLAMA, gpu_gb=-8)
    with pytest.raises(UsageError, match=r"200000 tokens exceeds.*131072"):
        llmfit.plan(LLAMA, context=200_000)
    with pytest.raises(UsageError, match="RTX 4060"):
        llmfit.plan(LLAMA, gpu="RTX 4060x")
    with pytest.raises(UsageError, match="unknown backend 'int4'"):
        llmfit.plan(LLAMA, backends=["int4"])
    with pytest.raises(UsageError, match="plans without a GPU"):
        llmfit.plan(LLAMA, gpu="RTX 4060", device="cpu")
    for gpus in (0, -1, 65):
        with pytest.raises(UsageError, match=f"1 to 64 GPUs, not {gpus}"):
            llmfit.plan(LLAMA, gpu_gb=8, gpus=gpus)
    with pytest.raises(UsageError, match="2 GPUs are to be planned for, and none"):
        llmfit.plan(LLAMA, device="cpu", gpus=2)
    with pytest.raises(ModelNotFound, match=r"lama-3\.1-8B"):
        llmfit.plan("meta-llama/lama-3.1-8B")


def test_planning_imports_nothing_heavy() -> None:
    """A plan of a catalogue model loads no torch, transformers, numpy or hub client."""
    code = (
        f"import sys, llmfit; llmfit.plan({LLAMA!r}, gpu_gb=8);"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_device_that_is_none_is_refused() -> None:
    """As by ``compare``, which would run it."""
    with pytest.raises(UsageError, match="unknown device 'tpu'; known are auto, cpu, cuda"):
        llmfit.plan(LLAMA, device="tpu")
