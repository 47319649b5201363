"""The figures of a row that are followed over time, with their direction: RunRecord ─► Figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmfit.records import RunRecord, Sampled
from llmfit.stats import INTERVAL_ERRORS
from llmfit.trend_records import Better, Figure

BETTER: Mapping[str, Better] = {
    "decode.tokens_per_s": "higher",
    "prefill.tokens_per_s": "higher",
    "ttft_s": "lower",
    "memory.peak_bytes": "lower",
    "memory.peak_ram_bytes": "lower",
    "energy.joules_per_token": "lower",
    "hellaswag.acc": "higher",
    "hellaswag.acc_norm": "higher",
    "perplexity.token": "lower",
    "perplexity.word": "lower",
    "kl_divergence": "lower",
    "top1_agreement": "higher",
}
"""Which way a figure is better. Figures of other tasks say so themselves."""


def figures_of(record: RunRecord) -> tuple[Figure, ...]:
    """All figures of an ok row that have a better direction; none of a row that did not run."""
    return tuple(_figures(record)) if record.status == "ok" else ()


def _figures(record: RunRecord) -> Iterator[Figure]:
    if record.decode is not None:
        yield _sampled("decode.tokens_per_s", record.decode.tokens_per_s)
    if record.prefill is not None:
        yield _sampled("prefill.tokens_per_s", record.prefill.tokens_per_s)
    if record.ttft_s is not None:
        yield _sampled("ttft_s", record.ttft_s)
    yield from _memory(record)
    if record.energy.joules_per_token is not None:
        yield _figure("energy.joules_per_token", record.energy.joules_per_token)
    yield from _quality(record)


def _memory(record: RunRecord) -> Iterator[Figure]:
    memory = record.memory
    if memory is None:
        return
    if memory.peak_bytes is not None:
        yield _figure("memory.peak_bytes", memory.peak_bytes)
    if memory.device == "cuda" and memory.peak_ram_bytes is not None:  # else it is the same one
        yield _figure("memory.peak_ram_bytes", memory.peak_ram_bytes)


def _quality(record: RunRecord) -> Iterator[Figure]:
    answers, text, divergence = record.hellaswag, record.perplexity, record.divergence
    if answers is not None:
        yield _with_error("hellaswag.acc", answers.acc, answers.acc_stderr)
        yield _with_error("hellaswag.acc_norm", answers.acc_norm, answers.stderr)
    if text is not None:
        yield _figure("perplexity.token", text.token, text.low, text.high)
        if text.word is not None:
            yield _figure("perplexity.word", text.word)
    if divergence is not None:
        yield _figure("kl_divergence", divergence.mean, divergence.low, divergence.high)
        yield _figure(
            "top1_agreement", divergence.top1_agreement, divergence.top1_low, divergence.top1_high
        )
    for task in record.tasks:
        for metric in task.metrics:
            if metric.higher_is_better is None:
                continue
            name = f"tasks.{task.task}.{metric.name},{metric.filter}"
            better: Better = "higher" if metric.higher_is_better else "lower"
            yield _with_error(name, metric.value, metric.stderr, better=better)


def _figure(
    metric: str, value: float, low: float | None = None, high: float | None = None
) -> Figure:
    return Figure(metric=metric, value=value, low=low, high=high, better=BETTER[metric])


def _sampled(metric: str, quantity: Sampled) -> Figure:
    return _figure(metric, quantity.median, quantity.low, quantity.high)


def _with_error(
    metric: str, value: float, stderr: float | None, *, better: Better | None = None
) -> Figure:
    half = None if stderr is None else INTERVAL_ERRORS * stderr
    return Figure(
        metric=metric,
        value=value,
        low=None if half is None else value - half,
        high=None if half is None else value + half,
        better=better or BETTER[metric],
    )
