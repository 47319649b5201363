"""The first thing to change is one that suffices, and the one that takes away least."""

from __future__ import annotations

import re

import pytest

from llmfit.planning.advice.remedy import first_change
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Device, KvCacheDtype, Workload
from llmfit.shape import Attention, LayerShape, Matrix, ModelShape
from llmfit.testing import GB, make_model

HIDDEN, WIDTH, VOCABULARY = 4096, 14336, 128256


def llama_8b() -> ModelShape:
    """Llama-3.1-8B, layer by layer, as its published config says."""
    narrow = 8 * 128
    sizes = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (narrow, HIDDEN), "attn_v": (narrow, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (WIDTH, HIDDEN), "ffn_up": (WIDTH, HIDDEN),
        "ffn_down": (HIDDEN, WIDTH),
    }  # fmt: skip
    layer = LayerShape(
        matrices=tuple(Matrix(name=n, rows=r, columns=c) for n, (r, c) in sizes.items()),
        vectors=2 * HIDDEN,
        attention=Attention(heads=32, kv_heads=8, key_dim=128, value_dim=128),
        mlp_values=3 * WIDTH,
        attention_values=3 * HIDDEN,
    )
    return ModelShape(
        hidden_size=HIDDEN, vocab_size=VOCABULARY, tied=False, kinds=(layer,), layers=(0,) * 32,
        vectors=HIDDEN,
    )  # fmt: skip


LLAMA = make_model(shape=llama_8b())
SHORT = Workload()
LONG = Workload(prompt_tokens=40_000, new_tokens=512, prefill_chunk=512)


def need_bytes(
    backend: str,
    workload: Workload,
    device: Device = "cuda",
    kv_cache_dtype: KvCacheDtype | None = None,
) -> int:
    """What the planner predicts, the interpreter's share included on a CPU."""
    memory = predict_memory(LLAMA, backend, workload, device, kv_cache_dtype=kv_cache_dtype)
    assert memory is not None
    return memory.total_bytes


def test_the_shape_is_llama_s() -> None:
    """Its published count of parameters."""
    assert llama_8b().parameters == 8_030_261_248


def test_nothing_to_change_where_it_fits() -> None:
    """24 GB hold bf16 with its cache."""
    assert first_change(LLAMA, "bf16", SHORT, "cuda", budget_bytes=24 * GB) is None


def test_nothing_is_said_of_what_is_not_known() -> None:
    """Without a shape there is no prediction, so no advice either."""
    unknown = make_model(shape=None, model_type="unheard-of")
    assert first_change(unknown, "bf16", SHORT, "cuda", budget_bytes=GB) is None


def test_a_chunked_prefill_comes_first() -> None:
    """It takes nothing away: a prompt of 20,000 tokens whose activations are too much in one."""
    whole = Workload(prompt_tokens=20_000)
    chunked = Workload(prompt_tokens=20_000, prefill_chunk=512)
    budget = (need_bytes("sdpa", whole) + need_bytes("sdpa", chunked)) // 2
    said = first_change(LLAMA, "sdpa", whole, "cuda", budget_bytes=budget)
    assert said == "--prefill-chunk 512"


def test_the_prompt_that_is_named_is_the_longest_that_fits() -> None:
    """One token more would not, whatever the budget is."""
    for share in (0.99, 0.9, 0.76):
        shorter = Workload(prompt_tokens=int(40_000 * share), new_tokens=512, prefill_chunk=512)
        budget = need_bytes("nf4", shorter)
        said = first_change(LLAMA, "nf4", LONG, "cuda", budget_bytes=budget)
        found = re.fullmatch(r"--prompt-tokens (\d+)", str(said))
        assert found is not None, said
        tokens = int(found[1])
        fits = Workload(prompt_tokens=tokens, new_tokens=512, prefill_chunk=512)
        beyond = Workload(prompt_tokens=tokens + 1, new_tokens=512, prefill_chunk=512)
        assert need_bytes("nf4", fits) <= budget < need_bytes("nf4", beyond)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_a_quantised_cache_comes_before_a_much_shorter_text(dtype: KvCacheDtype) -> None:
    """The type of most bits that suffices, with all of the prompt kept."""
    work = Workload(prompt_tokens=100_000, new_tokens=512)
    budget = need_bytes("gguf", work, "cpu", dtype)
    said = first_change(LLAMA, "gguf", work, "cpu", budget_bytes=budget)
    assert said == f"--kv-cache-dtype {dtype}"


def test_a_model_in_one_format_is_left_a_much_shorter_text() -> None:
    """A checkpoint in 4 bits has no smaller format: a tenth of the prompt is what fits."""
    stored = make_model(shape=llama_8b(), quantization="gptq")
    tenth = Workload(prompt_tokens=4_000, new_tokens=512, prefill_chunk=512)
    budget = need_bytes("gptq", tenth)
    said = first_change(stored, "gptq", LONG, "cuda", budget_bytes=budget, kv_cache_dtype="q4_0")
    found = re.fullmatch(r"--prompt-tokens (\d+)", str(said))
    assert found is not None and 4_000 <= int(found[1]) < 30_000


@pytest.mark.parametrize("backend", ["bf16", "compiled", "offload"])
def test_rows_with_a_16_bit_cache_are_not_told_to_quantise_it(backend: str) -> None:
    """The reference, constant shapes and offloaded weights keep theirs."""
    work = Workload(prompt_tokens=100_000, new_tokens=512, prefill_chunk=512)
    for budget in range(9 * GB, 30 * GB, GB):
        said = first_change(LLAMA, backend, work, "cuda", budget_bytes=budget)
        assert said is None or "kv-cache-dtype" not in said


@pytest.mark.parametrize("budget_gb", [6, 8, 10, 12])
def test_the_format_that_is_named_fits(budget_gb: int) -> None:
    """The first that fits of int8 and the 4-bit ones, and its predicted bytes are told."""
    budget = budget_gb * GB
    fitting = [f for f in ("int8", "awq", "gptq", "nf4") if need_bytes(f, SHORT) <= budget]
    said = first_change(LLAMA, "bf16", SHORT, "cuda", budget_bytes=budget)
    if fitting:
        assert str(said).startswith(f"--backends {fitting[0]}, which needs")
    else:
        assert str(said).startswith("--backends gguf, on the CPU")


def test_a_gpu_too_small_for_any_format_is_told_of_the_cpu() -> None:
    """At 2 GB only llama.cpp's row is left, and what RAM it takes is said."""
    said = first_change(LLAMA, "nf4", SHORT, "cuda", budget_bytes=2 * GB)
    assert str(said).startswith("--backends gguf, on the CPU, which needs")


def test_the_cpu_is_no_way_out_where_its_ram_is_too_small() -> None:
    """The same table would say that the row does not fit."""
    rest = {"budget_bytes": 2 * GB, "ram_bytes": 3 * GB}
    said = first_change(LLAMA, "nf4", SHORT, "cuda", **rest)
    assert str(said).startswith("--backends offload")


def test_on_a_cpu_smaller_types_then_the_disk() -> None:
    """5 GB of RAM hold a smaller GGUF type; 2 GB hold none, and the disk is what is left."""
    budget = need_bytes("gguf:q3_k_m", SHORT, "cpu") + 1
    said = first_change(LLAMA, "gguf", SHORT, "cpu", budget_bytes=budget)
    assert str(said).startswith("--backends gguf:q3_k_m, which needs")
    said = first_change(LLAMA, "gguf", SHORT, "cpu", budget_bytes=2 * GB)
    assert said == "--backends offload, which keeps on disk what does not fit, slowly"


def test_a_quantised_model_is_not_told_to_be_another_format() -> None:
    """Other formats are made from unquantised weights, which are not there."""
    stored = make_model(shape=llama_8b(), quantization="gptq")
    assert first_change(stored, "gptq", SHORT, "cuda", budget_bytes=4 * GB) is None
