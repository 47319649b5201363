"""Any ``nn.Module``, measured: time, memory, FLOPs, energy, and whether a change is real.

    input_fn ─► model ─► warm-up ─► memory ─► FLOPs ─► timed runs ─► BenchmarkResult ─► comparison

>>> bench = llmfit.Benchmark()
>>> bench.benchmark_inference("eager", model, lambda: torch.randn(8, 512), batch_size=8)
>>> bench.benchmark_inference("compiled", torch.compile(model), lambda: torch.randn(8, 512))
>>> bench.compare_results().changes[1].speedup

Times come from ``timing.py``, as those of deploy rows do. Cases measured one after the other meet
the machine in other states: ``run_in_turns`` compares more surely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmfit.device.allocations import module_bytes, training_bytes, working_bytes
from llmfit.device.energy import EnergyMeter, energy_meter
from llmfit.device.execution import Marks, TorchDevice, pick_torch_device
from llmfit.errors import UsageError
from llmfit.reliability import condition_warnings
from llmfit.stats import overlap, percentile, sampled
from llmfit.study_records import (
    BenchmarkChange,
    BenchmarkComparison,
    BenchmarkKind,
    BenchmarkResult,
    Ratio,
)
from llmfit.timing import Timed, latency, no_turn, timed

if TYPE_CHECKING:
    import torch

Inputs = Any
"""A tensor, a tuple or list of tensors, or a dict of them by argument name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to run and to measure.

    ``call`` takes what ``prepare`` returned, which no time counts. ``uncompiled`` does the same
    work without torch.compile, for the counter of FLOPs; None takes ``call`` itself.
    """

    name: str
    call: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    batch_size: int = 1
    """Items of a call, for the throughput."""
    model: torch.nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    kind: BenchmarkKind = "call"
    uncompiled: Callable[[Any], object] | None = None
    count_flops: bool = True
    count_memory: bool = True
    """False for calls of very many operations, which a CPU counts slowly: no memory is known."""


class Benchmark:
    """Measures modules on one device, and keeps the results in their order.

    ``device`` is cpu, cuda or mps; None takes a GPU where there is one. Raises UsageError.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device: TorchDevice = pick_torch_device(device)
        self._results: list[BenchmarkResult] = []

    @property
    def results(self) -> tuple[BenchmarkResult, ...]:
        """All results so far."""
        return tuple(self._results)

    def benchmark_inference(
        self,
        name: str,
        model: torch.nn.Module,
        input_fn: Callable[[], Inputs],
        n_warmup: int = 3,
        n_runs: int = 20,
        batch_size: int = 1,
        *,
        accuracy_fn: Callable[[torch.nn.Module], float] | None = None,
    ) -> BenchmarkResult:
        """Time ``model`` on what ``input_fn`` makes, in evaluation mode and without gradients.

        ``input_fn`` is called anew for every run, outside the time, and its tensors are moved to
        the device: a tensor, a tuple of arguments, or a dict of keyword arguments. ``accuracy_fn``
        takes the model and gives its accuracy. Raises UsageError.
        """
        import torch

        model.to(self.device)
        bare = _uncompiled(model)

        def call(inputs: Inputs) -> object:
            with torch.inference_mode():
                return forward(model, inputs)

        def plain(inputs: Inputs) -> object:
            with torch.no_grad():  # the counter of FLOPs does not see inference mode
                return forward(bare, inputs)

        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            case = Case(
                name=name,
                call=call,
                prepare=lambda: to_device(input_fn(), self.device),
                batch_size=batch_size,
                model=model,
                kind="inference",
                uncompiled=plain,
            )
            (result,) = self.run_in_turns((case,), n_warmup=n_warmup, n_runs=n_runs)
            if accuracy_fn is not None:
                result = replace(result, accuracy=float(accuracy_fn(model)))
                self._results[-1] = result
        finally:
            _set_modes(modes)
        return result

    def benchmark_training_step(
        self,
        name: str,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Inputs], torch.Tensor] | None,
        input_fn: Callable[[], Inputs],
        n_steps: int = 20,
        *,
        n_warmup: int = 3,
        batch_size: int = 1,
    ) -> BenchmarkResult:
        """Time whole training steps: gradients to none, forward, loss, backward, optimizer.

        ``loss_fn`` takes the model's output and the inputs; None takes the ``loss`` that a Hugging
        Face model returns. The model learns meanwhile; the losses are in the result. Raises
        UsageError where there is no such loss.
        """
        model.to(self.device)
        losses: list[torch.Tensor] = []

        def step(inputs: Inputs) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(forward(model, inputs), inputs, loss_fn)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

        modes = [(module, module.training) for module in model.modules()]
        model.train()
        try:
            case = Case(
                name=name,
                call=step,
                prepare=lambda: to_device(input_fn(), self.device),
                batch_size=batch_size,
                model=model,
                optimizer=optimizer,
                kind="training step",
                count_flops=_uncompiled(model) is model,
            )
            (result,) = self.run_in_turns((case,), n_warmup=n_warmup, n_runs=n_steps)
        finally:
            _set_modes(modes)
        result = replace(result, losses=tuple(loss.item() for loss in losses))
        self._results[-1] = result
        return result

    def run_in_turns(
        self,
        cases: Sequence[Case],
        *,
        n_warmup: int = 3,
        n_runs: int = 20,
        progress: Callable[[int, int], None] = no_turn,
    ) -> tuple[BenchmarkResult, ...]:
        """Measure ``cases``: memory and FLOPs of each, then times in turns (A B C A B C …).

        Energy is of a single case only. Raises UsageError for no case, no runs or a negative
        number of warm-ups.
        """
        if not cases or n_runs < 1 or n_warmup < 0:
            raise UsageError(
                f"nothing to time: {len(cases)} cases, {n_warmup} warm-ups, {n_runs} runs.",
                hint="at least one case and n_runs=1",
            )
        flops = [self._flops(case) for case in cases]
        memory = [self._memory(case) for case in cases]
        meter = energy_meter(self.device) if len(cases) == 1 else None
        turn = 0

        def run_of(case: Case) -> Callable[[Marks], None]:
            def run(marks: Marks) -> None:
                nonlocal turn
                inputs = case.prepare()
                counting = meter if turn >= n_warmup else None
                turn += 1
                if counting is not None:
                    counting.start()
                marks.mark()
                case.call(inputs)
                marks.mark()
                if counting is not None:
                    counting.stop()

            return run

        times = timed(
            [run_of(case) for case in cases],
            warmup=n_warmup,
            repeats=n_runs,
            device=self.device,
            progress=progress,
        )
        found = tuple(
            _result(case, index, times, memory[index], flops[index], self.device, meter)
            for index, case in enumerate(cases)
        )
        self._results += found
        return found

    def compare_results(
        self, results: Sequence[BenchmarkResult] | None = None
    ) -> BenchmarkComparison:
        """Each result against the first: speed-up and memory. Raises UsageError for none."""
        chosen = self.results if results is None else tuple(results)
        if not chosen:
            raise UsageError("there is no result to compare.", hint="benchmark_inference first")
        first = chosen[0]
        return BenchmarkComparison(
            results=chosen, changes=tuple(change(first, result) for result in chosen)
        )

    def _flops(self, case: Case) -> int | None:
        if not case.count_flops:
            return None
        return count_flops(case.uncompiled or case.call, case.prepare())

    def _memory(self, case: Case) -> _Memory:
        """Memory of one call, after another, so that all lasting state is there."""
        import torch

        if not case.count_memory:
            return _Memory(held=None)
        case.call(case.prepare())
        held = None
        if case.model is not None and case.optimizer is not None:
            # Gradients are part of the work: what a step frees of them could not be counted.
            case.optimizer.zero_grad(set_to_none=True)
            held = training_bytes(case.model, case.optimizer)
        elif case.model is not None:
            held = module_bytes(case.model)
        inputs = case.prepare()

        def work() -> object:
            return case.call(inputs)

        if self.device == "cuda":
            before = torch.cuda.memory_allocated()
            return _Memory(
                held=held,
                working=working_bytes(work, self.device),
                allocated=before,
                reserved=torch.cuda.max_memory_reserved(),
                peak=torch.cuda.max_memory_allocated(),
            )
        if self.device == "mps":
            before = torch.mps.current_allocated_memory()
            work()
            driver = torch.mps.driver_allocated_memory()
            return _Memory(held=held, allocated=before, reserved=driver)
        return _Memory(held=held, working=working_bytes(work, self.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """Bytes of one call: of its tensors, and of the GPU's allocator."""

    held: int | None
    working: int | None = None
    allocated: int | None = None
    reserved: int | None = None
    peak: int | None = None


def forward(model: torch.nn.Module, inputs: Inputs) -> Any:
    """The model's output for a tensor, a tuple or list of arguments, or a dict of them."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def to_device(inputs: Inputs, device: str) -> Inputs:
    """The inputs with every tensor in them on ``device``."""
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)


def loss_of(
    output: Any, inputs: Inputs, loss_fn: Callable[[Any, Inputs], torch.Tensor] | None
) -> torch.Tensor:
    """``loss_fn`` of output and inputs, or the output's own loss. Raises UsageError."""
    loss = getattr(output, "loss", None) if loss_fn is None else loss_fn(output, inputs)
    if loss is None:
        raise UsageError(
            f"the model's output, a {type(output).__name__}, has no loss.",
            hint="a loss_fn, or labels among the inputs of a Hugging Face model",
        )
    found: torch.Tensor = loss
    return found


def count_flops(call: Callable[[Any], object], inputs: Inputs) -> int:
    """Floating-point operations of one call, a multiply-add as two.

    torch's FlopCounterMode counts matrix products, convolutions and attention, not element by
    element work. Its table lacks PyTorch's attention kernel for CPUs, which is added here.
    """
    import torch
    from torch.utils.flop_counter import (
        FlopCounterMode,
        sdpa_backward_flop_count,
        sdpa_flop_count,
    )

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def attention_backward(
        gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
    ) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        },
    )
    with counter:
        call(inputs)
    return int(counter.get_total_flops())


def change(first: BenchmarkResult, other: BenchmarkResult) -> BenchmarkChange:
    """``other`` against ``first``."""
    peaks = first.peak_bytes, other.peak_bytes
    return BenchmarkChange(
        name=other.name,
        speedup=speedup(first, other),
        memory_ratio=peaks[1] / peaks[0] if peaks[0] and peaks[1] is not None else None,
    )


def speedup(first: BenchmarkResult, other: BenchmarkResult) -> Ratio:
    """The median time of ``first`` ÷ that of ``other``: above 1, ``other`` is faster.

    Real is a change whose intervals do not meet, and that exceeds the spread of both: repeats a
    tenth apart do not tell 3 % from nothing, however many there are.
    """
    a, b = first.latency_s, other.latency_s
    value = a.median / b.median
    noise = max(first.spread, other.spread)
    return Ratio(
        value=value,
        low=a.low / b.high,
        high=a.high / b.low,
        real=not overlap(a, b) and max(value, 1 / value) - 1 > noise,
    )


def _result(
    case: Case,
    index: int,
    times: Timed,
    memory: _Memory,
    flops: int | None,
    device: TorchDevice,
    meter: EnergyMeter | None,
) -> BenchmarkResult:
    runs = [run[0] for run in times.runs[index]]
    middle = sampled(runs)
    parameters = [] if case.model is None else list(case.model.parameters())
    joules = None if meter is None else meter.joules
    return BenchmarkResult(
        name=case.name,
        kind=case.kind,
        device=device,
        batch_size=case.batch_size,
        latency=latency((tuple(runs),)),
        latency_s=middle,
        spread=(percentile(runs, 75) - percentile(runs, 25)) / middle.median,
        throughput_per_s=sampled([case.batch_size / second for second in runs]),
        total_parameters=sum(p.numel() for p in parameters) if parameters else None,
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad)
        if parameters
        else None,
        model_bytes=None if case.model is None else module_bytes(case.model),
        held_bytes=memory.held,
        working_bytes=memory.working,
        peak_bytes=None if memory.working is None else (memory.held or 0) + memory.working,
        vram_allocated_bytes=memory.allocated,
        vram_reserved_bytes=memory.reserved,
        vram_peak_bytes=memory.peak,
        flops=flops,
        energy_j=None if joules is None else joules / len(runs),
        power_w=None if meter is None else meter.power_w,
        energy_source=None if meter is None or joules is None else meter.source,
        warmup_s=tuple(run[0] for run in times.warm[index]),
        warnings=condition_warnings(times.before, times.after),
    )


def _uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside what torch.compile returned, else the module itself."""
    inner: torch.nn.Module = getattr(model, "_orig_mod", model)
    return inner


def _set_modes(modes: Iterable[tuple[torch.nn.Module, bool]]) -> None:
    """Put each module back into training or evaluation by itself: some may be frozen."""
    for module, training in modes:
        module.training = training
