"""Gradient accumulation: a batch in parts, whose gradients add up before the optimizer steps.

    batch of 16 ─► 5 micro-batches of 3 and one of 1 ─► Σ loss of tokens ÷ tokens of the batch
                                                          └ backward each ─► one optimizer step

A language model's loss is a mean over tokens. Parts seldom hold equally many, so each must be
weighted by its tokens: the mean of their means is the loss of another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Benchmark, Case, speedup
from llmfit.device.execution import TorchDevice
from llmfit.studies.base import (
    StudyContext,
    StudyProgress,
    cell,
    no_progress,
    ratio_cell,
    share_of,
    time_cell,
)
from llmfit.studies.steps import does_not_fit, gradients_of, relative_difference
from llmfit.studies.tuning import TRAINING_TEXT, load_model, sequences
from llmfit.study_records import (
    BenchmarkResult,
    Series,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.units import format_bytes, format_percent, format_ratio

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TITLE = "Gradient accumulation"
QUESTION = (
    "Is a batch in parts the same as a whole one, and what memory and time does each part save?"
)

IGNORED = -100
"""Label of a token that counts for no loss: cross_entropy's own."""
TOLERANCE = 1e-5
"""Relative, of gradients and losses in float32, which are added in another order."""
_FAR = 100
"""A difference so many times larger than rounding is not one of rounding."""
_NORM_ROWS, _NORM_PARTS = 32, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The study's sizes: sequences of ``shortest`` to ``tokens`` tokens, cut into micro-batches."""

    batch: int
    tokens: int
    shortest: int
    micro_batches: tuple[int, ...]
    """Largest first, the whole batch itself before all others."""
    runs: int


DEFAULT = Sizes(batch=16, tokens=128, shortest=16, micro_batches=(16, 8, 4, 3, 1), runs=5)
REFERENCE = Sizes(batch=64, tokens=1024, shortest=64, micro_batches=(64, 32, 16, 12, 4, 1), runs=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences padded to one length: ``ids`` and ``labels``, both ``int64[B, T]``."""

    ids: Tensor
    labels: Tensor
    """``ids``, and ``IGNORED`` where there is padding."""
    predicted: int
    """Tokens that the loss is a mean over: all but each sequence's first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size of micro-batches; one that does not fit has its reason and no figures."""

    micro: int
    steps: int
    name: str
    reason: str | None = None
    loss: float | None = None
    """As reported: over all tokens of the batch."""
    mean_of_means: float | None = None
    """The loss where every part weighs the same."""
    difference: float | None = None
    """Of the gradients from the whole batch's, relative."""
    naive_difference: float | None = None
    """The same where every part weighs the same."""
    result: BenchmarkResult | None = None


def run(context: StudyContext) -> StudyResult:
    """Run the study on the context's device."""
    import torch

    sizes = REFERENCE if context.preset == "reference" else DEFAULT
    torch.manual_seed(context.seed)
    model = load_model(context.device, in_float32=True).train()
    batch = text_batch(sizes, seed=context.seed, device=context.device)
    found = measure(model, batch, sizes, context.bench, context.progress)
    return StudyResult(
        study="accumulation",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={
            **asdict(replace(sizes, micro_batches=())),
            "micro_batches": ", ".join(map(str, sizes.micro_batches)),
            "predicted_tokens": batch.predicted,
            "dtype": "float32",
            "optimizer": "AdamW",
        },
        tables=(table(found),),
        plots=_plots(found),
        checks=(
            _gradients_check(found),
            last_group_check(model, batch, found),
            _loss_check(found),
            _naive_check(found),
            equal_lengths_check(model, sizes, context),
            _memory_check(found),
            batch_norm_check(context.seed),
        ),
        findings=_findings(found),
        notes=(
            "The embedded model on its own training text; sequences of "
            f"{sizes.shortest} to {sizes.tokens:,} tokens, padded. No published figures stand "
            "beside: none of accumulation are known.",
            "Peak: model, gradients, AdamW's state and all that a step allocates beyond them.",
        ),
        benchmarks=tuple(m.result for m in found if m.result is not None),
    )


# ---------------------------------------------------------------- a batch and its parts


def text_batch(sizes: Sizes, *, seed: int, device: TorchDevice, equal: bool = False) -> Batch:
    """Text cut to lengths that ``seed`` draws; ``equal`` leaves every sequence whole."""
    import torch

    ids = sequences(TRAINING_TEXT, tokens=sizes.tokens, seed=seed, most=sizes.batch)
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(sizes.shortest, sizes.tokens + 1, (len(ids), 1), generator=random)
    padding = torch.arange(sizes.tokens) >= lengths
    labels = ids if equal else ids.masked_fill(padding, IGNORED)
    return batch_of(ids.to(device), labels.to(device))


def batch_of(ids: Tensor, labels: Tensor) -> Batch:
    """A batch with its tokens counted."""
    return Batch(ids=ids, labels=labels, predicted=int((labels[:, 1:] != IGNORED).sum()))


def parts_of(batch: Batch, micro: int) -> tuple[Batch, ...]:
    """The batch in micro-batches of ``micro`` sequences, the last of what is left."""
    pairs = zip(batch.ids.split(micro), batch.labels.split(micro), strict=True)
    return tuple(batch_of(ids, labels) for ids, labels in pairs)


def summed_loss(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the predicted tokens."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    return cross_entropy(
        logits.flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def accumulate(model: Any, parts: Sequence[Batch], *, by_tokens: bool = True) -> Tensor:
    """Add up the gradients of ``parts`` and return the loss at its true scale, float32[].

    ``by_tokens`` weights a part by its tokens, which is the loss of the whole batch; without, every
    part's mean weighs the same.
    """
    whole = sum(part.predicted for part in parts)
    reported: Any = 0.0
    for part in parts:
        weight = 1 / whole if by_tokens else 1 / (part.predicted * len(parts))
        loss = summed_loss(model, part) * weight
        loss.backward()
        reported = reported + loss.detach()
    found: Tensor = reported
    return found


def name_of(batch: int, micro: int) -> str:
    """Micro-batches in words: ``4 × 4``, and ``5 × 3 + 1`` with an uneven last one."""
    whole, left = divmod(batch, micro)
    return f"{whole} × {micro}" + (f" + {left}" if left else "")


# ---------------------------------------------------------------- measuring


def measure(
    model: Any,
    batch: Batch,
    sizes: Sizes,
    bench: Benchmark,
    progress: StudyProgress = no_progress,
) -> tuple[Measured, ...]:
    """Loss, gradients, memory and time for each size of micro-batches; steps take turns."""
    import torch

    # At a learning rate of 0 a step costs the same and every case begins with the same weights.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(parts: Sequence[Batch]) -> None:
        optimizer.zero_grad(set_to_none=True)
        accumulate(model, parts)
        optimizer.step()

    step(parts_of(batch, 1)[:1])  # makes the optimizer's state, which is there in every later step
    optimizer.zero_grad(set_to_none=True)  # freed later, they would hide a step's need
    found: list[Measured] = []
    whole: list[Tensor] = []
    for index, micro in enumerate(sizes.micro_batches):
        progress("gradients", index, len(sizes.micro_batches))
        tried, gradients = _tried(model, batch, micro, whole, bench.device)
        if micro == len(batch.ids):
            whole = gradients
        found.append(tried)
    cases = [
        _case(model, optimizer, partial(step, parts_of(batch, tried.micro)), tried, batch)
        for tried in found
        if tried.reason is None
    ]
    if not cases:
        return tuple(found)
    results = iter(
        bench.run_in_turns(
            cases,
            n_warmup=1,
            n_runs=sizes.runs,
            progress=lambda done, total: progress("steps", done, total),
        )
    )
    return tuple(
        tried if tried.reason is not None else replace(tried, result=next(results))
        for tried in found
    )


def _tried(
    model: Any, batch: Batch, micro: int, whole: list[Tensor], device: TorchDevice
) -> tuple[Measured, list[Tensor]]:
    """Losses and gradients in micro-batches, weighted both ways; or why it does not fit."""
    parts = parts_of(batch, micro)
    losses: list[float] = []
    gradients: list[list[Tensor]] = []

    def both() -> None:
        for by_tokens in (True, False):
            gradients.append(
                gradients_of(
                    model,
                    lambda: losses.append(
                        accumulate(model, parts, by_tokens=by_tokens).item()  # noqa: B023
                    ),
                )
            )

    tried = Measured(micro=micro, steps=len(parts), name=name_of(len(batch.ids), micro))
    single = parts_of(batch, 1)[:1]
    reason = does_not_fit(
        both,
        one=lambda: gradients_of(model, lambda: accumulate(model, single)),
        sequences=micro,
        device=device,
    )
    if reason is not None:
        model.zero_grad(set_to_none=True)
        return replace(tried, reason=reason), []
    base = whole or (gradients[0] if micro == len(batch.ids) else None)
    return (
        replace(
            tried,
            loss=losses[0],
            mean_of_means=losses[1],
            difference=relative_difference(base, gradients[0]) if base else None,
            naive_difference=relative_difference(base, gradients[1]) if base else None,
        ),
        gradients[0],
    )


def _case(
    model: Any,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], None],
    tried: Measured,
    batch: Batch,
) -> Case:
    return Case(
        name=tried.name,
        call=lambda _: step(),
        batch_size=len(batch.ids),
        model=model,
        optimizer=optimizer,
        kind="training step",
        count_flops=False,
    )


# ---------------------------------------------------------------- what must hold


def _parted(found: Sequence[Measured]) -> list[Measured]:
    """What ran in more than one step and has the whole batch to compare with."""
    return [m for m in found if m.steps > 1 and m.difference is not None]


def _gradients_check(found: Sequence[Measured]) -> StudyCheck:
    name = "weighted by tokens, the gradients are the whole batch's"
    parted = _parted(found)
    if not parted:
        return StudyCheck(name=name, holds=None, detail="the whole batch does not fit")
    worst = max(parted, key=lambda m: m.difference or 0.0)
    assert worst.difference is not None  # those in _parted have one
    return StudyCheck(
        name=name,
        holds=worst.difference <= TOLERANCE,
        detail=f"at most {worst.difference:.1e} of their norm apart, in {worst.name}",
    )


def last_group_check(model: Any, batch: Batch, found: Sequence[Measured]) -> StudyCheck:
    """An uneven last micro-batch counts as its tokens do; without it the gradients are others."""
    name = "an uneven last micro-batch is included"
    uneven = [m for m in _parted(found) if len(batch.ids) % m.micro]
    if not uneven:
        return StudyCheck(name=name, holds=None, detail="no size leaves an uneven last one")
    chosen = uneven[0]
    parts = parts_of(batch, chosen.micro)
    whole = gradients_of(model, lambda: accumulate(model, parts))
    without = gradients_of(model, lambda: accumulate(model, parts[:-1]))
    lost, kept = relative_difference(whole, without), chosen.difference or 0.0
    return StudyCheck(
        name=name,
        holds=kept <= TOLERANCE < lost,
        detail=f"{chosen.name}: {kept:.1e} apart with it, {lost:.1e} without it",
    )


def _loss_check(found: Sequence[Measured]) -> StudyCheck:
    name = "the loss is reported at its true scale"
    whole = next((m.loss for m in found if m.steps == 1 and m.loss is not None), None)
    losses = [m.loss for m in found if m.steps > 1 and m.loss is not None]
    if whole is None or not losses:
        return StudyCheck(name=name, holds=None, detail="the whole batch does not fit")
    worst = max(abs(loss / whole - 1) for loss in losses)
    return StudyCheck(
        name=name,
        holds=worst <= TOLERANCE,
        detail=f"{whole:.5f} of the whole batch, in parts at most {worst:.1e} of it off",
    )


def _naive_check(found: Sequence[Measured]) -> StudyCheck:
    """The pitfall is real: what is no rounding separates the mean of means from the batch."""
    name = "a mean of the parts' means is another batch's gradient"
    parted = _parted(found)
    if not parted:
        return StudyCheck(name=name, holds=None, detail="the whole batch does not fit")
    least = min(m.naive_difference or 0.0 for m in parted)
    most = max(m.naive_difference or 0.0 for m in parted)
    rounding = max(m.difference or 0.0 for m in parted)
    return StudyCheck(
        name=name,
        holds=least > _FAR * rounding,
        detail=f"{least:.1e} to {most:.1e} of its norm apart, rounding is {rounding:.1e}",
    )


def equal_lengths_check(model: Any, sizes: Sizes, context: StudyContext) -> StudyCheck:
    """With equally many tokens in every part both weights are the same."""
    name = "with equally long sequences the mean of means is right"
    even = [m for m in sizes.micro_batches if m < sizes.batch and sizes.batch % m == 0]
    if not even:
        return StudyCheck(name=name, holds=None, detail="no size divides the batch evenly")
    micro = even[-1]  # the smallest fits wherever anything does
    batch = text_batch(sizes, seed=context.seed, device=context.device, equal=True)
    parts = parts_of(batch, micro)
    weighted = gradients_of(model, lambda: accumulate(model, parts))
    naive = gradients_of(model, lambda: accumulate(model, parts, by_tokens=False))
    apart = relative_difference(weighted, naive)
    return StudyCheck(
        name=name,
        holds=apart <= TOLERANCE,
        detail=f"{name_of(sizes.batch, micro)}: {apart:.1e} of their norm apart",
    )


def _memory_check(found: Sequence[Measured]) -> StudyCheck:
    name = "smaller micro-batches need less memory"
    working = [
        m.result.working_bytes
        for m in found
        if m.result is not None and m.result.working_bytes is not None
    ]
    if len(working) < 2:
        return StudyCheck(name=name, holds=None, detail="the device counts no memory of a step")
    return StudyCheck(
        name=name,
        holds=all(more > less for more, less in pairwise(working)),
        detail="beyond model and optimizer " + ", ".join(map(format_bytes, working)),
    )


def batch_norm_check(seed: int) -> StudyCheck:
    """What accumulation does not keep: statistics over the batch."""
    batch, layer = norm_differences(seed)
    return StudyCheck(
        name="batch norm sees the micro-batch, layer norm does not",
        holds=layer <= TOLERANCE and batch > _FAR * TOLERANCE,
        detail=(
            f"gradients of {_NORM_ROWS} rows in {_NORM_PARTS} parts: {batch:.1e} of their norm "
            f"apart with batch norm, {layer:.1e} with layer norm"
        ),
    )


def norm_differences(seed: int) -> tuple[float, float]:
    """How far gradients in parts are from the whole's, with batch norm and with layer norm."""
    import torch
    from torch import nn

    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(_NORM_ROWS, 8, generator=random), torch.randn(_NORM_ROWS, generator=random)

    def apart(norm: nn.Module) -> float:
        model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 1))

        def backward(parts: int) -> None:
            pairs = zip(x.chunk(parts), y.chunk(parts), strict=True)
            for rows, wanted in pairs:
                squares = (model(rows).squeeze(1) - wanted).square()
                (squares.sum() / _NORM_ROWS).backward()

        whole = gradients_of(model, lambda: backward(1))
        return relative_difference(whole, gradients_of(model, lambda: backward(_NORM_PARTS)))

    return apart(nn.BatchNorm1d(16)), apart(nn.LayerNorm(16))


# ---------------------------------------------------------------- what is shown


def table(found: Sequence[Measured]) -> StudyTable:
    """A row for each size of micro-batches, against the whole batch."""
    first = next((m.result for m in found if m.steps == 1), None)
    return StudyTable(
        title="A training step of one effective batch",
        head="micro-batches",
        columns=(
            StudyColumn(key="time", head="step", unit="s"),
            StudyColumn(key="speed", head="speed", under="÷ whole", unit="ratio"),
            StudyColumn(key="peak", head="peak", unit="bytes"),
            StudyColumn(key="memory", head="memory", under="÷ whole", unit="ratio"),
            StudyColumn(key="loss", head="loss", unit="number"),
            StudyColumn(key="difference", head="gradients", under="apart by", unit="number"),
            StudyColumn(key="naive", head="mean of", under="means", unit="number"),
            StudyColumn(
                key="naive_loss", head="loss, mean", under="of means", unit="number", needed=False
            ),
            StudyColumn(
                key="working", head="beyond model", under="and state", unit="bytes", needed=False
            ),
        ),
        rows=tuple(_row(m, first) for m in found),
        notes=(
            "Gradients apart by: ‖difference‖ ÷ ‖whole batch's‖, weighted by tokens; mean of "
            "means: the same where every micro-batch weighs the same.",
        ),
    )


def _row(measured: Measured, first: BenchmarkResult | None) -> StudyRow:
    result = measured.result
    if result is None:
        return StudyRow(name=measured.name, status="does_not_fit", reason=measured.reason)
    cells = {
        "time": time_cell(result),
        "peak": cell(result.peak_bytes),
        "working": cell(result.working_bytes),
        "loss": cell(measured.loss),
        "difference": cell(measured.difference),
        "naive": cell(measured.naive_difference),
        "naive_loss": cell(measured.mean_of_means),
    }
    if first is not None:
        cells |= {
            "speed": ratio_cell(speedup(first, result)),
            "memory": share_of(result.peak_bytes, first.peak_bytes),
        }
    return StudyRow(name=measured.name, cells=cells)


def _plots(found: Sequence[Measured]) -> tuple[StudyPlot, ...]:
    """Memory, time and the gradients' error against the number of steps."""
    ran = [m for m in found if m.result is not None]
    steps = tuple(float(m.steps) for m in ran)
    results = [m.result for m in ran if m.result is not None]
    lasting = tuple(
        None if r.held_bytes is None else r.held_bytes + 4 * (r.trainable_parameters or 0)
        for r in results
    )
    parted = _parted(found)
    accumulated = tuple(float(m.steps) for m in parted)
    return (
        StudyPlot(
            title="Memory of a step",
            kind="lines",
            x_label="micro-batches",
            y_label="bytes",
            series=(
                Series(name="peak", x=steps, y=tuple(r.peak_bytes for r in results)),
                Series(name="model, gradients, optimizer", x=steps, y=lasting),
            ),
            log_x=True,
        ),
        StudyPlot(
            title="Time of a step",
            kind="lines",
            x_label="micro-batches",
            y_label="s",
            series=(Series(name="step", x=steps, y=tuple(r.latency_s.median for r in results)),),
            log_x=True,
        ),
        StudyPlot(
            title="Gradients against the whole batch's",
            kind="lines",
            x_label="micro-batches",
            y_label="relative difference",
            series=(
                Series(name="by tokens", x=accumulated, y=tuple(m.difference for m in parted)),
                Series(
                    name="mean of means",
                    x=accumulated,
                    y=tuple(m.naive_difference for m in parted),
                ),
            ),
            log_x=True,
            log_y=True,
        ),
    )


def _findings(found: Sequence[Measured]) -> tuple[str, ...]:
    sentences = []
    first = next((m for m in found if m.steps == 1 and m.result is not None), None)
    last = next((m for m in reversed(found) if m.steps > 1 and m.result is not None), None)
    if first is not None and last is not None:
        sentences.append(_cost(first, last))
    parted = _parted(found)
    if parted:
        worst = max(parted, key=lambda m: m.naive_difference or 0.0)
        sentences.append(
            "Where every micro-batch weighs the same, gradients are up to "
            f"{format_percent(worst.naive_difference or 0.0)} of their norm off ({worst.name}, "
            f"loss {worst.mean_of_means:.4f} for {worst.loss:.4f}); weighted by tokens at most "
            f"{max(m.difference or 0.0 for m in parted):.1e}."
        )
    return tuple(sentences)


def _cost(first: Measured, last: Measured) -> str:
    assert first.result is not None  # the caller has seen to it
    assert last.result is not None
    speed = speedup(first.result, last.result)
    time = (
        f"its step takes {format_ratio(1 / speed.value)} the whole batch's time"
        if speed.real
        else "its step's time differs by nothing beyond the noise"
    )
    peaks = first.result.peak_bytes, last.result.peak_bytes
    if peaks[0] is None or peaks[1] is None:
        return f"In {last.name} a batch is the same batch; {time}."
    return (
        f"In {last.name} a batch of {first.micro} peaks at {format_bytes(peaks[1])} and not "
        f"{format_bytes(peaks[0])} ({format_percent(peaks[1] / peaks[0])}); {time}."
    )
