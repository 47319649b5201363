"""Attention kernels: the same attention by all, memory by closed forms, what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmfit.benchmark import Benchmark
from llmfit.records import to_json
from llmfit.studies.attention import measuring, study
from llmfit.studies.attention.kernels import (
    CUDNN,
    EFFICIENT,
    FLASH,
    FLASH_ATTN,
    MATH,
    STANDARD,
    attend,
    largest_error,
)
from llmfit.studies.attention.measuring import (
    CAUSAL,
    FULL,
    GROUPED,
    Sizes,
    Variant,
    needed_bytes,
    try_kernel,
)
from llmfit.studies.base import StudyContext
from llmfit.studies.growth import growth
from llmfit.studies.reference import ATTENTION
from llmfit.study_records import StudyResult

TINY = Sizes(
    batch=1,
    heads=4,
    kv_heads=2,
    head_width=16,
    dtype="float32",
    lengths=(64, 1024, 1088),
    runs=(2, 2, 2),
    grouped_lengths=(64,),
)


def tensors(length: int, *, heads: int = 4, kv_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of width 16."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(2, count, length, 16, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    )
    return query, key, value


@pytest.fixture(scope="module")
def found() -> StudyResult:
    """The study with tiny sizes."""
    return study(StudyContext(bench=Benchmark("cpu")), TINY)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [STANDARD, FLASH, MATH])
def test_kernels_are_a_loop_over_queries_in_plain_python(kernel: str, causal: bool) -> None:
    """Each query mixes the values it sees by the softmax of its scores, in groups of heads too."""
    query, key, value = tensors(12, kv_heads=2)
    out = attend(kernel, query, key, value, causal=causal)
    for batch, head, row in ((0, 0, 0), (1, 3, 5), (1, 1, 11)):
        seen = row + 1 if causal else 12
        keys, values = (x[batch, head // 2, :seen].double() for x in (key, value))
        weights = torch.exp(keys @ query[batch, head, row].double() / 4)
        assert out[batch, head, row].double().numpy() == pytest.approx(
            (weights @ values / weights.sum()).numpy(), abs=1e-5
        )


def test_the_error_is_that_of_the_worst_checked_query() -> None:
    """A change of one output is found, and the last query is among few that are checked."""
    query, key, value = tensors(40)
    out = attend(STANDARD, query, key, value, causal=True)
    assert largest_error(out, query, key, value, causal=True, queries=40) < 1e-5
    out[1, 2, -1, 3] += 0.25
    for queries in (40, 3):
        error = largest_error(out, query, key, value, causal=True, queries=queries)
        assert error == pytest.approx(0.25, abs=1e-5)


def test_an_output_without_the_mask_is_far_off() -> None:
    """The error tells causal attention from attention to all keys."""
    inputs = tensors(40)
    out = attend(STANDARD, *inputs, causal=False)
    assert largest_error(out, *inputs, causal=True, queries=40) > 0.1


@pytest.mark.parametrize("kernel", [EFFICIENT, CUDNN, FLASH_ATTN])
def test_kernels_that_a_cpu_lacks_are_unavailable_with_the_reason(kernel: str) -> None:
    """PyTorch's own words, or the missing package."""
    trial = try_kernel(kernel, FULL, tensors(16), "cpu")
    assert trial.status == "unavailable" and trial.error is None
    expected = "flash-attn" if kernel == FLASH_ATTN else "No viable backend"
    assert trial.reason is not None and expected in trial.reason


@pytest.mark.parametrize("variant", [FULL, CAUSAL, GROUPED])
def test_standard_attention_allocates_what_its_closed_form_says(variant: Variant) -> None:
    """Two score matrices at once, mask and output: counted by the allocator, to the byte."""
    case = measuring._case("x", STANDARD, variant, _of(TINY, variant, 256))
    (result,) = Benchmark("cpu").run_in_turns((case,), n_runs=1)
    assert result.working_bytes is not None
    # The mask is made in two steps, and matmul copies no operand.
    assert result.working_bytes == needed_bytes(STANDARD, variant, TINY, 256)


@pytest.mark.parametrize("variant", [FULL, CAUSAL, GROUPED])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_math_kernel_needs_no_more_than_is_predicted(variant: Variant, dtype: str) -> None:
    """What is compared with the free memory is an upper bound, and not far above."""
    sizes = replace(TINY, dtype=dtype)  # type: ignore[arg-type]
    case = measuring._case("x", MATH, variant, _of(sizes, variant, 512))
    (result,) = Benchmark("cpu").run_in_turns((case,), n_runs=1)
    assert result.working_bytes is not None
    predicted = needed_bytes(MATH, variant, sizes, 512)
    assert 0.7 * predicted < result.working_bytes <= predicted


def _of(sizes: Sizes, variant: Variant, length: int) -> tuple[Tensor, Tensor, Tensor]:
    return measuring._inputs(sizes, variant, length, StudyContext(bench=Benchmark("cpu")))


def test_growth_is_fitted_from_the_given_length_on() -> None:
    """Short lengths, where fixed costs rule, do not count; one length gives no exponent."""
    grown = growth([10, 100, 200, 400], [999.0, 3e4, 12e4, 48e4], first=100)
    assert grown is not None and grown.exponent == pytest.approx(2)
    assert growth([10, 100], [1.0, 2.0], first=50) is None
    assert growth([100, 200], [1.0, None], first=50) is None


@pytest.mark.slow
def test_all_that_must_hold_holds(found: StudyResult) -> None:
    """Equal outputs, and memory that grows as the square and no faster than the length."""
    assert [check.holds for check in found.checks] == [True, True, True]


@pytest.mark.slow
def test_each_kernel_and_length_has_its_row(found: StudyResult) -> None:
    """What ran at each length, and what a CPU lacks once, with the reason."""
    full, _, grouped, _ = found.tables
    names = [row.name for row in full.rows]
    assert names[:3] == ["64 standard", "64 flash", "64 math"]
    assert names[-3:] == ["mem-efficient", "cuDNN", "flash-attn"]
    assert len(names) == 3 * 3 + 3 and len(grouped.rows) == 3 + 3
    assert all(row.reason for row in full.rows if row.status != "ok")
    ran = [row for row in full.rows if row.status == "ok"]
    assert all({"time", "memory", "working", "error"} <= row.cells.keys() for row in ran)


@pytest.mark.slow
def test_memory_saved_is_reckoned_with_inputs_and_output(found: StudyResult) -> None:
    """Standard's bytes over flash's, of queries, keys and values too."""
    rows = {row.name: row for row in found.tables[0].rows}
    standard, flash = (rows[f"1,024 {kernel}"].cells for kernel in (STANDARD, FLASH))
    inputs = 3 * 4 * 1024 * 16 * 4
    assert standard["memory"].value == inputs + needed_bytes(STANDARD, FULL, TINY, 1024)
    assert isinstance(standard["memory"].value, int) and isinstance(flash["memory"].value, int)
    assert flash["less"].value == standard["memory"].value / flash["memory"].value


@pytest.mark.slow
def test_published_ratios_stand_at_their_lengths(found: StudyResult) -> None:
    """1,024 tokens: 2.45 ms over 0.58 ms; 1,088 have no published figure."""
    rows = {row.name: row for row in found.tables[0].rows}
    assert rows["1,024 flash"].cells["faster_published"].value == pytest.approx(2.45 / 0.58)
    assert "faster_published" not in rows["1,088 flash"].cells


@pytest.mark.slow
def test_the_result_is_json(found: StudyResult) -> None:
    """All of it."""
    assert '"does_not_fit"' not in to_json(found) and '"unavailable"' in to_json(found)


@pytest.mark.slow
def test_a_length_that_does_not_fit_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Need and free memory are named, and what fits is measured all the same."""
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 20_000_000)
    sizes = replace(TINY, grouped_lengths=())
    result = study(StudyContext(bench=Benchmark("cpu")), sizes)
    rows = {row.name: row for row in result.tables[0].rows}
    assert rows["1,024 standard"].status == "does_not_fit"
    # 2 matrices × 4 heads × 1,024² × 4 bytes and 262,144 of output
    assert rows["1,024 standard"].reason == "needs 33.8 MB; 20.0 MB of RAM are free"
    assert rows["1,024 flash"].status == rows["64 standard"].status == "ok"
    assert result.checks[1].holds is None and result.checks[2].holds


def test_published_memory_is_two_matrices_and_four_tensors() -> None:
    """What the study says of the published figures: batch 4, 12 heads of 64, 2 bytes a value."""
    for length, (slow, fast) in ATTENTION.items():
        assert slow.memory_bytes is not None and fast.memory_bytes is not None
        assert slow.memory_bytes / 1e6 == 2 * 4 * 12 * length**2 * 2 / 2**20
        assert fast.memory_bytes / 1e6 == 4 * 4 * 12 * length * 64 * 2 / 2**20
