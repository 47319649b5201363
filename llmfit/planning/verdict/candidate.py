"""What a verdict weighs of a row: rate, memory, quality; measured, or else predicted.

A difference between two rows counts where it is beyond doubt: intervals apart, and for speed and
memory more than a tie's share. All comparisons of the verdict are the four functions here.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmfit.planning.comparing.published_quality import PublishedCost, published_cost
from llmfit.records import Difference, RunRecord, Sampled
from llmfit.stats import overlap

TIE_SHARE = 0.1
"""Two speeds tie where their intervals overlap and the medians differ by at most this share of
the faster. Without the second condition one row of unsteady runs, whose interval is wide, would
tie with every other. A choice."""

MEMORY_TIE_SHARE = 0.01
"""Two peaks tie where they differ by at most this share of the larger. A choice: allocators and
libraries move a peak by tens of MB from run to run."""

_NO_CHANGE = Difference(mean=0.0, low=0.0, high=0.0, method="itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row as the verdict sees it; None is what is not known."""

    row: RunRecord
    ready: bool
    """It ran; or, where nothing was to run, it was predicted."""
    on_gpu: bool
    rate: Sampled | None
    """Decode rate; of a prediction the estimate and its range, without samples."""
    need_bytes: int | None
    """Peak in the memory of its device, as the table shows it."""
    footprint_bytes: int | None
    """What a budget is held against: the peak with the driver's or the interpreter's share."""
    perplexity: Difference | None
    """Rise as a share of the reference's."""
    acc_norm: Difference | None
    """Change of HellaSwag's acc_norm as a share of the items."""
    published: PublishedCost | None = None
    """What ``perplexity`` was taken from, where nothing was scored."""

    @property
    def name(self) -> str:
        """The backend's id."""
        return self.row.backend

    @property
    def measured(self) -> bool:
        """True where the rate was measured."""
        return self.row.decode is not None


def candidate(row: RunRecord, standard: RunRecord | None, *, predicted: bool) -> Candidate:
    """``row`` as a candidate, its quality against ``standard``.

    ``predicted``: no row ran, so that those that were only predicted are judged. Quality that was
    published stands in for a row that did not run, never for one that ran and was not scored.
    """
    ran = row.status == "ok"
    ready = ran or (predicted and row.predicted_only and row.status == "skipped")
    published = None if ran else published_cost(row.backend)
    difference = row.difference
    perplexity = difference.perplexity_ratio if difference is not None else None
    accuracy = difference.acc_norm if difference is not None else None
    if published is not None:
        middle = (published.low + published.high) / 2
        perplexity = Difference(
            mean=middle, low=published.low, high=published.high, method="published"
        )
    elif row is standard:
        perplexity = accuracy = _NO_CHANGE
    return Candidate(
        row=row,
        ready=ready,
        on_gpu=_on_gpu(row),
        rate=_rate(row),
        need_bytes=needed_bytes(row),
        footprint_bytes=footprint_bytes(row),
        perplexity=perplexity,
        acc_norm=accuracy,
        published=published,
    )


def needed_bytes(row: RunRecord) -> int | None:
    """Peak memory on the row's device: measured, or else predicted, or None.

    A row that does not fit was stopped before its peak, so there the greater of the two counts.
    """
    if row.memory is None:
        return None
    measured, predicted = row.memory.peak_bytes, row.memory.predicted_bytes
    if row.status == "does_not_fit":
        return max((size for size in (measured, predicted) if size is not None), default=None)
    return predicted if measured is None else measured


def footprint_bytes(row: RunRecord) -> int | None:
    """What the whole process takes of its device's memory; None where it is not known.

    On a GPU as the driver counts it, on a CPU with the idle worker, where these were measured.
    """
    memory, need = row.memory, needed_bytes(row)
    if memory is None or memory.peak_bytes is None or need is None:
        return need
    if memory.device == "cuda":
        return max(need, memory.driver_peak_bytes or 0)
    return max(need, memory.peak_bytes + (memory.idle_ram_bytes or 0))


def _on_gpu(row: RunRecord) -> bool:
    device = row.device or (row.memory.device if row.memory is not None else None)
    return device == "cuda"


def _rate(row: RunRecord) -> Sampled | None:
    if row.decode is not None:
        return row.decode.tokens_per_s
    predicted = row.predicted_tokens_per_s
    if predicted is None:
        return None
    return Sampled(median=predicted.estimate, low=predicted.low, high=predicted.high, samples=())


# ---------------------------------------------------------------- is one better, beyond doubt?


def faster(a: Candidate, b: Candidate) -> bool:
    """True when ``a`` decodes faster: medians more than a tie's share apart, or intervals apart."""
    if a.rate is None or b.rate is None or a.rate.median <= b.rate.median:
        return False
    return not overlap(a.rate, b.rate) or b.rate.median < (1 - TIE_SHARE) * a.rate.median


def smaller(a: Candidate, b: Candidate) -> bool:
    """True when ``a`` takes less memory, by more than a tie's share.

    A row on the CPU is smaller than any on a GPU: it takes none of the scarcer memory.
    """
    if a.need_bytes is None or b.need_bytes is None:
        return False
    if a.on_gpu != b.on_gpu:
        return b.on_gpu
    return a.need_bytes < (1 - MEMORY_TIE_SHARE) * b.need_bytes


def closer(a: Candidate, b: Candidate) -> bool:
    """True when the perplexity of ``a`` rises less: the two intervals are apart."""
    if a.perplexity is None or b.perplexity is None:
        return False
    return a.perplexity.high < b.perplexity.low


def more_accurate(a: Candidate, b: Candidate) -> bool:
    """True when ``a`` keeps more of HellaSwag's acc_norm: the two intervals are apart."""
    if a.acc_norm is None or b.acc_norm is None:
        return False
    return a.acc_norm.low > b.acc_norm.high
