"""The kernels, beside a library's own, that can run a layer of a decode step of one row.

A kernel is a name and a way from a layer to its forward over the layer's own weights, of which it
holds no copy; None where it cannot run that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]

_PACKED_ROWS = 32
_INT4_ROWS = 64
"""Rows of which ``linear_4bit_packed`` and ``linear_int4`` want multiples (see cpu.cpp)."""
_NORM = "RMSNorm"
"""What the names of norms' classes end in, of all architectures."""
_NORM_TOLERANCE = 2**-9
"""Of the norm of what the library's own gives: some values may be a step of bfloat16 apart."""
_NF4_WORDS = 8
_LEAST_BLOCK = 4 * _NF4_WORDS
"""Codes in the words that ``linears_packed`` reads, and in those that a thread reads at once."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A product of inputs in a form of its own, which a compiled step makes with what they are."""

    prepare: Callable[[torch.Tensor], torch.Tensor]
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Of what was prepared and the inputs themselves, for their shape and type."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's forward."""
        return self.product(self.prepare(x), x)


@dataclass(frozen=True, slots=True)
class StepKernel:
    """A way to run layers of one kind."""

    name: str
    bind: Callable[[Any], Forward | None]
    own: bool = True
    """True for llmfit's."""


def is_norm(layer: nn.Module) -> bool:
    """True for a layer that divides its inputs by the root of their mean square."""
    return type(layer).__name__.endswith(_NORM)


def width_of(layer: Any) -> int:
    """Values in a row of the layer's inputs."""
    return int(layer.weight.numel() if is_norm(layer) else layer.in_features)


def kernels_for(layer: nn.Module) -> tuple[StepKernel, ...]:
    """What may run ``layer`` where its weights are; none for layers that are left to the library.

    An unquantised layer whose forward somebody has wrapped, to round its inputs or to fetch its
    weights, say, is more than its product, or norm.
    """
    kind = type(layer).__name__
    tensors = [*layer.parameters(), *layer.buffers()]
    devices = {tensor.device.type for tensor in tensors}
    if devices not in ({"cpu"}, {"cuda"}):
        return ()
    (device,) = devices
    kernels = (_ON_CPU if device == "cpu" else _ON_GPU).get(_NORM if is_norm(layer) else kind, ())
    if not kernels or (kind != "Linear" and not is_norm(layer)):
        return kernels
    weight: Any = layer.weight
    plain = "forward" not in vars(layer) and not hasattr(weight, "__tensor_flatten__")
    types = (torch.bfloat16,) if device == "cpu" else (torch.bfloat16, torch.float16)
    return kernels if plain and weight.dtype in types else ()


# ---------------------------------------------------------------- on a CPU


def _bf16(layer: Any) -> Forward | None:
    weight = layer.weight
    if not weight.is_contiguous():
        return None
    operator, bias = torch.ops.llmfit.linear_bf16, layer.bias
    return lambda x: operator(x, weight, bias)


def _rms_norm(layer: Any) -> Forward | None:
    """For the norms that compute as Llama's do, which their names do not tell."""
    weight, epsilon = layer.weight, getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    if weight.dim() != 1 or epsilon is None:
        return None
    operator = torch.ops.llmfit.rms_norm
    x = torch.randn(1, 1, len(weight)).to(torch.bfloat16)
    expected = layer(x).float()
    difference = (operator(x, weight, epsilon).float() - expected).norm()
    if not difference <= _NORM_TOLERANCE * expected.norm():
        return None
    return lambda x: operator(x, weight, epsilon)


def _int8(layer: Any) -> Forward | None:
    state = layer.state
    if state.has_fp16_weights or state.CB is None:
        return None
    operator = torch.ops.llmfit.linear_int8
    codes, absmax, bias, threshold = state.CB, state.SCB, layer.bias, float(state.threshold)
    return lambda x: operator(x, codes, absmax, bias, threshold)


def _nf4(layer: Any) -> Forward | None:
    """Over the weights as bitsandbytes packs them for its own AVX-512 kernel."""
    state = layer.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False) or layer.out_features % _PACKED_ROWS:
        return None
    operator, block = torch.ops.llmfit.linear_4bit_packed, int(state.blocksize)
    codes, absmax, bias = layer.weight.data, state.absmax, layer.bias
    table = state.code.to(torch.bfloat16)
    return lambda x: operator(x, codes, absmax, table, bias, block)


def _int4(layer: Any) -> Forward | None:
    if layer.out_features % _INT4_ROWS or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    operator, group = torch.ops.llmfit.linear_int4, layer.group_size
    codes, scales, order = layer.qweight, layer.scales_and_zeros, _input_order(layer)

    def product(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = operator(
            x if order is None else x[..., order], codes, scales, None, group
        )
        return out

    return _with_bias(product, layer.bias)


def _int4pack(layer: Any) -> Forward | None:
    """PyTorch's own product, without what GPTQModel does around it."""
    operator, group = torch.ops.aten._weight_int4pack_mm_for_cpu, layer.group_size
    codes, scales, order = layer.qweight, layer.scales_and_zeros, _input_order(layer)

    def product(x: torch.Tensor) -> torch.Tensor:
        row = x.view(1, -1) if order is None else x.view(1, -1)[:, order]
        out: torch.Tensor = operator(row, codes, group, scales)
        return out.view(*x.shape[:-1], -1)

    return _with_bias(product, layer.bias)


def _with_bias(product: Forward, bias: torch.Tensor | None) -> Forward:
    """GPTQModel adds a bias, which may be of another type, to the rounded product."""
    return product if bias is None else lambda x: product(x).add_(bias)


def _input_order(layer: Any) -> torch.Tensor | None:
    """The order in which a GPTQ layer takes its inputs; None for that in which they come."""
    order = getattr(layer, "ret_idx", None)
    return order.long() if isinstance(order, torch.Tensor) else None


_INT4 = (StepKernel("llmfit int4", _int4), StepKernel("PyTorch int4pack", _int4pack, own=False))
_ON_CPU: Mapping[str, tuple[StepKernel, ...]] = {
    "Linear": (StepKernel("llmfit bf16", _bf16),),
    _NORM: (StepKernel("llmfit RMSNorm", _rms_norm),),
    "Linear8bitLt": (StepKernel("llmfit int8", _int8),),
    "Linear4bit": (StepKernel("llmfit 4-bit", _nf4),),
    "TorchAtenLinear": _INT4,
    "TorchAtenAwqLinear": _INT4,
}
"""By the class of the layer."""


# ---------------------------------------------------------------- on a GPU


def _plain_on_gpu(layer: Any) -> Forward | None:
    weight = layer.weight
    if not weight.is_contiguous():
        return None
    operator, biases = torch.ops.llmfit_gpu.linears_bf16, _list(layer.bias)
    return lambda x: operator(x, [weight], biases)


def _int8_on_gpu(layer: Any) -> Forward | None:
    """LLM.int8() without asking the host: inputs that are no outliers are rounded to 8 bits."""
    from llmfit.kernels.gpu import int8_fields_of

    state = layer.state
    if state.has_fp16_weights or state.CB is None or layer.in_features % 4:
        return None
    operator = torch.ops.llmfit_gpu.linears_packed
    words, biases = state.CB.view(torch.int32), _list(layer.bias)
    scales, threshold = state.SCB.float() / 127, float(state.threshold)
    group = words.shape[1]

    def prepare(x: torch.Tensor) -> torch.Tensor:
        return int8_fields_of(_rounded_to_8_bits(x.view(-1), threshold))

    def product(fields: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = operator(
            fields, [words], [scales], biases, None, "int8", group, x.dtype
        )
        return out.view(*x.shape[:-1], -1)

    return Prepared(prepare, product)


def _rounded_to_8_bits(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """Inputs [K] as float32 as LLM.int8() sees them: outliers as they are, others in 255 steps.

    As bitsandbytes does, the others' magnitudes and steps are those of their float16 values.
    """
    half = x.half().float()
    size = half.abs()
    outlying = size >= threshold if threshold > 0 else torch.zeros_like(size, dtype=torch.bool)
    largest = size.masked_fill(outlying, 0).amax()
    codes = torch.round(half * torch.where(largest > 0, 127 / largest, 0))
    return torch.where(outlying, x.float(), codes * (largest / 127))


def _nf4_on_gpu(layer: Any, *, signed: bool) -> Forward | None:
    """Over the weights as bitsandbytes holds them; none with scales that are quantised again.

    ``signed`` takes a table whose first half is not above 0 and whose second is, as NF4's is.
    """
    from llmfit.kernels.gpu import nf4_fields_of, table_of

    state = layer.weight.quant_state
    block, inputs = int(state.blocksize), layer.in_features
    if state.nested or inputs % block or block % _LEAST_BLOCK:
        return None
    if signed and bool((state.code[:8] > 0).any() or (state.code[8:] < 0).any()):
        return None
    operator, biases = torch.ops.llmfit_gpu.linears_packed, _list(layer.bias)
    words = layer.weight.data.view(-1).view(torch.int32).view(layer.out_features, -1)
    scales = state.absmax.view(layer.out_features, inputs // block)
    table, group = table_of(state.code, signed=signed), block // _NF4_WORDS
    kind = "nf4 signed" if signed else "nf4"

    def product(fields: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = operator(fields, [words], [scales], biases, table, kind, group, x.dtype)
        return out.view(*x.shape[:-1], -1)

    return Prepared(nf4_fields_of, product)


def _list(bias: torch.Tensor | None) -> list[torch.Tensor]:
    return [] if bias is None else [bias]


_ON_GPU: Mapping[str, tuple[StepKernel, ...]] = {
    "Linear": (StepKernel("llmfit bf16", _plain_on_gpu),),
    "Linear8bitLt": (StepKernel("llmfit int8", _int8_on_gpu),),
    "Linear4bit": (
        StepKernel("llmfit NF4", partial(_nf4_on_gpu, signed=False)),
        StepKernel("llmfit NF4 by sign", partial(_nf4_on_gpu, signed=True)),
    ),
}
"""By the class of the layer. A GPTQ or AWQ layer's kernel is chosen as it is loaded."""
