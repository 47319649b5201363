"""The profile of a decode step: groups by name, what is left is between the kernels."""

from __future__ import annotations

import pytest

from llmfit.backends.registry import get_backend
from llmfit.records import ModelSpec, Plan, Workload
from llmfit.step_profile import ATTENTION, BETWEEN, CACHE, LINEAR, OTHER, grouped, profile_steps
from llmfit.testing import FakeModel


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("llmfit::linear_4bit_packed", LINEAR),
        ("aten::addmm", LINEAR),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16>", LINEAR),
        ("gptq_marlin::Marlin<__nv_bfloat16>", LINEAR),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ATTENTION),
        ("llmfit::attend", ATTENTION),
        ("aten::bmm", ATTENTION),
        ("Memcpy DtoD (Device -> Device)", CACHE),
        ("aten::index_copy_", CACHE),
        ("aten::silu", OTHER),
        ("triton_poi_fused_mul_silu_5", OTHER),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", OTHER),
        ("cpp_fused_cat_1", OTHER),
        ("triton_poi_fused__softmax_2", ATTENTION),
        ("_bf16_rows", LINEAR),
        ("_code_rows", LINEAR),
        ("_byte_rows", LINEAR),
        ("nvjet_tst_128x8_64x12_4x1_v_bz_TNT", LINEAR),
    ],
)
def test_kernels_are_told_by_their_names(name: str, group: str) -> None:
    """Names as PyTorch, bitsandbytes, GPTQModel and CUDA give them."""
    (found, *_) = grouped([(name, 1.0)], wall_s=1.0, steps=1).groups
    assert found.name == group


def test_what_no_kernel_takes_is_between_them() -> None:
    """Shares add to one; frames that enclose kernels are not counted twice."""
    found = grouped(
        [("aten::mm", 0.4), ("llmfit::attend", 0.2), ("## Call CompiledFxGraph x ##", 5.0)],
        wall_s=0.5,
        steps=2,
    )
    assert {group.name: group.step_s for group in found.groups} == pytest.approx(
        {LINEAR: 0.2, ATTENTION: 0.1, BETWEEN: 0.2}
    )
    assert sum(group.share for group in found.groups) == pytest.approx(1.0)
    assert (found.step_s, found.steps) == (0.5, 2)


def test_kernels_beyond_the_wall_time_leave_nothing_between() -> None:
    """A profiler that slows the kernels down gives no negative rest."""
    found = grouped([("aten::mm", 3.0)], wall_s=1.0, steps=1)
    assert [group.name for group in found.groups] == [LINEAR]
    assert found.groups[0].share == 1.0


@pytest.mark.slow
def test_a_row_of_pytorchs_is_profiled(embedded: ModelSpec) -> None:
    """The embedded model: linear layers, attention and Python take their parts of a step."""
    workload = Workload(prompt_tokens=16, new_tokens=24)
    plan = Plan(
        backend="sdpa", model=embedded, device="cpu", workload=workload, evaluation=None, threads=1
    )
    with get_backend("sdpa").load(plan) as loaded:
        found = profile_steps(loaded, workload, device="cpu")
    assert found is not None and found.step_s > 0
    shares = {group.name: group.share for group in found.groups}
    assert shares[LINEAR] > 0.05 and ATTENTION in shares
    assert sum(shares.values()) == pytest.approx(1.0)


def test_what_pytorch_does_not_run_has_none() -> None:
    """No profile, and no error."""
    assert profile_steps(FakeModel(), Workload(), device="cpu") is None
