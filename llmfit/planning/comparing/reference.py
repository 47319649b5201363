"""Tables that others published for the rows we run, and how a comparison stands beside them.

Comparison + ReferenceTable ─► a line per format, each figure as ours, theirs, ratio
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llmfit.errors import UsageError
from llmfit.records import Comparison, Device, RunRecord, Status, Workload
from llmfit.units import GB

Metric = Literal["memory_bytes", "tokens_per_s", "hellaswag", "perplexity"]
METRICS: tuple[Metric, ...] = ("memory_bytes", "tokens_per_s", "hellaswag", "perplexity")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRow:
    """One row of a published table."""

    backend: str
    """Our row of the same format."""
    label: str
    """Its name in the table."""
    memory_bytes: int
    """Of the device's memory: the GPU's, or RAM for a row on the CPU."""
    device: Device
    tokens_per_s: float
    hellaswag: float
    """Accuracy, 0…1."""
    perplexity: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceTable:
    """A published table: what was run, where, and its figures."""

    name: str
    """What ``--reference`` takes."""
    model: str
    """Hub id."""
    hardware: str
    """As in the table of ``planning/speed/hardware.py``."""
    workload: Workload
    """Ours that comes nearest: its source states the sequence's length alone."""
    rows: tuple[ReferenceRow, ...]
    source: str
    notes: tuple[str, ...] = ()
    """What a reader has to know of its figures."""

    @property
    def backends(self) -> tuple[str, ...]:
        """The rows to run, in the table's order."""
        return tuple(row.backend for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One figure of ours beside the table's."""

    ours: float | None
    """Bytes, tokens per second, a share or a perplexity; None where it is not known."""
    reference: float
    ratio: float | None
    """Ours ÷ the table's."""
    predicted: bool = False
    """True where ours is a prediction, nothing was run."""
    missing: str | None = None
    """Why ours was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLine:
    """One format: our row beside the table's."""

    backend: str
    label: str
    device: Device | None
    """Where ours ran, or would have run; None where it was not to be run at all."""
    status: Status
    memory_bytes: Beside
    """Peak in the memory of each one's device."""
    tokens_per_s: Beside
    hellaswag: Beside
    """Accuracy; ours is lm-eval's acc_norm."""
    perplexity: Beside
    """Per token."""
    kernel: str | None = None
    """What computed our row: linear layers and attention."""
    note: str = ""
    """The table's own remark."""

    def figure(self, metric: Metric) -> Beside:
        """The figure of this name."""
        found = getattr(self, metric)
        assert isinstance(found, Beside)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceComparison:
    """A whole table beside ours, with both machines named."""

    table: str
    model: str
    hardware: str
    ours_model: str
    ours_gpu: str | None
    ours_cpu: str
    ours_workload: Workload
    rows: tuple[ReferenceLine, ...]
    notes: tuple[str, ...] = ()
    """Where the two differ, and what is known of the table's figures."""
    source: str = ""
    record: str | None = None
    """What ``llmfit reproduce`` finds ours by."""


def find_reference(name: str) -> ReferenceTable:
    """The table of this name. Raises UsageError naming those there are."""
    table = TABLES.get(name.casefold())
    if table is None:
        raise UsageError(
            f"no reference table {name!r}; known are {', '.join(TABLES)}.",
            hint=f"--reference {next(iter(TABLES))}",
        )
    return table


def beside(comparison: Comparison, table: ReferenceTable) -> ReferenceComparison:
    """Every figure of ``table`` beside the comparison's, with the ratio or the reason for none."""
    ours = {row.backend: row for row in comparison.rows}
    machine = comparison.environment
    return ReferenceComparison(
        table=table.name,
        model=table.model,
        hardware=table.hardware,
        ours_model=comparison.model.name,
        ours_gpu=machine.gpu,
        ours_cpu=machine.cpu,
        ours_workload=comparison.workload,
        rows=tuple(_line(row, ours.get(row.backend)) for row in table.rows),
        notes=(*_differences(comparison, table), *table.notes),
        source=table.source,
        record=comparison.record,
    )


def _line(reference: ReferenceRow, ours: RunRecord | None) -> ReferenceLine:
    kernel = None if ours is None else ours.kernel
    return ReferenceLine(
        backend=reference.backend,
        label=reference.label,
        device=None if ours is None else ours.device,
        status="skipped" if ours is None else ours.status,
        memory_bytes=_beside("memory_bytes", reference.memory_bytes, ours),
        tokens_per_s=_beside("tokens_per_s", reference.tokens_per_s, ours),
        hellaswag=_beside("hellaswag", reference.hellaswag, ours),
        perplexity=_beside("perplexity", reference.perplexity, ours),
        kernel=None if kernel is None else f"{kernel.linear}, {kernel.attention}",
        note=reference.note,
    )


def _beside(metric: Metric, reference: float, ours: RunRecord | None) -> Beside:
    if ours is None:
        return Beside(
            ours=None, reference=reference, ratio=None, missing="not among the rows that were run"
        )
    value = _measured(metric, ours)
    if value is not None:
        return Beside(ours=value, reference=reference, ratio=value / reference)
    value, reason = _predicted(metric, ours), _why_missing(metric, ours)
    return Beside(
        ours=value,
        reference=reference,
        ratio=None if value is None else value / reference,
        predicted=value is not None,
        missing=reason,
    )


def _measured(metric: Metric, row: RunRecord) -> float | None:
    if row.status != "ok" or row.predicted_only:
        return None
    if metric == "memory_bytes":
        return None if row.memory is None else row.memory.peak_bytes
    if metric == "tokens_per_s":
        return None if row.decode is None else row.decode.tokens_per_s.median
    if metric == "hellaswag":
        return None if row.hellaswag is None else row.hellaswag.acc_norm
    return None if row.perplexity is None else row.perplexity.token


def _predicted(metric: Metric, row: RunRecord) -> float | None:
    if metric == "memory_bytes" and row.memory is not None:
        return row.memory.predicted_bytes
    if metric == "tokens_per_s" and row.predicted_tokens_per_s is not None:
        return row.predicted_tokens_per_s.estimate
    return None


def _why_missing(metric: Metric, row: RunRecord) -> str:
    if row.status != "ok":
        return row.reason or f"the row is {row.status}"
    if row.predicted_only:
        return "predicted, not run"
    if metric in ("memory_bytes", "tokens_per_s"):
        return "not measured"
    if row.plan is not None and row.plan.weights == "synthetic":
        return "random weights: there is no quality to score"
    if row.plan is not None and row.plan.evaluation is None:
        return "quality was not to be scored"
    return "not scored; the row's notes say why"


def _differences(comparison: Comparison, table: ReferenceTable) -> tuple[str, ...]:
    """In what the two runs are not alike."""
    machine, notes = comparison.environment, []
    if comparison.model.name != table.model:
        notes.append(f"the table is of {table.model}, ours of {comparison.model.name}")
    if machine.gpu is None:
        notes.append(
            f"ours ran on a CPU ({machine.cpu}), the table's on a GPU ({table.hardware}): "
            "ours is RAM where the table has GPU memory"
        )
    elif machine.gpu != table.hardware:
        notes.append(f"ours ran on {machine.gpu}, the table's on {table.hardware}")
    if any(row.plan is not None and row.plan.weights == "synthetic" for row in comparison.rows):
        notes.append("ours has random weights: memory and speed are real, quality is not scored")
    ours, theirs = comparison.workload, table.workload
    if (ours.batch, ours.prompt_tokens + ours.new_tokens) != (
        theirs.batch,
        theirs.prompt_tokens + theirs.new_tokens,
    ):
        notes.append(
            f"ours: batch {ours.batch}, {ours.prompt_tokens} + {ours.new_tokens} tokens; the "
            f"table: batch {theirs.batch}, {theirs.prompt_tokens + theirs.new_tokens} tokens"
        )
    return tuple(notes)


def _row(
    backend: str,
    label: str,
    memory_gb: float,
    tokens_per_s: float,
    hellaswag_pct: float,
    perplexity: float,
    note: str,
    device: Device = "cuda",
) -> ReferenceRow:
    return ReferenceRow(
        backend=backend,
        label=label,
        memory_bytes=round(memory_gb * GB),
        device=device,
        tokens_per_s=tokens_per_s,
        hellaswag=hellaswag_pct / 100,
        perplexity=perplexity,
        note=note,
    )


RTX_3090 = ReferenceTable(
    name="rtx3090-llama-3.1-8b",
    model="meta-llama/Llama-3.1-8B",
    hardware="NVIDIA GeForce RTX 3090",
    workload=Workload(prompt_tokens=448, new_tokens=64, batch=1),
    rows=(
        _row("bf16", "BF16 baseline", 16.0, 38, 82.1, 6.14, "reference"),
        _row("sdpa", "+ Flash Attention 2", 14.2, 52, 82.1, 6.14, "−11 % VRAM, +37 % speed"),
        _row("compiled", "+ torch.compile", 14.2, 68, 82.1, 6.14, "+31 % over Flash"),
        _row("int8", "INT8 (bitsandbytes)", 8.5, 35, 81.8, 6.21, "−47 % VRAM, −0.3 points"),
        _row("nf4", "INT4 NF4 (bnb)", 4.9, 42, 81.2, 6.47, "−69 % VRAM, −0.9 points"),
        _row("gptq", "GPTQ INT4", 4.8, 55, 81.5, 6.39, "−70 % VRAM, −0.6 points"),
        _row("awq", "AWQ INT4", 4.7, 52, 81.6, 6.35, "−71 % VRAM, −0.5 points"),
        _row("gguf", "GGUF Q4_K_M (CPU)", 5.0, 18, 81.3, 6.42, "needs no GPU", "cpu"),
    ),
    source="Llama-3.1-8B on an RTX 3090 24 GB, batch 1, sequence 512: approximate, by its author",
    notes=(
        # Weights that a token reads: 8.03 B less the embedding's 0.53 B, 2 bytes each.
        "the table's + torch.compile is beyond its card: 15.0 GB a token at 936 GB/s are 62 "
        "tokens/s at most",
        # 8,030,261,248 parameters; NF4 with 4.5 bits, GPTQ with 4.16 bits for the linear layers.
        "the table's 14.2 GB are less than the bf16 weights alone (16.1 GB, or 15.0 GiB), and its "
        "4-bit GPU rows less than weights with head and embedding in 16 bits (5.7 to 6.0 GB)",
    ),
)

TABLES: Mapping[str, ReferenceTable] = MappingProxyType({RTX_3090.name: RTX_3090})
