"""llmfit's kernels for GPUs, as NVIDIA's assembler takes them: no GPU is needed for that."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this system")

from benchmarks.gpu_instructions import compiled_for, loops, products
from llmfit.kernels import gpu_attention


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_products_are_assembled_and_spill_nothing(capability: int) -> None:
    """For A100s, H100s and RTX 50s; registers that do not suffice would go through memory."""
    for name, kernel in products(capability).items():
        assert kernel.asm["cubin"], name
        assert "LDL" not in kernel.asm["sass"] and "STL" not in kernel.asm["sass"], name


@pytest.mark.parametrize("capacity", [768, 131_072])
def test_attention_is_assembled_and_spills_nothing(capacity: int) -> None:
    """Both of its kernels, with heads that share keys and a window, short and long."""
    query, keys, values = (torch.empty(1, heads, slots, 128, dtype=torch.bfloat16)
                           for heads, slots in ((32, 1), (8, capacity), (8, capacity)))  # fmt: skip
    with compiled_for(90) as made:
        gpu_attention.attend(query, keys, values, torch.tensor(512), 0.1, 256)
    assert len(made) == 2 and all(kernel.asm["cubin"] for kernel in made)
    assert not any(word in kernel.asm["sass"] for kernel in made for word in ("LDL", "STL"))


def test_attention_of_float32_is_not_rounded_to_tf32() -> None:
    """Ten bits of the scores would go, and a float32 model's tokens part from the library's."""
    query, keys, values = (torch.empty(1, 4, slots, 64) for slots in (1, 256, 256))
    with compiled_for(90) as made:
        gpu_attention.attend(query, keys, values, torch.tensor(200), 0.1, 0)
    assert made and all("tf32" not in kernel.asm["ptx"] for kernel in made)


def test_signs_take_less_logic_than_a_table_of_all_codes() -> None:
    """NF4 is bound by what selects bytes: with it 128 bytes take below 10 cycles, not 12."""
    found = {loop.kernel: loop for loop in loops(90)}
    assert found["nf4 signed"].logic < 0.8 * found["nf4"].logic
    assert found["nf4 signed"].cycles < 10 < found["nf4"].cycles
    assert all(loop.cycles < 8 for name, loop in found.items() if "nf4" not in name)
