"""Gradient checkpointing: activations thrown away in the forward pass, made again in the backward.

    off:        every layer keeps what its backward needs
    on:         a layer keeps its input x: [B, T, C] and is run again (non-reentrant)
    selective:  a layer keeps x and its matrix products; the cheap rest is run again

What a step keeps is counted tensor by tensor, beside its peak in the allocator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
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
from llmfit.studies.reference import CHECKPOINTING, CHECKPOINTING_OF
from llmfit.studies.steps import (
    does_not_fit,
    gradients_of,
    relative_difference,
    saved_bytes,
)
from llmfit.studies.tuning import load_model, text_loss
from llmfit.study_records import (
    BenchmarkResult,
    Cell,
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

    from llmfit.studies.transformer import TransformerShape

TITLE = "Gradient checkpointing"
QUESTION = (
    "How much memory does recomputing activations save in training, and what time does it cost?"
)

OFF, ON, SELECTIVE, EVERY_SECOND = "off", "on", "selective", "every 2nd"
GRADIENT_TOLERANCE = 1e-5
"""Relative; on a CPU gradients are equal bit by bit, a GPU's kernels add in changing order."""
_ITEM = 4
"""Bytes of a float32."""
_PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""Operators of ATen whose results selective checkpointing keeps."""


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
class Subject:
    """A model to train, and its ways of running its layers."""

    name: str
    model: Any
    bare: Any
    """The same model without layers: what is kept outside them."""
    loss: Callable[[Any, Tensor], Tensor]
    """Of the model and ``ids``."""
    modes: Mapping[str, Callable[[Any], None]]
    """Each sets the model to a way of running its layers; the first is without checkpointing."""
    layers: int
    width: int
    positions: int
    """Tokens of a batch that the layers see."""
    ids: Tensor
    """int64, a sequence each row."""

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs of all layers, one ``float32[B, T, C]`` each."""
        return self.layers * self.positions * self.width * _ITEM


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


def run(context: StudyContext) -> StudyResult:
    """Run the study on the context's device."""
    import torch

    sizes = REFERENCE if context.preset == "reference" else DEFAULT
    torch.manual_seed(context.seed)
    own, library = own_subject(sizes, context.device), library_subject(sizes, context.device)
    found = {
        subject.name: measure(subject, context.bench, sizes.runs, context.progress)
        for subject in (own, library)
    }
    ours, theirs = found[own.name], found[library.name]
    return StudyResult(
        study="checkpointing",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={**asdict(sizes), "dtype": "float32", "optimizer": "AdamW"},
        tables=(table(own, ours, published=True), table(library, theirs, published=False)),
        plots=_plots(ours),
        checks=(*checks(own, ours), *flop_checks(sizes, ours), *checks(library, theirs)),
        findings=(*findings(own, ours, published=True), *findings(library, theirs)),
        reference=(
            f"{CHECKPOINTING_OF}. Width, vocabulary, precision and optimizer of it are not "
            "published: compare ratios, not bytes or seconds"
        ),
        notes=_notes(sizes),
        benchmarks=tuple(m.result for m in (*ours, *theirs) if m.result is not None),
    )


# ---------------------------------------------------------------- subjects


class Selective:
    """Runs a layer so that its matrix products are kept and the rest is made again."""

    def __init__(self) -> None:
        self.listed: list[Tensor] | None = None
        """Where what is kept is listed, while it is counted."""

    def __call__(self, block: Callable[..., Tensor], x: Tensor, turn: object) -> Tensor:
        from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

        out: Tensor = checkpoint(
            block,
            x,
            turn,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(self._policy),
        )
        return out

    def _policy(self, context: Any, operator: Any, *_: object, **__: object) -> Any:
        from torch import Tensor
        from torch.utils._pytree import tree_leaves
        from torch.utils.checkpoint import CheckpointPolicy

        if operator.namespace != "aten" or operator._schema.name[6:] not in _PRODUCTS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        if self.listed is not None and not context.is_recompute:
            leaves = tree_leaves(context.op_output)
            self.listed += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return CheckpointPolicy.MUST_SAVE


def checkpointed(block: Callable[..., Tensor], x: Tensor, turn: object) -> Tensor:
    """Runs a layer so that of its tensors only ``x`` is kept."""
    from torch.utils.checkpoint import checkpoint

    out: Tensor = checkpoint(block, x, turn, use_reentrant=False)
    return out


def own_subject(sizes: Sizes, device: TorchDevice) -> Subject:
    """The studies' own Transformer, on random tokens."""
    import torch

    from llmfit.studies.transformer import Transformer

    def loss(model: Any, ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def runs(run_block: Callable[..., Tensor] | None) -> Callable[[Any], None]:
        return lambda model: setattr(model, "run_block", run_block)

    shape = sizes.shape()
    ids = torch.randint(sizes.vocabulary, (sizes.batch, sizes.tokens + 1))
    return Subject(
        name=f"own Transformer, {sizes.layers} layers",
        model=Transformer(shape).to(device),
        bare=Transformer(replace(shape, layers=0)).to(device),
        loss=loss,
        modes={OFF: runs(None), ON: runs(checkpointed), SELECTIVE: runs(Selective())},
        layers=sizes.layers,
        width=sizes.width,
        positions=sizes.batch * sizes.tokens,
        ids=ids.to(device),
    )


def library_subject(sizes: Sizes, device: TorchDevice) -> Subject:
    """The embedded model by transformers, whose own switch is what a user would turn."""
    import torch

    model = load_model(device, in_float32=True).train()
    config = deepcopy(model.config)
    config.num_hidden_layers = 0
    ids = torch.randint(config.vocab_size, (sizes.library_batch, sizes.library_tokens))
    return Subject(
        name=f"embedded model by transformers, {model.config.num_hidden_layers} layers",
        model=model,
        bare=type(model)(config).to(device).train(),
        loss=text_loss,
        modes={
            OFF: _by_transformers(None),
            ON: _by_transformers(1),
            EVERY_SECOND: _by_transformers(2),
        },
        layers=model.config.num_hidden_layers,
        width=config.hidden_size,
        positions=ids.numel(),
        ids=ids.to(device),
    )


def _by_transformers(every: int | None) -> Callable[[Any], None]:
    """Transformers' own switch, on for every so many layers; None turns it off."""

    def switch(model: Any) -> None:
        with warnings.catch_warnings():
            # The names that all releases of today have, and that 5.23 calls outdated.
            warnings.simplefilter("ignore", FutureWarning)
            if every is None:
                model.gradient_checkpointing_disable()
                return
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=every
            )
        # Every call adds a hook, for training with frozen embeddings, that nothing takes away.
        model.disable_input_require_grads()

    return switch


# ---------------------------------------------------------------- measuring


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


def measure(
    subject: Subject, bench: Benchmark, runs: int, progress: StudyProgress = no_progress
) -> tuple[Measured, ...]:
    """Memory, gradients and time of every mode of ``subject``; the modes' steps take turns."""
    import torch

    model = subject.model
    # At a learning rate of 0 a step costs the same and every mode begins with the same weights.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(mode: str, ids: Tensor) -> None:
        subject.modes[mode](model)
        optimizer.zero_grad(set_to_none=True)
        subject.loss(model, ids).backward()
        optimizer.step()

    step(OFF, subject.ids[:1])  # makes the optimizer's state, which is there in every later step
    optimizer.zero_grad(set_to_none=True)  # freed later, they would hide a step's need
    found: list[Measured] = []
    plain: list[Tensor] = []
    for index, mode in enumerate(subject.modes):
        progress(f"{subject.name}: gradients", index, len(subject.modes))
        tried, gradients = _tried(subject, mode, step, bench.device)
        if mode == OFF:
            plain = gradients
        if plain and gradients:
            tried = replace(tried, difference=relative_difference(plain, gradients))
        found.append(tried)
    cases = [_case(subject, tried.mode, step, optimizer) for tried in found if tried.reason is None]
    if not cases:
        return tuple(found)
    results = iter(
        bench.run_in_turns(
            cases,
            n_warmup=1,
            n_runs=runs,
            progress=lambda done, total: progress(f"{subject.name}: steps", done, total),
        )
    )
    return tuple(
        tried if tried.reason is not None else replace(tried, result=next(results))
        for tried in found
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


# ---------------------------------------------------------------- what must hold


def checks(subject: Subject, found: Sequence[Measured]) -> tuple[StudyCheck, ...]:
    """Gradients are those without checkpointing; saved bytes fall, to what is computed."""
    return (
        _gradients_check(subject, found),
        _falling_check(subject, found),
        _inputs_check(subject, found),
    )


def _gradients_check(subject: Subject, found: Sequence[Measured]) -> StudyCheck:
    name = f"{subject.name}: the same gradients"
    known = [m for m in found if m.mode != OFF and m.difference is not None]
    if not known:
        return StudyCheck(name=name, holds=None, detail="no two modes fit")
    details = (
        f"{m.mode} equal bit by bit"
        if m.difference == 0
        else f"{m.mode} apart by {m.difference:.1e} of their norm"
        for m in known
    )
    holds = all(m.difference is not None and m.difference <= GRADIENT_TOLERANCE for m in known)
    return StudyCheck(name=name, holds=holds, detail=", ".join(details))


def _falling_check(subject: Subject, found: Sequence[Measured]) -> StudyCheck:
    """Off keeps most, on least."""
    name = f"{subject.name}: less kept for the backward pass"
    order = {OFF: 0, SELECTIVE: 1, EVERY_SECOND: 1, ON: 2}
    known = sorted(
        (m for m in found if m.saved_bytes is not None), key=lambda found: order[found.mode]
    )
    kept = [m.saved_bytes or 0 for m in known]
    if len(kept) < 2:
        return StudyCheck(name=name, holds=None, detail="no two modes fit")
    return StudyCheck(
        name=name,
        holds=all(more > less for more, less in pairwise(kept)),
        detail=", ".join(f"{m.mode} {format_bytes(m.saved_bytes or 0)}" for m in known),
    )


def _inputs_check(subject: Subject, found: Sequence[Measured]) -> StudyCheck:
    """With checkpointing a layer keeps its input alone; the rest is that of a model without any."""
    name = f"{subject.name}: on keeps one input a layer"
    counted = by_mode(found, ON).saved_bytes
    if counted is None:
        return StudyCheck(name=name, holds=None, detail="on does not fit")
    outside = kept_bytes(subject.bare, lambda: subject.loss(subject.bare, subject.ids))
    computed = subject.input_bytes + outside
    return StudyCheck(
        name=name,
        holds=counted == computed,
        detail=(
            f"{counted:,} bytes counted, {computed:,} computed: {subject.input_bytes:,} of inputs "
            f"and {outside:,} outside the layers"
        ),
    )


def flop_checks(sizes: Sizes, found: Sequence[Measured]) -> tuple[StudyCheck, ...]:
    """Recomputing costs the operations of the layers' forward pass, less their last product."""
    return (
        _extra_check("on runs the layers' forward pass again", sizes, found, ON),
        _extra_check("selective repeats no matrix product", sizes, found, SELECTIVE),
    )


def recomputed_flops(sizes: Sizes) -> int:
    """Operations that checkpointing adds to a step of the own Transformer.

    The forward pass of its layers without each one's last matrix product: no backward needs that
    one's result, and torch stops where all that was thrown away is there again.
    """
    tokens = sizes.batch * sizes.tokens
    head = 2 * tokens * sizes.width * sizes.vocabulary
    last = 2 * tokens * sizes.width * sizes.inner
    return sizes.shape().forward_flops(sizes.batch, sizes.tokens) - head - sizes.layers * last


def _extra_check(name: str, sizes: Sizes, found: Sequence[Measured], mode: str) -> StudyCheck:
    off, other = (m.result and m.result.flops for m in (by_mode(found, OFF), by_mode(found, mode)))
    if not off or not other:
        return StudyCheck(name=name, holds=None, detail="no operations were counted")
    computed = recomputed_flops(sizes) if mode == ON else 0
    return StudyCheck(
        name=name,
        holds=other - off == computed,
        detail=(
            f"{other - off:,} operations more than off are counted, {computed:,} computed: "
            f"{format_ratio(other / off)} of off's"
        ),
    )


def by_mode(found: Sequence[Measured], mode: str) -> Measured:
    """The mode's measurement; an empty one where the subject has no such mode."""
    return next((m for m in found if m.mode == mode), Measured(mode=mode, reason="not a mode"))


# ---------------------------------------------------------------- what is shown


def table(subject: Subject, found: Sequence[Measured], *, published: bool) -> StudyTable:
    """A row a mode; ``published`` sets the reference's figures beside ours."""
    theirs = (
        StudyColumn(key="their_speed", head="speed", under="RTX 3090", unit="ratio"),
        StudyColumn(key="their_memory", head="memory", under="RTX 3090", unit="ratio"),
        StudyColumn(key="their_time", head="step", under="RTX 3090", unit="s", needed=False),
        StudyColumn(key="their_peak", head="peak", under="RTX 3090", unit="bytes", needed=False),
    )
    return StudyTable(
        title=f"A training step: {subject.name}",
        head="mode",
        columns=(
            StudyColumn(key="time", head="step", unit="s"),
            StudyColumn(key="speed", head="speed", under="÷ off", unit="ratio"),
            *(theirs[:1] if published else ()),
            StudyColumn(key="peak", head="peak", unit="bytes"),
            StudyColumn(key="memory", head="memory", under="÷ off", unit="ratio"),
            *(theirs[1:2] if published else ()),
            StudyColumn(key="saved", head="kept for", under="backward", unit="bytes"),
            StudyColumn(key="kept", head="kept", under="÷ off", unit="ratio", needed=False),
            StudyColumn(key="flops", head="operations", under="÷ off", unit="ratio", needed=False),
            StudyColumn(
                key="difference", head="gradients", under="apart by", unit="number", needed=False
            ),
            *(theirs[2:] if published else ()),
        ),
        rows=tuple(_row(m, by_mode(found, OFF), published=published) for m in found),
    )


def _row(measured: Measured, off: Measured, *, published: bool) -> StudyRow:
    theirs = _published_cells(measured.mode) if published else {}
    result, first = measured.result, off.result
    if result is None:
        return StudyRow(
            name=measured.mode, status="does_not_fit", reason=measured.reason, cells=theirs
        )
    cells = {
        "time": time_cell(result),
        "peak": cell(result.peak_bytes),
        "saved": cell(measured.saved_bytes),
        "kept": share_of(measured.saved_bytes, off.saved_bytes),
        "difference": cell(measured.difference),
    }
    if first is not None:
        cells |= {
            "speed": ratio_cell(speedup(first, result)),
            "memory": share_of(result.peak_bytes, first.peak_bytes),
            "flops": share_of(result.flops, first.flops),
        }
    return StudyRow(name=measured.mode, cells=cells | theirs)


def _published_cells(mode: str) -> dict[str, Cell]:
    if mode not in CHECKPOINTING:
        return {}
    theirs, off = CHECKPOINTING[mode], CHECKPOINTING[OFF]
    return {
        "their_speed": cell(off.seconds / theirs.seconds),
        "their_memory": share_of(theirs.memory_bytes, off.memory_bytes),
        "their_time": cell(theirs.seconds),
        "their_peak": cell(theirs.memory_bytes),
    }


def _plots(found: Sequence[Measured]) -> tuple[StudyPlot, ...]:
    """Memory and time of each mode ÷ off's, the published ones beside."""
    off = by_mode(found, OFF)
    if off.result is None:
        return ()
    modes = tuple(m.mode for m in found)
    published = [_published_cells(mode) for mode in modes]

    def ratios(values: Sequence[float | None]) -> tuple[float | None, ...]:
        first = values[0]
        return tuple(value / first if value and first else None for value in values)

    results = [m.result for m in found]
    peaks = ratios([r.peak_bytes if r else None for r in results])
    kept = ratios([m.saved_bytes for m in found])
    times = ratios([r.latency_s.median if r else None for r in results])
    their_peaks = ratios([_figure(cells, "their_peak") for cells in published])
    their_times = ratios([_figure(cells, "their_time") for cells in published])
    return (
        StudyPlot(
            title="Memory of a training step",
            kind="bars",
            x_label="checkpointing",
            y_label="÷ off",
            series=(
                Series(name="peak", x=modes, y=peaks),
                Series(name="kept for the backward pass", x=modes, y=kept),
                Series(name="peak, RTX 3090", x=modes, y=their_peaks, reference=True),
            ),
        ),
        StudyPlot(
            title="Time of a training step",
            kind="bars",
            x_label="checkpointing",
            y_label="÷ off",
            series=(
                Series(name="time", x=modes, y=times),
                Series(name="RTX 3090", x=modes, y=their_times, reference=True),
            ),
        ),
    )


def _figure(cells: Mapping[str, Cell], key: str) -> float | None:
    value = cells[key].value if key in cells else None
    return float(value) if value is not None else None


def findings(
    subject: Subject, found: Sequence[Measured], *, published: bool = False
) -> tuple[str, ...]:
    """A sentence for each mode with checkpointing, against off."""
    off = by_mode(found, OFF)
    return tuple(
        _finding(subject, off, m, published=published and m.mode in CHECKPOINTING)
        for m in found
        if m.mode != OFF and m.result is not None and off.result is not None
    )


def _finding(subject: Subject, off: Measured, other: Measured, *, published: bool) -> str:
    assert off.result is not None  # callers have seen to it
    assert other.result is not None
    speed = speedup(off.result, other.result)
    parts = []
    kept = share_of(other.saved_bytes, off.saved_bytes).value
    if isinstance(kept, float):
        parts.append(f"{format_percent(kept)} of the tensors' bytes are kept for the backward pass")
    peak = share_of(other.result.peak_bytes, off.result.peak_bytes).value
    if isinstance(peak, float):
        parts.append(f"the peak is {format_percent(peak)} of off's")
    if off.result.flops and other.result.flops:
        operations = format_ratio(other.result.flops / off.result.flops)
        parts.append(f"a step is {operations} off's operations")
    parts.append(
        f"it takes {format_ratio(1 / speed.value)} off's time"
        if speed.real
        else "its time differs by nothing beyond the noise"
    )
    theirs = ""
    if published:
        first, second = CHECKPOINTING[OFF], CHECKPOINTING[other.mode]
        peak = share_of(second.memory_bytes, first.memory_bytes).value
        theirs = (
            f" (published: {format_percent(float(peak or 0))} of the memory, "
            f"{format_ratio(second.seconds / first.seconds)} the time)"
        )
    return f"{subject.name}, {other.mode}: {', '.join(parts)}{theirs}."


def _notes(sizes: Sizes) -> tuple[str, ...]:
    return (
        "Peak: model, gradients, AdamW's state and all that a step allocates beyond them. Kept for "
        "the backward pass: storages saved by autograd, each once, without parameters.",
        f"Own Transformer: {sizes.layers} layers of width {sizes.width}, {sizes.tokens:,} tokens, "
        f"batch {sizes.batch}, vocabulary {sizes.vocabulary:,}. Selective keeps matrix products "
        "and attention's results; transformers' own switch is for every so many layers.",
    )
