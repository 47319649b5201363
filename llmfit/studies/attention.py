"""Attention with the whole N × N matrix in memory, against PyTorch's kernels, each by its name.

    q, k, v ─► trial (runs? fits? error in float64) ─► timed in turns ─► growth with the length

Memory is exact: queries, keys and values, and the peak of what a call allocates, its output too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from llmfit.benchmark import Case, speedup
from llmfit.device.execution import TorchDevice, is_out_of_memory
from llmfit.device.memory import free_bytes
from llmfit.records import Status
from llmfit.stats import growth_exponent
from llmfit.studies.base import StudyContext, cell, ratio_cell, time_cell
from llmfit.studies.reference import ATTENTION, ATTENTION_OF
from llmfit.study_records import (
    BenchmarkResult,
    Cell,
    Ratio,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_bytes, format_ratio

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Attention kernels"
QUESTION = "How much time and memory does each attention kernel save, and from which length on?"

STANDARD, FLASH, EFFICIENT, CUDNN, MATH, FLASH_ATTN = (
    "standard",
    "flash",
    "mem-efficient",
    "cuDNN",
    "math",
    "flash-attn",
)
KERNELS = (STANDARD, FLASH, EFFICIENT, CUDNN, MATH, FLASH_ATTN)
_BACKENDS = {
    FLASH: "FLASH_ATTENTION",
    EFFICIENT: "EFFICIENT_ATTENTION",
    CUDNN: "CUDNN_ATTENTION",
    MATH: "MATH",
}
"""Names in torch.nn.attention.SDPBackend."""
_SQUARE = (STANDARD, MATH)
"""Kernels that hold the N × N scores in memory."""
_FIT_FROM = 1024
"""Below, fixed costs hide the growth."""
_CHECKED_QUERIES = 512
"""Queries of a sequence, evenly spaced, whose outputs are compared with float64."""
_ERROR_EPS = 16
"""Most that an output may be off, in machine epsilons of its type, of values about 1 in size."""
_SPARE = 0.9
"""Share of the free memory that a case may take."""
_GPU = "RTX 4090"


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


def run(context: StudyContext) -> StudyResult:
    """Every kernel at every length: time, memory, error, and how they grow."""
    return study(context, REFERENCE if context.preset == "reference" else DEFAULT)


def study(context: StudyContext, sizes: Sizes) -> StudyResult:
    """The study with those sizes."""
    found = _measure(context, sizes)
    variants = (FULL, CAUSAL, GROUPED)
    done = tuple(each.result for each in found if each.result is not None)
    return StudyResult(
        study="attention",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={key: _setting(value) for key, value in asdict(sizes).items()},
        tables=(*(_table(found, variant, sizes) for variant in variants), _growth_table(found)),
        plots=_plots(found),
        checks=_checks(found, sizes),
        findings=_findings(found),
        reference=f"{ATTENTION_OF}; {_about_reference()}",
        notes=(
            "Memory is that of queries, keys and values with the peak of what a call allocates.",
            f"Errors are of up to {_CHECKED_QUERIES} queries of each sequence, in all heads.",
        ),
        benchmarks=done,
    )


def _setting(value: object) -> str | int:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, int) else str(value)


# ---------------------------------------------------------------- the kernels


def standard(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attention as it is written: scores, mask, softmax, each N × N matrix a tensor in memory.

    ``query: [B, heads, N, D]``, ``key`` and ``value: [B, kv_heads, N, D]`` → ``[B, heads, N, D]``.
    """
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1)  # [B, heads, N, N]
    scores = scores * query.shape[-1] ** -0.5
    if causal:
        square = scores.shape[-2:]
        later = torch.ones(square, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(dim=-1) @ value


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """The output of that kernel and no other, shapes as in ``standard``.

    Raises RuntimeError where torch has no such kernel for these tensors, and ImportError without
    the package flash-attn.
    """
    if kernel == STANDARD:
        return standard(query, key, value, causal=causal)
    if kernel == FLASH_ATTN:
        return _flash_attn(query, key, value, causal=causal)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    with sdpa_kernel([getattr(SDPBackend, _BACKENDS[kernel])]):
        return scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
        )


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """By Tri Dao's own package, whose heads come after the sequence."""
    package = import_module("flash_attn")
    turned = (x.transpose(1, 2) for x in (query, key, value))
    out: Tensor = package.flash_attn_func(*turned, causal=causal)
    return out.transpose(1, 2)


def largest_error(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, queries: int
) -> float:
    """Largest absolute difference of ``out`` to standard attention in float64.

    A query's output depends on no other query, so at most ``queries`` of them are computed, evenly
    spaced, the last among them.
    """
    import torch

    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    rows = torch.linspace(0, length - 1, min(queries, length)).round().long().unique()
    home = "cpu" if query.device.type == "mps" else query.device  # MPS has no float64
    some, seen = (x[:, :, rows.to(x.device)].to(home, torch.float64) for x in (query, out))
    key, value = (x.to(home, torch.float64).repeat_interleave(groups, dim=1) for x in (key, value))
    scores = some @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # [B, heads, rows, N]
    if causal:
        later = torch.arange(length)[None, :] > rows[:, None]
        scores = scores.masked_fill(later.to(home), float("-inf"))
    exact = scores.softmax(dim=-1) @ value
    return (seen - exact).abs().max().item()


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
            error = largest_error(out, *tensors, causal=variant.causal, queries=_CHECKED_QUERIES)
        except ImportError as exc:
            return Trial(status="unavailable", reason=f"needs the package flash-attn: {exc}")
        except (RuntimeError, MemoryError) as exc:
            if is_out_of_memory(exc):
                return Trial(status="does_not_fit", reason=f"out of memory: {_first_line(exc)}")
            why = _why_not(exc, [str(each.message) for each in said])
            return Trial(status="unavailable", reason=f"no such kernel here ({device}): {why}")
    return Trial(status="ok", error=error)


def _why_not(error: Exception, warned: Sequence[str]) -> str:
    """What torch warned of that kernel; of the others it says that they are disabled."""
    told = [
        _first_line(text)
        for text in warned
        if "not used because" not in text and "runtime disabled" not in text
    ]
    # The error itself goes on with a guess that other kernels were turned off, which is so.
    return "; ".join(dict.fromkeys(told)) or _first_line(error).split(". ")[0]


def _first_line(message: object) -> str:
    return str(message).strip().split("\n")[0].split(" (Triggered internally")[0]


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


def _measure(context: StudyContext, sizes: Sizes) -> tuple[Found, ...]:
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


# ---------------------------------------------------------------- tables


_COLUMNS = (
    StudyColumn(key="time", head="time", unit="s"),
    StudyColumn(key="memory", head="memory", unit="bytes"),
    StudyColumn(key="working", head="allocated", under="in a call", unit="bytes", needed=False),
    StudyColumn(key="error", head="largest", under="error", unit="number"),
    StudyColumn(key="faster", head="speed-up", unit="ratio"),
    StudyColumn(key="less", head="memory", under="saved", unit="ratio"),
)
_PUBLISHED = (
    StudyColumn(key="faster_published", head="speed-up", under=_GPU, unit="ratio"),
    StudyColumn(key="less_published", head="saved", under=_GPU, unit="ratio"),
)


def _table(found: Sequence[Found], variant: Variant, sizes: Sizes) -> StudyTable:
    own = [each for each in found if each.variant == variant]
    heads = f"{sizes.heads} heads of {sizes.head_width}"
    if variant.grouped:
        heads += f" on {sizes.kv_heads} of keys and values"
    titles = {FULL: "Every token sees all", CAUSAL: "Causal", GROUPED: "Causal, grouped queries"}
    return StudyTable(
        title=f"{titles[variant]}: batch {sizes.batch}, {heads}, {sizes.dtype}",
        head="length, kernel",
        columns=(*_COLUMNS, *_PUBLISHED) if variant == FULL else _COLUMNS,
        rows=tuple(_row(each, own) for each in sorted(own, key=lambda one: one.length is None)),
        notes=("speed-up and memory saved: standard's ÷ this kernel's",),
    )


def _row(each: Found, own: Sequence[Found]) -> StudyRow:
    name = each.kernel if each.length is None else f"{each.length:,} {each.kernel}"
    cells: dict[str, Cell] = {}
    if each.result is not None:
        cells = {
            "time": time_cell(each.result),
            "memory": cell(each.total_bytes),
            "working": cell(each.result.working_bytes),
            "error": cell(each.trial.error),
        }
        base = _one(own, STANDARD, each.length)
        if base is not None and base.result is not None and each.kernel != STANDARD:
            cells["faster"] = ratio_cell(speedup(base.result, each.result))
            cells["less"] = cell(_saved(base, each))
    published = (each.kernel, each.variant) == (FLASH, FULL)
    if published and each.length is not None and each.length in ATTENTION:
        cells |= _published_cells(each.length)
    return StudyRow(name=name, status=each.trial.status, reason=each.trial.reason, cells=cells)


def _published_cells(length: int) -> dict[str, Cell]:
    """The published standard's time and memory ÷ the published flash's."""
    slow, fast = ATTENTION[length]
    assert slow.memory_bytes is not None and fast.memory_bytes is not None  # all are given
    return {
        "faster_published": cell(slow.seconds / fast.seconds),
        "less_published": cell(slow.memory_bytes / fast.memory_bytes),
    }


def _one(found: Iterable[Found], kernel: str, length: int | None) -> Found | None:
    """The kernel at that length."""
    return next((each for each in found if (each.kernel, each.length) == (kernel, length)), None)


def _saved(base: Found, each: Found) -> float | None:
    a, b = base.total_bytes, each.total_bytes
    return a / b if a is not None and b is not None else None


# ---------------------------------------------------------------- growth


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The exponent of a cost in the length, with its standard error."""

    exponent: float
    error: float

    def as_cell(self) -> Cell:
        """The exponent between one standard error less and more."""
        low, high = self.exponent - self.error, self.exponent + self.error
        return Cell(value=self.exponent, low=low, high=high)


def growth(
    lengths: Sequence[int], costs: Sequence[float | None], *, first: int = _FIT_FROM
) -> Growth | None:
    """How a cost grows from length ``first`` on; None with fewer than two lengths known."""
    pairs = [
        (length, cost)
        for length, cost in zip(lengths, costs, strict=True)
        if length >= first and cost is not None
    ]
    if len(pairs) < 2:
        return None
    exponent, error = growth_exponent([x for x, _ in pairs], [y for _, y in pairs])
    return Growth(exponent=exponent, error=error)


def _growth_of(
    found: Iterable[Found], variant: Variant, kernel: str, cost: Callable[[Found], float | None]
) -> Growth | None:
    own = [
        each
        for each in found
        if (each.variant, each.kernel) == (variant, kernel) and each.result is not None
    ]
    return growth([each.length or 0 for each in own], [cost(each) for each in own])


def _total(each: Found) -> float | None:
    return each.total_bytes


def _seconds(each: Found) -> float | None:
    return each.seconds


def _growth_table(found: Sequence[Found]) -> StudyTable:
    rows = [
        _growth_row(
            f"{variant.name} {kernel}",
            kernel,
            _growth_of(found, variant, kernel, _seconds),
            _growth_of(found, variant, kernel, _total),
        )
        for variant in (FULL, CAUSAL, GROUPED)
        for kernel in KERNELS
    ]
    lengths = sorted(ATTENTION)
    for index, kernel in enumerate((STANDARD, FLASH)):
        steps = [ATTENTION[length][index] for length in lengths]
        rows.append(
            _growth_row(
                f"{kernel}, {_GPU}",
                kernel,
                growth(lengths, [step.seconds for step in steps]),
                growth(lengths, [step.memory_bytes for step in steps]),
            )
        )
    return StudyTable(
        title=f"Growth with the length, from {_FIT_FROM:,} on: cost = a · lengthᵇ",
        head="kernel",
        columns=(
            StudyColumn(key="time", head="time", under="b", unit="number"),
            StudyColumn(key="time_theory", head="time", under="theory", unit="number"),
            StudyColumn(key="memory", head="memory", under="b", unit="number"),
            StudyColumn(key="memory_theory", head="memory", under="theory", unit="number"),
        ),
        rows=tuple(row for row in rows if row is not None),
        notes=("b by least squares of the logarithms, between one standard error less and more",),
    )


def _growth_row(
    name: str, kernel: str, time: Growth | None, memory: Growth | None
) -> StudyRow | None:
    """None for a kernel that did not run at two lengths: its own row says why."""
    if time is None:
        return None
    cells = {
        "time": time.as_cell(),
        "time_theory": cell(2),
        "memory_theory": cell(_memory_theory(kernel)),
    }
    if memory is not None:
        cells["memory"] = memory.as_cell()
    return StudyRow(name=name, cells=cells)


def _memory_theory(kernel: str) -> int:
    return 2 if kernel in _SQUARE else 1


# ---------------------------------------------------------------- plots


def _plots(found: Sequence[Found]) -> tuple[StudyPlot, ...]:
    published = [
        (f"{kernel}, {_GPU}", [ATTENTION[length][index] for length in sorted(ATTENTION)])
        for index, kernel in enumerate((STANDARD, FLASH))
    ]
    x = tuple(sorted(ATTENTION))
    times = tuple(
        Series(name=name, x=x, y=tuple(step.seconds for step in steps), reference=True)
        for name, steps in published
    )
    memory = tuple(
        Series(name=name, x=x, y=tuple(step.memory_bytes for step in steps), reference=True)
        for name, steps in published
    )
    return (
        _plot("Time of a call", "seconds", (*_series(found, _seconds), *times)),
        _plot("Memory of a call", "bytes", (*_series(found, _total), *memory)),
    )


def _plot(title: str, y_label: str, series: tuple[Series, ...]) -> StudyPlot:
    return StudyPlot(
        title=title,
        kind="lines",
        x_label="tokens",
        y_label=y_label,
        series=series,
        log_x=True,
        log_y=True,
    )


def _series(found: Sequence[Found], cost: Callable[[Found], float | None]) -> list[Series]:
    lines = []
    for variant in (FULL, CAUSAL):
        for kernel in KERNELS:
            own = [
                each
                for each in found
                if (each.variant, each.kernel) == (variant, kernel) and each.result is not None
            ]
            if own:
                lines.append(
                    Series(
                        name=f"{kernel}, {variant.name}",
                        x=tuple(each.length or 0 for each in own),
                        y=tuple(cost(each) for each in own),
                    )
                )
    return lines


# ---------------------------------------------------------------- checks and findings


def _checks(found: Sequence[Found], sizes: Sizes) -> tuple[StudyCheck, ...]:
    import torch

    limit = _ERROR_EPS * torch.finfo(getattr(torch, sizes.dtype)).eps
    errors = [(each.trial.error, each) for each in found if each.trial.error is not None]
    checks = [
        StudyCheck(
            name="all kernels compute the same attention",
            holds=all(error <= limit for error, _ in errors) if errors else None,
            detail="no kernel ran" if not errors else _worst(errors, limit),
        )
    ]
    # Fixed parts, such as buffers of each thread, can only lower an exponent.
    for kernel, name, low, high in (
        (STANDARD, "standard attention's memory grows as the square of the length", 1.75, 2.05),
        (FLASH, "flash attention's memory grows no faster than the length", 0.0, 1.05),
    ):
        grown = _growth_of(found, FULL, kernel, _total)
        checks.append(
            StudyCheck(
                name=name,
                holds=None if grown is None else low <= grown.exponent <= high,
                detail=f"{kernel} did not run at two lengths from {_FIT_FROM:,} tokens on"
                if grown is None
                else f"exponent {grown.exponent:.3f}, {_memory_theory(kernel)} in theory",
            )
        )
    return tuple(checks)


def _worst(errors: Sequence[tuple[float, Found]], limit: float) -> str:
    error, where = max(errors, key=lambda pair: pair[0])
    return (
        f"largest error {error:.1e} ({where.variant.name} {where.kernel}, "
        f"{where.length:,} tokens), {limit:.1e} allowed"
    )


def _findings(found: Sequence[Found]) -> tuple[str, ...]:
    found = [each for each in found if each.result is not None]
    return tuple(
        sentence
        for sentence in (
            _best_finding(found),
            _from_where_finding(found),
            *(_causal_finding(found, kernel) for kernel in (STANDARD, FLASH)),
            _growth_finding(found),
            _grouped_finding(found),
        )
        if sentence
    )


def _compared(ratio: Ratio) -> str:
    """Flash against standard, as a clause."""
    if not ratio.real:
        return "flash and standard do not differ in time beyond the noise"
    if ratio.value < 1:
        return f"flash takes {format_ratio(1 / ratio.value)} the time of standard"
    return f"flash is {format_ratio(ratio.value)} as fast as standard"


def _longest(found: Iterable[Found], kernels: Sequence[str], variants: Sequence[Variant]) -> int:
    """The greatest length that all of those ran at; 0 for none."""
    found = list(found)
    lengths = [
        {each.length for each in found if (each.kernel, each.variant) == (kernel, variant)}
        for kernel in kernels
        for variant in variants
    ]
    return max((length or 0 for length in set.intersection(*lengths)), default=0)


def _at(
    found: Iterable[Found], kernel: str, variant: Variant, length: int
) -> tuple[Found, BenchmarkResult]:
    """The case and its figures; it ran (``_longest`` tells)."""
    return next(
        (each, each.result)
        for each in found
        if (each.kernel, each.variant, each.length) == (kernel, variant, length)
        and each.result is not None
    )


def _best_finding(found: Sequence[Found]) -> str | None:
    length = _longest(found, (STANDARD, FLASH), (FULL,))
    if not length:
        return None
    base, slow = _at(found, STANDARD, FULL, length)
    each, fast = _at(found, FLASH, FULL, length)
    text = f"At {length:,} tokens {_compared(speedup(slow, fast))}"
    saved = _saved(base, each)
    if saved is not None:
        text += f", and standard takes {format_ratio(saved)} the memory of flash"
    if length in ATTENTION:
        published = _published_cells(length)
        faster, less = (
            float(published[key].value or 0) for key in ("faster_published", "less_published")
        )
        text += f"; published for an {_GPU}: {format_ratio(faster)} and {format_ratio(less)}"
    return text + "."


def _from_where_finding(found: Sequence[Found]) -> str | None:
    """From which length on flash is faster, at every longer one too."""
    slow, fast = (
        {each.length: each for each in found if (each.kernel, each.variant) == (kernel, FULL)}
        for kernel in (STANDARD, FLASH)
    )
    lengths = sorted(length for length in slow.keys() & fast.keys() if length is not None)
    faster: list[int] = []
    for length in reversed(lengths):
        (_, a), (_, b) = (_at(found, kernel, FULL, length) for kernel in (STANDARD, FLASH))
        ratio = speedup(a, b)
        if not (ratio.real and ratio.value > 1):
            break
        faster.append(length)
    if not lengths:
        return None
    if not faster:
        return f"At {lengths[-1]:,} tokens flash is not faster than standard beyond the noise."
    if len(faster) == len(lengths):
        return f"Flash is faster than standard at every length measured, from {lengths[0]:,} on."
    return f"Flash is faster than standard from {faster[-1]:,} tokens on."


def _causal_finding(found: Sequence[Found], kernel: str) -> str | None:
    """Half of the scores are of later keys: does the kernel leave them out?"""
    length = _longest(found, (kernel,), (FULL, CAUSAL))
    if not length:
        return None
    _, full = _at(found, kernel, FULL, length)
    _, causal = _at(found, kernel, CAUSAL, length)
    ratio = speedup(full, causal)
    text = f"Causal {kernel} at {length:,} tokens takes"
    if not ratio.real:
        return f"{text} as long as with all keys: no difference beyond the noise."
    share = 1 / ratio.value
    if share < 0.8:
        why = "it leaves out keys that are masked, half of all"
    elif share < 1:
        why = "well above the half of the scores that the mask leaves"
    else:
        why = "it computes masked scores too, and the mask costs time"
    return f"{text} {share:.2f} of the time with all keys: {why}."


def _growth_finding(found: Sequence[Found]) -> str | None:
    parts = []
    for kernel in (STANDARD, FLASH):
        time = _growth_of(found, FULL, kernel, _seconds)
        memory = _growth_of(found, FULL, kernel, _total)
        if time is None or memory is None:
            return None
        parts.append(f"{kernel}'s time {time.exponent:.2f} and its memory {memory.exponent:.2f}")
    return (
        f"Exponents of growth from {_FIT_FROM:,} tokens on: {', '.join(parts)}; in theory 2 and 2, "
        "2 and 1, for flash computes as much as standard and stores less."
    )


def _grouped_finding(found: Sequence[Found]) -> str | None:
    length = _longest(found, (STANDARD, FLASH), (GROUPED,))
    if not length:
        return None
    (_, slow), (_, fast) = (_at(found, kernel, GROUPED, length) for kernel in (STANDARD, FLASH))
    return f"With grouped queries at {length:,} tokens {_compared(speedup(slow, fast))}."


def _about_reference() -> str:
    """What the published figures say when they are reckoned with."""
    longest = max(ATTENTION)
    flash = [ATTENTION[length][1] for length in sorted(ATTENTION)]
    operations = 4 * 4 * 12 * longest**2 * 64  # two products, a multiply-add as two
    rate = operations / ATTENTION[longest][1].seconds / 1e12
    grown = growth(sorted(ATTENTION), [step.seconds for step in flash])
    assert grown is not None  # there are five lengths
    return (
        "its memory is, with MB read as MiB, exactly that of two N × N matrices (standard) and of "
        "queries, keys, values and output (flash); its flash times grow with the exponent "
        f"{grown.exponent:.2f}, the operations with 2, so that {longest:,} tokens would run at "
        f"{rate:.0f} TFLOP/s, or half of that if causal"
    )
