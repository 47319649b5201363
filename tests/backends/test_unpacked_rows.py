"""bitsandbytes' 4-bit layers that take many rows with weights in bf16, by PyTorch's product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import difference, llama

from llmfit.backends import _unpacked_rows
from llmfit.backends._unpacked_rows import NOTE, unpack_for_many_rows
from llmfit.kernels.build import find_compiler

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AMX: elsewhere the same is computed, in more time."""
    a_cpu_with(monkeypatch, "avx512_bf16", "amx_bf16")


def a_cpu_with(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """As on a CPU that has these."""
    monkeypatch.setattr(_unpacked_rows, "cpu_flags", lambda: frozenset(flags))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of inputs of each product with unpacked weights, as they come."""
    rows: list[int] = []
    product = _unpacked_rows._product

    def counted(inputs: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(len(inputs))
        return product(inputs, *args)

    monkeypatch.setattr(_unpacked_rows, "_product", counted)
    return rows


def linear4bit(inputs: int, outputs: int) -> tuple[Any, torch.Tensor]:
    """A layer of bitsandbytes with a bias, run once; its weights as bitsandbytes unpacks them."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        inputs, outputs, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        layer.weight.data.bfloat16(), requires_grad=False, quant_type="nf4", module=layer,
        compress_statistics=False,
    )  # fmt: skip
    layer.bias.data = layer.bias.data.bfloat16()
    layer.requires_grad_(False).eval().to("cpu")
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    layer(torch.zeros(1, inputs).bfloat16())
    if not layer.weight.quant_state.packing_format_for_cpu:
        pytest.skip("bitsandbytes packs 4-bit weights for CPUs with AVX-512 BF16 alone")
    return layer, weight


@pytest.mark.parametrize("part_bytes", [2**24, 64 * 2 * 96 * 2], ids=["whole", "parts"])
def test_bitsandbytes_layers_multiply_their_own_dequantised_weights(
    part_bytes: int, monkeypatch: pytest.MonkeyPatch, products: list[int]
) -> None:
    """Whole or part by part; the bias is added to the rounded product, as bitsandbytes does."""
    monkeypatch.setattr(_unpacked_rows, "_PART_BYTES", part_bytes)
    layer, weight = linear4bit(192, 320)
    x = torch.randn(2, 40, 192).bfloat16()
    before = layer(x)
    few = layer(x[:, :15])
    assert unpack_for_many_rows(layer) == (NOTE.format(32),)
    found = layer(x)
    assert products == [80]
    assert torch.equal(layer(x[:, :15]), few), "30 rows stay bitsandbytes' own"
    assert products == [80]
    assert torch.equal(found, torch.nn.functional.linear(x, weight) + layer.bias)
    assert difference(found.float(), before.float()) < 0.01


def test_what_it_cannot_do_stays_the_librarys(products: list[int]) -> None:
    """Another type, and weights that are no longer packed so."""
    layer, _ = linear4bit(192, 320)
    x = torch.randn(40, 192)
    float32 = layer(x)
    unpack_for_many_rows(layer)
    assert torch.equal(layer(x), float32)
    layer.state_dict()  # bitsandbytes gives the weights back their usual order
    layer(x.bfloat16())
    assert not products


def test_a_cpu_without_tiles_wants_more_rows(
    monkeypatch: pytest.MonkeyPatch, products: list[int]
) -> None:
    """Its products are not so much faster than bitsandbytes' that a few rows pay for unpacking."""
    a_cpu_with(monkeypatch, "avx512_bf16")
    layer, weight = linear4bit(192, 320)
    assert unpack_for_many_rows(layer) == (NOTE.format(128),)
    layer(torch.randn(127, 192).bfloat16())
    assert not products
    x = torch.randn(128, 192).bfloat16()
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight) + layer.bias)
    assert products == [128]


def test_nothing_is_done_without_products_in_bf16_or_packed_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model in bf16, and a CPU that would make such products of others: no note."""
    assert unpack_for_many_rows(llama()) == ()
    layer, _ = linear4bit(192, 320)
    a_cpu_with(monkeypatch, "avx512f")
    assert unpack_for_many_rows(layer) == ()
    assert "forward" not in vars(layer)
