"""Sizes ─► loss, gradients, memory and time for each size of micro-batches, as ``Found``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Case
from llmfit.device.execution import TorchDevice
from llmfit.studies.accumulation.batches import (
    Batch,
    accumulate,
    name_of,
    parts_of,
    text_batch,
)
from llmfit.studies.accumulation.norms import NormDifferences, norm_differences
from llmfit.studies.base import StudyContext
from llmfit.studies.steps import (
    does_not_fit,
    gradients_of,
    relative_difference,
    still_optimizer,
    take_step,
    time_in_turns,
)
from llmfit.studies.tuning import load_model
from llmfit.study_records import BenchmarkResult

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    without_last: float | None = None
    """The same without the last micro-batch; of the first size that leaves an uneven one."""
    result: BenchmarkResult | None = None

    @property
    def compared(self) -> bool:
        """It has more than one step, and the whole batch to compare with."""
        return self.steps > 1 and self.difference is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualLengths:
    """A batch of equally long sequences in parts."""

    name: str
    """The micro-batches."""
    difference: float
    """Of the gradients where every part weighs the same from those weighted by tokens, relative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that the study measured."""

    predicted_tokens: int
    """Of the batch."""
    measured: tuple[Measured, ...]
    """Each size of micro-batches."""
    equal: EqualLengths | None
    """None where no size divides the batch evenly."""
    norms: NormDifferences

    @property
    def compared(self) -> tuple[Measured, ...]:
        """What ran in more than one step and has the whole batch to compare with."""
        return tuple(m for m in self.measured if m.compared)


def measure(context: StudyContext, sizes: Sizes) -> Found:
    """The embedded model's steps over one batch of its training text."""
    import torch

    torch.manual_seed(context.seed)
    model = load_model(context.device, in_float32=True).train()
    batch = _batch(context, sizes, shortest=sizes.shortest)
    measured = _measured(context, sizes, model, batch)
    return Found(
        predicted_tokens=batch.predicted,
        measured=_without_last(model, batch, measured),
        equal=_equal_lengths(context, sizes, model),
        norms=norm_differences(context.seed),
    )


def _batch(context: StudyContext, sizes: Sizes, *, shortest: int) -> Batch:
    return text_batch(
        sizes.batch,
        tokens=sizes.tokens,
        shortest=shortest,
        seed=context.seed,
        device=context.device,
    )


def _measured(
    context: StudyContext, sizes: Sizes, model: Any, batch: Batch
) -> tuple[Measured, ...]:
    """Each size of micro-batches; their steps take turns."""
    single = parts_of(batch, 1)[:1]
    optimizer = still_optimizer(model, lambda: accumulate(model, single))

    def step(parts: Sequence[Batch]) -> None:
        take_step(optimizer, lambda: accumulate(model, parts))

    tried: list[Measured] = []
    whole: list[Tensor] = []
    for index, micro in enumerate(sizes.micro_batches):
        context.progress("gradients", index, len(sizes.micro_batches))
        measured, gradients = _tried(model, batch, micro, whole, context.device)
        if micro == len(batch.ids):
            whole = gradients
        tried.append(measured)
    results = time_in_turns(
        context.bench,
        [
            None
            if m.reason is not None
            else _case(model, optimizer, partial(step, parts_of(batch, m.micro)), m, batch)
            for m in tried
        ],
        runs=sizes.runs,
        progress=lambda done, total: context.progress("steps", done, total),
    )
    return tuple(replace(m, result=r) for m, r in zip(tried, results, strict=True))


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


def _without_last(model: Any, batch: Batch, measured: tuple[Measured, ...]) -> tuple[Measured, ...]:
    """``measured``, the first size that leaves an uneven micro-batch tried without that one too."""
    chosen = next((m for m in measured if m.compared and len(batch.ids) % m.micro), None)
    if chosen is None:
        return measured
    parts = parts_of(batch, chosen.micro)
    whole = gradients_of(model, lambda: accumulate(model, parts))
    without = gradients_of(model, lambda: accumulate(model, parts[:-1]))
    lost = relative_difference(whole, without)
    return tuple(replace(m, without_last=lost) if m is chosen else m for m in measured)


def _equal_lengths(context: StudyContext, sizes: Sizes, model: Any) -> EqualLengths | None:
    """A batch in which every part holds equally many tokens, weighted both ways."""
    even = [m for m in sizes.micro_batches if m < sizes.batch and sizes.batch % m == 0]
    if not even:
        return None
    micro = even[-1]  # the smallest fits wherever anything does
    parts = parts_of(_batch(context, sizes, shortest=sizes.tokens), micro)
    weighted = gradients_of(model, lambda: accumulate(model, parts))
    naive = gradients_of(model, lambda: accumulate(model, parts, by_tokens=False))
    return EqualLengths(
        name=name_of(sizes.batch, micro), difference=relative_difference(weighted, naive)
    )
