"""Sizes ─► what each kernel needs, costs and errs at each length, as ``Found``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmfit.benchmark import Case
from llmfit.device.execution import TorchDevice, is_out_of_memory
from llmfit.device.memory import free_bytes
from llmfit.errors import first_line
from llmfit.records import Status
from llmfit.studies.attention.kernels import KERNELS, MATH, STANDARD, attend, largest_error
from llmfit.studies.base import StudyContext
from llmfit.study_records import BenchmarkResult
from llmfit.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

CHECKED_QUERIES = 512
"""Queries of a sequence, evenly spaced, whose outputs are compared with float64."""
_SPARE = 0.9
"""Share of the free memory that a case may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is run: ``runs`` timed calls for each of ``lengths``, in the same order."""

    batch: int
    heads: int
    kv_heads: int
    """Of the grouped-query cases; the others have as many as ``heads``."""
    head_width: int
    dtype: Literal["float32", "float16", "bfloat16"]
    lengths: tuple[int, ...]
    runs: tuple[int, ...]
    grouped_lengths: tuple[int, ...]

    def settings(self) -> dict[str, float | int | str | bool | None]:
        """As a result records them."""
        return {
            key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


DEFAULT = Sizes(
    batch=1,
    heads=2,
    kv_heads=1,
    head_width=64,
    dtype="float32",
    lengths=(512, 1024, 2048, 4096, 8192),
    runs=(11, 9, 5, 3, 2),
    grouped_lengths=(512, 1024, 2048),
)
REFERENCE = Sizes(
    batch=4,
    heads=12,
    kv_heads=4,
    head_width=64,
    dtype="float16",
    lengths=(512, 1024, 2048, 4096, 8192),
    runs=(20, 20, 20, 20, 20),
    grouped_lengths=(512, 1024, 2048, 4096, 8192),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A kind of attention. Causal: a query sees no later key."""

    name: str
    causal: bool
    grouped: bool = False


FULL = Variant(name="full", causal=False)
CAUSAL = Variant(name="causal", causal=True)
GROUPED = Variant(name="grouped causal", causal=True, grouped=True)
VARIANTS = (FULL, CAUSAL, GROUPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One call of a kernel: did it run, and how far off was it?"""

    status: Status
    reason: str | None = None
    error: float | None = None
    """Largest absolute difference to float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One kernel at one length; ``length`` None is a kernel that runs at none."""

    variant: Variant
    kernel: str
    length: int | None
    trial: Trial
    result: BenchmarkResult | None = None
    input_bytes: int = 0

    @property
    def seconds(self) -> float | None:
        """Median time."""
        return None if self.result is None else self.result.latency_s.median

    @property
    def total_bytes(self) -> int | None:
        """Queries, keys, values, and the peak of what a call allocates."""
        if self.result is None or self.result.working_bytes is None:
            return None
        return self.input_bytes + self.result.working_bytes


def saved(base: Found, each: Found) -> float | None:
    """The memory of ``base`` ÷ that of ``each``; None where one of them is not known."""
    a, b = base.total_bytes, each.total_bytes
    return a / b if a is not None and b is not None else None


# ---------------------------------------------------------------- memory before it is taken


def needed_bytes(kernel: str, variant: Variant, sizes: Sizes, length: int) -> int:
    """Bytes that a call allocates at its peak, by what its computation holds.

    Exact for ``standard``. ``math`` computes in float32 at least, and holds which scores are
    infinite, a bias for the mask, and copies of its inputs. The other kernels hold little besides
    their output, which is what is counted of them.
    """
    import torch

    item = getattr(torch, sizes.dtype).itemsize
    square = sizes.batch * sizes.heads * length**2
    tensor = sizes.batch * sizes.heads * length * sizes.head_width * item
    repeated = 2 * tensor if variant.grouped else 0
    if kernel == STANDARD:
        return 2 * square * item + (length**2 if variant.causal else 0) + tensor + repeated
    if kernel == MATH:
        wide = max(item, 4)
        held = square * (2 * wide + 1 + (item if item < wide else 0))
        bias = length**2 * wide if variant.causal else 0
        return held + bias + 4 * tensor * wide // item + repeated
    return tensor


def _does_not_fit(kernel: str, variant: Variant, sizes: Sizes, length: int) -> str | None:
    """Why that case would not fit in the RAM; None where it does. A GPU tells by itself."""
    needed, free = needed_bytes(kernel, variant, sizes, length), free_bytes("cpu")
    if needed <= _SPARE * free:
        return None
    return f"needs {format_bytes(needed)}; {format_bytes(free)} of RAM are free"


# ---------------------------------------------------------------- trial and timing


def try_kernel(
    kernel: str,
    variant: Variant,
    tensors: tuple[Tensor, Tensor, Tensor],
    device: TorchDevice,
) -> Trial:
    """Run a kernel once; what torch says where it cannot is the reason."""
    import warnings

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            out = attend(kernel, *tensors, causal=variant.causal)
            error = largest_error(out, *tensors, causal=variant.causal, queries=CHECKED_QUERIES)
        except ImportError as exc:
            return Trial(status="unavailable", reason=f"needs the package flash-attn: {exc}")
        except (RuntimeError, MemoryError) as exc:
            if is_out_of_memory(exc):
                return Trial(status="does_not_fit", reason=f"out of memory: {first_line(exc)}")
            why = _why_not(exc, [str(each.message) for each in said])
            return Trial(status="unavailable", reason=f"no such kernel here ({device}): {why}")
    return Trial(status="ok", error=error)


def _why_not(error: Exception, warned: Sequence[str]) -> str:
    """What torch warned of that kernel; of the others it says that they are disabled."""
    told = [
        text.strip().split("\n")[0].split(" (Triggered internally")[0]
        for text in warned
        if "not used because" not in text and "runtime disabled" not in text
    ]
    # The error itself goes on with a guess that other kernels were turned off, which is so.
    return "; ".join(dict.fromkeys(told)) or first_line(error).split(". ")[0]


def _inputs(
    sizes: Sizes, variant: Variant, length: int, context: StudyContext
) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal queries, keys and values; the same on every device."""
    import torch

    generator = torch.Generator().manual_seed(context.seed + length)
    heads = sizes.kv_heads if variant.grouped else sizes.heads

    def normal(count: int) -> Tensor:
        shape = (sizes.batch, count, length, sizes.head_width)
        values = torch.randn(shape, generator=generator)
        return values.to(context.device, getattr(torch, sizes.dtype))

    return normal(sizes.heads), normal(heads), normal(heads)


def measure(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
    """All cases, shortest length first; those of one length and the same tensors in turns."""
    found: list[Found] = []
    absent: set[tuple[Variant, str]] = set()
    runs = dict(zip(sizes.lengths, sizes.runs, strict=True))
    rounds = [
        (length, variants)
        for length in sizes.lengths
        for variants in ((FULL, CAUSAL), (GROUPED,))
        if GROUPED not in variants or length in sizes.grouped_lengths
    ]
    for done, (length, variants) in enumerate(rounds):
        context.progress(f"length {length:,}", done, len(rounds))
        wanted = [
            (variant, kernel)
            for variant in variants
            for kernel in KERNELS
            if (variant, kernel) not in absent
        ]
        ran = {(each.variant, each.kernel) for each in found}
        for each in _at_length(context, sizes, length, wanted, runs[length]):
            if each.trial.status == "unavailable" and (each.variant, each.kernel) not in ran:
                absent.add((each.variant, each.kernel))
                each = replace(each, length=None)
            found.append(each)
    context.progress("done", len(rounds), len(rounds))
    return tuple(found)


def _at_length(
    context: StudyContext,
    sizes: Sizes,
    length: int,
    wanted: Sequence[tuple[Variant, str]],
    n_runs: int,
) -> list[Found]:
    tensors = _inputs(sizes, wanted[0][0], length, context)
    size = sum(tensor.nbytes for tensor in tensors)
    trials = [_trial(context, sizes, length, tensors, *each) for each in wanted]
    cases = [
        _case(f"{length} {variant.name} {kernel}", kernel, variant, tensors)
        for (variant, kernel), trial in zip(wanted, trials, strict=True)
        if trial.status == "ok"
    ]
    # Trial and count of memory have run each three times.
    timed = context.bench.run_in_turns(cases, n_warmup=0, n_runs=n_runs) if cases else ()
    results = iter(timed)
    return [
        Found(
            variant=variant,
            kernel=kernel,
            length=length,
            trial=trial,
            result=next(results) if trial.status == "ok" else None,
            input_bytes=size,
        )
        for (variant, kernel), trial in zip(wanted, trials, strict=True)
    ]


def _trial(
    context: StudyContext,
    sizes: Sizes,
    length: int,
    tensors: tuple[Tensor, Tensor, Tensor],
    variant: Variant,
    kernel: str,
) -> Trial:
    if context.device == "cpu":
        reason = _does_not_fit(kernel, variant, sizes, length)
        if reason is not None:
            return Trial(status="does_not_fit", reason=reason)
    return try_kernel(kernel, variant, tensors, context.device)


def _case(name: str, kernel: str, variant: Variant, tensors: tuple[Tensor, Tensor, Tensor]) -> Case:
    def call(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return attend(kernel, *inputs, causal=variant.causal)

    return Case(name=name, call=call, prepare=lambda: tensors, count_flops=False)
