"""Sizes ─► memory, gradients and time of every mode of both models, as ``Found``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Benchmark, Case
from llmfit.device.execution import TorchDevice
from llmfit.studies.base import StudyContext, StudyProgress, no_progress
from llmfit.studies.checkpointing.subjects import (
    OFF,
    ON,
    Selective,
    Subject,
    library_subject,
    own_subject,
)
from llmfit.studies.steps import (
    does_not_fit,
    gradients_of,
    relative_difference,
    saved_bytes,
    still_optimizer,
    take_step,
    time_in_turns,
)
from llmfit.study_records import BenchmarkResult

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmfit.studies.transformer import TransformerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The study's sizes: its own Transformer's, and the batch of the embedded model."""

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    batch: int
    tokens: int
    library_batch: int
    library_tokens: int
    runs: int

    def shape(self) -> TransformerShape:
        """The Transformer's shape, a key and a value head to each query head."""
        from llmfit.studies.transformer import TransformerShape

        return TransformerShape(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            inner=self.inner,
            vocabulary=self.vocabulary,
        )


DEFAULT = Sizes(
    layers=12,
    width=192,
    heads=6,
    inner=512,
    vocabulary=2048,
    batch=4,
    tokens=256,
    library_batch=4,
    library_tokens=256,
    runs=6,
)
REFERENCE = Sizes(
    layers=12,
    width=768,
    heads=12,
    inner=2048,
    vocabulary=32_000,
    batch=8,
    tokens=2048,
    library_batch=32,
    library_tokens=1024,
    runs=10,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A mode of a subject; one that does not fit has its reason and no figures."""

    mode: str
    reason: str | None = None
    saved_bytes: int | None = None
    """Of tensors that the forward pass keeps for the backward, parameters left out."""
    difference: float | None = None
    """Of the gradients from those without checkpointing, relative."""
    result: BenchmarkResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A subject's modes in their order, and what its layers' inputs and all else take."""

    subject: str
    modes: tuple[Measured, ...]
    input_bytes: int
    """Of the inputs of all layers."""
    outside_bytes: int | None
    """Kept for the backward by the same model without layers; counted where ``on`` fits."""

    def by_mode(self, mode: str) -> Measured:
        """The mode's measurement; an empty one where the subject has no such mode."""
        empty = Measured(mode=mode, reason="not a mode")
        return next((m for m in self.modes if m.mode == mode), empty)


def measure(context: StudyContext, sizes: Sizes) -> tuple[Found, Found]:
    """Every mode of the own Transformer, and of the embedded model."""
    import torch

    torch.manual_seed(context.seed)
    own = own_subject(sizes.shape(), batch=sizes.batch, tokens=sizes.tokens, device=context.device)
    library = library_subject(
        batch=sizes.library_batch, tokens=sizes.library_tokens, device=context.device
    )
    first, second = (
        measure_subject(subject, context.bench, sizes.runs, context.progress)
        for subject in (own, library)
    )
    return first, second


def measure_subject(
    subject: Subject, bench: Benchmark, runs: int, progress: StudyProgress = no_progress
) -> Found:
    """Memory, gradients and time of every mode of ``subject``; the modes' steps take turns."""
    model = subject.model

    def backward(mode: str, ids: Tensor) -> None:
        subject.modes[mode](model)
        subject.loss(model, ids).backward()

    optimizer = still_optimizer(model, lambda: backward(OFF, subject.ids[:1]))

    def step(mode: str, ids: Tensor) -> None:
        take_step(optimizer, lambda: backward(mode, ids))

    tried: list[Measured] = []
    plain: list[Tensor] = []
    for index, mode in enumerate(subject.modes):
        progress(f"{subject.name}: gradients", index, len(subject.modes))
        measured, gradients = _tried(subject, mode, step, bench.device)
        if mode == OFF:
            plain = gradients
        if plain and gradients:
            measured = replace(measured, difference=relative_difference(plain, gradients))
        tried.append(measured)
    results = time_in_turns(
        bench,
        [None if m.reason is not None else _case(subject, m.mode, step, optimizer) for m in tried],
        runs=runs,
        progress=lambda done, total: progress(f"{subject.name}: steps", done, total),
    )
    return Found(
        subject=subject.name,
        modes=tuple(replace(m, result=r) for m, r in zip(tried, results, strict=True)),
        input_bytes=subject.input_bytes,
        outside_bytes=kept_bytes(subject.bare, lambda: subject.loss(subject.bare, subject.ids))
        if any(m.mode == ON and m.reason is None for m in tried)
        else None,
    )


def _tried(
    subject: Subject, mode: str, step: Callable[[str, Tensor], None], device: TorchDevice
) -> tuple[Measured, list[Tensor]]:
    """A mode's saved bytes, and its gradients; or the reason why it does not fit."""
    subject.modes[mode](subject.model)
    kept = 0
    gradients: list[Tensor] = []

    def whole() -> None:
        nonlocal kept, gradients
        kept = kept_bytes(subject.model, lambda: subject.loss(subject.model, subject.ids))
        gradients = gradients_of(subject.model, lambda: step(mode, subject.ids))

    reason = does_not_fit(
        whole,
        one=lambda: step(mode, subject.ids[:1]),
        sequences=len(subject.ids),
        device=device,
    )
    if reason is not None:
        subject.model.zero_grad(set_to_none=True)
        return Measured(mode=mode, reason=reason), []
    return Measured(mode=mode, saved_bytes=kept), gradients


def kept_bytes(model: Any, forward: Callable[[], object]) -> int:
    """Bytes that ``forward`` keeps for a backward pass, selective checkpointing's among them."""
    # What that keeps it puts into a store of its own, which no hook sees.
    selective = getattr(model, "run_block", None)
    if not isinstance(selective, Selective):
        return saved_bytes(model, forward)
    kept: list[Tensor] = []
    selective.listed = kept
    try:
        return saved_bytes(model, forward, beside=kept)
    finally:
        selective.listed = None


def _case(
    subject: Subject,
    mode: str,
    step: Callable[[str, Tensor], None],
    optimizer: torch.optim.Optimizer,
) -> Case:
    return Case(
        name=f"{subject.name}, {mode}",
        call=lambda _: step(mode, subject.ids),
        batch_size=len(subject.ids),
        model=subject.model,
        optimizer=optimizer,
        kind="training step",
    )
