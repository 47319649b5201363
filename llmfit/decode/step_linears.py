"""Which kernel runs each linear layer of a decode step of one sequence.

    layer ─► candidates: the library's own, PyTorch's, llmfit's ─► equal? ─► trial ─► in place
             (all over the same packed weights: none holds a copy)

At one row a product is bound by reading its weights, and libraries' kernels are made for many rows.
The trial runs every shape of layer with each candidate, over several layers in turn, so that their
weights come from memory as in a step, and on a GPU as one CUDA graph. What it chose, and its
seconds, are in the row's record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import torch
from torch import nn

from llmfit.decode.capture import capture, median_s
from llmfit.decode.step_kernels import Forward, Prepared, is_norm, kernels_for, width_of
from llmfit.device.execution import Marks
from llmfit.kernels.build import why_no_kernels
from llmfit.kernels.gpu_support import why_no_gpu_kernels
from llmfit.records import Device

TOLERANCE = 2**-7
"""Largest difference from the library's own output, relative to its norm: one step of bfloat16."""
_LAYERS: dict[Device, int] = {"cpu": 6, "cuda": 16}
"""Layers of one shape in the trial; of usual shapes more than caches hold."""
_PASSES = 5
_TIE = 0.95
"""What a kernel of another maker may take to be called as fast: timings differ by as much, and one
kind of kernel for all layers costs a graph fewer conversions between them."""
_HOPELESS = 4.0
"""A candidate so many times slower at its first call than another is not tried further."""
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
        # As they were bound: a model may be converted later, and runs by the library then.
        self._types = {layer: _input_type(layer) for layer in self._forwards}
        self._onednn = onednn
        self._before: dict[nn.Module, Any] | None = None

    def install(self) -> None:
        """Run the layers by these kernels from now on; a second call does nothing."""
        if self._before is not None:
            return
        # A forward of the layer's own, as int8 layers have for many rows, is to be put back.
        self._before = {layer: vars(layer).get("forward") for layer in self._forwards}
        for layer, forward in self._forwards.items():
            general: Forward = layer.forward
            layer.forward = _for_one_row(forward, general, width_of(layer), self._types[layer])

    def remove(self) -> None:
        """Give the layers back to the library's kernels."""
        for layer, forward in (self._before or {}).items():
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
        self._before = None

    def runs(self, layer: nn.Module) -> bool:
        """True for a layer that the library's kernel does not run."""
        return layer in self._forwards

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """While a step runs: PyTorch's products as the trial found them faster."""
        if self._onednn:
            yield
            return
        with _without_onednn():
            yield


def choose_step_linears(model: nn.Module, *, own: bool = True, norms: bool = False) -> StepLinears:
    """Try the kernels that can run ``model``'s linear layers for one row, and take the fastest.

    For layers that ``step_kernels`` knows; others stay with the library's. Without ``own`` only
    PyTorch's are tried, and none of llmfit's. With ``norms`` those too, which a compiler joins with
    what is around them.
    """
    norms = norms and own
    layers = [
        layer for layer in model.modules() if (norms or not is_norm(layer)) and kernels_for(layer)
    ]
    if not layers:
        return StepLinears()
    on_gpu = _device_of(layers[0]) == "cuda"
    missing = (why_no_gpu_kernels() if on_gpu else why_no_kernels()) if own else None
    groups: dict[tuple[object, ...], list[nn.Module]] = defaultdict(list)
    for layer in layers:
        groups[_shape(layer)].append(layer)
    with torch.inference_mode():
        tried = [_try(group, own=own and missing is None) for group in groups.values()]
    return _chosen([trial for trial in tried if trial.seconds], missing)


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


def _device_of(layer: nn.Module) -> Device:
    tensor = next(chain(layer.parameters(), layer.buffers()))
    return "cuda" if tensor.device.type == "cuda" else "cpu"


def _shape(layer: Any) -> tuple[object, ...]:
    if is_norm(layer):
        return (type(layer).__name__, width_of(layer))
    return (type(layer).__name__, layer.in_features, layer.out_features, layer.bias is None)


def _try(layers: list[nn.Module], *, own: bool) -> _Trial:
    """Time the candidates for ``layers``, all of one shape, in turns."""
    trial = _Trial(layers)
    device = _device_of(layers[0])
    some: list[Any] = layers[: _LAYERS[device]]
    x = torch.randn(1, 1, width_of(some[0])).to(device, _input_type(some[0]))
    runs: dict[str, list[Forward]] = {_LIBRARY: [layer.forward for layer in some]}
    if trial.plain and device == "cpu":
        runs[_WITHOUT_ONEDNN] = [partial(_run_without_onednn, layer.forward) for layer in some]
    for kernel in kernels_for(some[0]):
        if own or not kernel.own:
            bound = [forward for layer in layers if (forward := kernel.bind(layer)) is not None]
            if len(bound) == len(layers):
                trial.forwards[kernel.name] = bound
                runs[kernel.name] = bound[: len(some)]
    if device == "cuda" and len(runs) == 1:
        return trial  # nothing to choose from
    expected = runs[_LIBRARY][0](x).float()
    for name in [name for name in runs if name != _LIBRARY]:
        difference = (runs[name][0](x).float() - expected).norm() / expected.norm()
        if not difference <= TOLERANCE:
            trial.refused.append(f"{name} (off by {difference:.1e})")
            del runs[name]
    if device == "cpu":
        trial.seconds = _timed(runs, x)
    else:
        waits = asks_the_host(some[0])
        trial.seconds = {
            name: _gpu_s(forwards, x, captured=not (waits and name == _LIBRARY))
            for name, forwards in runs.items()
        }
    return trial


def _input_type(layer: Any) -> torch.dtype:
    """What the layer computes in: that of its weights, bfloat16 where they are packed."""
    dtype = getattr(getattr(layer, "weight", None), "dtype", torch.uint8)
    return dtype if dtype.is_floating_point else torch.bfloat16


def asks_the_host(layer: nn.Module) -> bool:
    """True for a layer whose own kernel waits for the host, as no CUDA graph may: LLM.int8().

    A capture that fails half-way leaves PyTorch's state behind, so it is not tried in vain.
    """
    return type(layer).__name__ == "Linear8bitLt" and bool(layer.state.threshold > 0)  # type: ignore[union-attr,operator]


def _gpu_s(forwards: Sequence[Forward], x: torch.Tensor, *, captured: bool) -> float:
    """Median seconds a layer on a GPU, as one CUDA graph where it can be ``captured``."""
    runs = [
        partial(each.product, each.prepare(x), x)
        if isinstance(each, Prepared)
        else partial(each, x)
        for each in forwards
    ]

    def run() -> list[torch.Tensor]:
        return [each() for each in runs]

    replay: Callable[[], object] = run
    if captured:
        with suppress(RuntimeError):  # it runs so in a step too
            replay = capture(run)[0].replay
    return median_s(replay, "cuda", _PASSES) / len(forwards)


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


def _for_one_row(fast: Forward, general: Forward, inputs: int, dtype: torch.dtype) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() != inputs or x.dtype != dtype:
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
    packed = [trial for trial in trials if not trial.plain and not is_norm(trial.layers[0])]
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
