"""Products in float32 in place of bf16's: the same outputs, for plain tensors in bf16 alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from llmfit.kernels import products


@pytest.fixture(autouse=True)
def without_bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without AVX-512, whatever this one is."""
    monkeypatch.setattr(products, "has_bf16_products", lambda: False)


def tensors(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An input [2, 5, I], a weight [O, I] and a bias [O] in bf16."""
    made = torch.Generator().manual_seed(0)
    shapes = ((2, 5, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=made).bfloat16() for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("at_once", [2**21, 192 * 7, 1], ids=["whole", "parts", "row by row"])
def test_outputs_are_exact_sums_rounded_once(
    with_bias: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within half a step of bf16 of the sums in float64, however many weights are widened."""
    monkeypatch.setattr(products, "_WEIGHTS_AT_ONCE", at_once)
    x, weight, bias = tensors(192, 40)
    exact = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    with products.products_in_float32():
        found = functional.linear(x, weight, bias if with_bias else None)
    assert found.dtype == torch.bfloat16 and found.shape == (2, 5, 40)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def test_modules_in_bf16_take_part() -> None:
    """``nn.Linear`` reads the function when it is called."""
    layer = torch.nn.Linear(64, 8, dtype=torch.bfloat16)
    x = tensors(64, 8)[0]
    with torch.inference_mode(), products.products_in_float32():
        found = layer(x)
    exact = functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


class Packed(torch.Tensor):
    """A weight that says it is bf16 and is something else, as torchao's are."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Its own product."""
        return "its own" if func.__name__ == "linear" else super().__torch_function__(
            func, types, args, kwargs or {}
        )  # fmt: skip


def test_other_tensors_keep_their_own_products() -> None:
    """Float32 to the last bit, a quantised weight by its own code, one elsewhere than in RAM."""
    x, weight, _ = tensors(64, 8)
    expected = functional.linear(x.float(), weight.float())
    with products.products_in_float32():
        assert torch.equal(functional.linear(x.float(), weight.float()), expected)
        assert functional.linear(x, weight.as_subclass(Packed)) == "its own"
        assert functional.linear(x.to("meta"), weight.to("meta")).device.type == "meta"


def test_pytorchs_own_is_back_after_an_error() -> None:
    """The replaced function holds no longer than the work."""
    original = functional.linear
    with pytest.raises(KeyError), products.products_in_float32():
        assert functional.linear is not original
        raise KeyError
    assert functional.linear is original


def test_a_build_without_onednn_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch's operators for it are absent, too."""
    monkeypatch.undo()  # the real question
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert not products.has_bf16_products()


def test_a_cpu_with_bf16_products_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replaced there."""
    monkeypatch.setattr(products, "has_bf16_products", lambda: True)
    original = functional.linear
    with products.products_in_float32():
        assert functional.linear is original
