"""Which kernel runs each linear layer of a decode step of one sequence on a CPU.

    layer ─► candidates: the library's own, PyTorch's, llmfit's ─► equal? ─► trial ─► in place
             (all over the same packed weights: none holds a copy)

At one row a product is bound by reading its weights, and libraries' kernels are made for many rows.
The trial runs every shape of layer with each candidate, over several layers in turn, so that their
weights come from memory as in a step. What it chose, and its seconds, are in the row's record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from llmfit.device.execution import Marks
from llmfit.kernels.build import why_no_kernels

Forward = Callable[[torch.Tensor], torch.Tensor]

TOLERANCE = 2**-7
"""Largest difference from the library's own output, relative to its norm: one step of bfloat16."""
_LAYERS = 6
"""Layers of one shape in the trial; of usual shapes more than caches hold."""
_PASSES = 5
_TIE = 0.95
"""What a kernel of another maker may take to be called as fast: timings differ by as much, and one
kind of kernel for all layers costs a graph fewer conversions between them."""
_HOPELESS = 4.0
"""A candidate so many times slower at its first call than another is not tried further."""
_PACKED_ROWS = 32
_INT4_ROWS = 64
"""Rows of which ``linear_4bit_packed`` and ``linear_int4`` want multiples (see cpu.cpp)."""
_LIBRARY = "library"
_WITHOUT_ONEDNN = "PyTorch without oneDNN"


class StepLinears:
    """Kernels for decode steps of one sequence, put in place by ``install``.

    Inputs of several rows still go to the library's own kernel.
    """

    def __init__(
        self,
        forwards: dict[nn.Module, Forward] | None = None,
        *,
        onednn: bool = True,
        kernel: str | None = None,
        trial_s: dict[str, dict[str, float]] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """``forwards`` run the layers that the library's kernel does not run.

        ``onednn`` is False where PyTorch's own products of one row are faster without it.
        """
        self.kernel = kernel
        """The kernels' names, None where they are the library's."""
        self.trial_s = trial_s or {}
        """Seconds that each candidate took for one step's layers, by their class."""
        self.notes = notes
        self._forwards = forwards or {}
        self._onednn = onednn
        self._before: dict[nn.Module, Any] | None = None

    def install(self) -> None:
        """Run the layers by these kernels from now on; a second call does nothing."""
        if self._before is not None:
            return
        # A forward of the layer's own, as int8 layers have for many rows, is to be put back.
        self._before = {layer: vars(layer).get("forward") for layer in self._forwards}
        for layer, forward in self._forwards.items():
            inputs: Any = layer.in_features
            layer.forward = _for_one_row(forward, layer.forward, inputs)

    def remove(self) -> None:
        """Give the layers back to the library's kernels."""
        for layer, forward in (self._before or {}).items():
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
        self._before = None

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """While a step runs: PyTorch's products as the trial found them faster."""
        if self._onednn:
            yield
            return
        with _without_onednn():
            yield


def choose_step_linears(model: nn.Module, *, own: bool = True) -> StepLinears:
    """Try the kernels that can run ``model``'s linear layers for one row, and take the fastest.

    For a model in bfloat16 on a CPU; for another it is the library's kernels. Without ``own``
    only PyTorch's are tried, and none of llmfit's.
    """
    layers = [layer for layer in model.modules() if _is_tried(layer)]
    if not layers:
        return StepLinears()
    missing = why_no_kernels() if own else None
    groups: dict[tuple[object, ...], list[nn.Module]] = defaultdict(list)
    for layer in layers:
        groups[_shape(layer)].append(layer)
    with torch.inference_mode():
        tried = [_try(group, own=own and missing is None) for group in groups.values()]
    return _chosen(tried, missing)


# ---------------------------------------------------------------- the candidates


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A way to run layers of one kind: from a layer to its forward, or None where it cannot."""

    name: str
    bind: Callable[[Any], Forward | None]
    own: bool = True
    """True for llmfit's, in ``kernels/cpu.cpp``."""


def _is_tried(layer: nn.Module) -> bool:
    """True for a layer in a format that there is another kernel for, on a CPU, in bfloat16.

    An unquantised layer whose forward somebody has wrapped, to round its inputs or to fetch its
    weights, say, is more than its product.
    """
    kind = type(layer).__name__
    tensors = [*layer.parameters(), *layer.buffers()]
    if kind not in _KERNELS or any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    if kind != "Linear":
        return True
    whole = not hasattr(layer.weight, "__tensor_flatten__")  # torchao's is made of others
    return "forward" not in vars(layer) and whole and layer.weight.dtype == torch.bfloat16


def _bf16(layer: Any) -> Forward | None:
    weight = layer.weight
    if not weight.is_contiguous():
        return None
    operator, bias = torch.ops.llmfit.linear_bf16, layer.bias
    return lambda x: operator(x, weight, bias)


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


_INT4 = (_Kernel("llmfit int4", _int4), _Kernel("PyTorch int4pack", _int4pack, own=False))
_KERNELS: dict[str, tuple[_Kernel, ...]] = {
    "Linear": (_Kernel("llmfit bf16", _bf16),),
    "Linear8bitLt": (_Kernel("llmfit int8", _int8),),
    "Linear4bit": (_Kernel("llmfit 4-bit", _nf4),),
    "TorchAtenLinear": _INT4,
    "TorchAtenAwqLinear": _INT4,
}
"""By the class of the layer."""


# ---------------------------------------------------------------- the trial


@dataclass(slots=True)
class _Trial:
    """One shape of layer: seconds a layer of each candidate that gives the library's result."""

    layers: list[nn.Module]
    forwards: dict[str, list[Forward]] = field(default_factory=dict)
    """Of each kernel beside the library's, for all ``layers``."""
    seconds: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The layers' class."""
        return type(self.layers[0]).__name__

    @property
    def plain(self) -> bool:
        """True for layers that are not quantised."""
        return self.kind == "Linear"


def _shape(layer: Any) -> tuple[object, ...]:
    return (type(layer).__name__, layer.in_features, layer.out_features, layer.bias is None)


def _try(layers: list[nn.Module], *, own: bool) -> _Trial:
    """Time the candidates for ``layers``, all of one shape, in turns."""
    trial = _Trial(layers)
    some: list[Any] = layers[:_LAYERS]
    x = torch.randn(1, 1, some[0].in_features).bfloat16()
    runs: dict[str, list[Forward]] = {_LIBRARY: [layer.forward for layer in some]}
    if trial.plain:
        runs[_WITHOUT_ONEDNN] = [partial(_run_without_onednn, layer.forward) for layer in some]
    for kernel in _KERNELS[trial.kind]:
        if own or not kernel.own:
            bound = [forward for layer in layers if (forward := kernel.bind(layer)) is not None]
            if len(bound) == len(layers):
                trial.forwards[kernel.name] = bound
                runs[kernel.name] = bound[:_LAYERS]
    expected = runs[_LIBRARY][0](x).float()
    for name in [name for name in runs if name != _LIBRARY]:
        difference = (runs[name][0](x).float() - expected).norm() / expected.norm()
        if not difference <= TOLERANCE:
            trial.refused.append(f"{name} (off by {difference:.1e})")
            del runs[name]
    trial.seconds = _timed(runs, x)
    return trial


def _timed(runs: dict[str, list[Forward]], x: torch.Tensor) -> dict[str, float]:
    """Median seconds a layer of each candidate; of hopeless ones the better of two calls."""
    first = {
        name: min(_pass_s(forwards[:1], x) for _ in range(2)) for name, forwards in runs.items()
    }
    limit = _HOPELESS * min(first.values())
    hopeful = {name: runs[name] for name, seconds in first.items() if seconds <= limit}
    samples: dict[str, list[float]] = {name: [] for name in hopeful}
    for _ in range(_PASSES):
        for name, forwards in hopeful.items():
            samples[name].append(_pass_s(forwards, x))
    return first | {name: median(taken) for name, taken in samples.items()}


def _pass_s(forwards: Sequence[Forward], x: torch.Tensor) -> float:
    marks = Marks("cpu")
    marks.mark()
    for forward in forwards:
        forward(x)
    marks.mark()
    return marks.seconds()[0] / len(forwards)


def _run_without_onednn(forward: Forward, x: torch.Tensor) -> torch.Tensor:
    with _without_onednn():
        return forward(x)


@contextmanager
def _without_onednn() -> Iterator[None]:
    # torch.backends.mkldnn.flags sets more than this, and warns about GPUs of Intel's.
    before: bool = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _for_one_row(fast: Forward, general: Forward, inputs: int) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() != inputs or x.dtype != torch.bfloat16:
            return general(x)
        return fast(x.contiguous())

    return forward


# ---------------------------------------------------------------- what it found


def _chosen(trials: Sequence[_Trial], missing: str | None) -> StepLinears:
    """One kernel for each kind of layer, so that noise between shapes decides nothing."""
    onednn = _keep_onednn(trials)
    forwards: dict[nn.Module, Forward] = {}
    names, seconds = [], {}
    for kind in dict.fromkeys(trial.kind for trial in trials):
        own = [trial for trial in trials if trial.kind == kind]
        base = _LIBRARY if onednn or not own[0].plain else _WITHOUT_ONEDNN
        totals = _totals(own, base)
        best = _fastest(totals, base)
        seconds[kind] = {kind if name == _LIBRARY else name: s for name, s in totals.items()}
        if best != _LIBRARY:
            names.append(best)
        for trial in own:
            if best in trial.seconds and best in trial.forwards:
                forwards |= dict(zip(trial.layers, trial.forwards[best], strict=True))
    return StepLinears(
        forwards,
        onednn=onednn,
        kernel=" + ".join(names) or None,
        trial_s=seconds,
        notes=_notes(trials, missing),
    )


def _totals(trials: Sequence[_Trial], base: str) -> dict[str, float]:
    """Seconds of one step's layers of a kind by each candidate; ``base`` runs what one cannot."""
    names = dict.fromkeys(name for trial in trials for name in trial.seconds)
    return {
        name: sum(
            len(trial.layers) * trial.seconds.get(name, trial.seconds[base]) for trial in trials
        )
        for name in names
    }


def _fastest(totals: dict[str, float], base: str) -> str:
    """The candidate that takes least; another kernel than the library's wins a tie."""
    allowed = [name for name in totals if name not in (_LIBRARY, _WITHOUT_ONEDNN) or name == base]
    return min(allowed, key=lambda name: totals[name] * (1.0 if name == base else _TIE))


def _keep_onednn(trials: Sequence[_Trial]) -> bool:
    """False where the unquantised layers are faster without it, and no other layer may need it."""
    plain = [trial for trial in trials if trial.plain]
    packed = [trial for trial in trials if not trial.plain]
    if not plain or (packed and _fastest(_totals(packed, _LIBRARY), _LIBRARY) == _LIBRARY):
        return True
    if any(_WITHOUT_ONEDNN not in trial.seconds for trial in plain):
        return True
    totals = _totals(plain, _LIBRARY)
    return totals[_LIBRARY] <= totals[_WITHOUT_ONEDNN]


def _notes(trials: Sequence[_Trial], missing: str | None) -> tuple[str, ...]:
    """What was refused, and why llmfit's own kernels are not among the candidates."""
    refused = sorted({each for trial in trials for each in trial.refused})
    notes = [f"kernel not used, as its results differ: {each}" for each in refused]
    if missing is not None:
        notes.append(f"without llmfit's own decode kernels: {missing}")
    return tuple(notes)
