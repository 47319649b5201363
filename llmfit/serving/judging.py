"""From the requests of a level to its figures, and from levels to where the server is saturated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from llmfit.serving_records import LoadLevel, Percentiles, RequestTrace
from llmfit.stats import percentile

SATURATED = 1.1
"""A concurrency that gives so many times the tokens per second is worth its longer waiting."""


def level(concurrency: int, traces: Sequence[RequestTrace]) -> LoadLevel:
    """The figures of all requests that were sent at one concurrency, at least one."""
    answered = [trace for trace in traces if trace.error is None and trace.chunks_s]
    began_s = min(trace.started_s for trace in traces)
    duration_s = max(trace.started_s + trace.ended_s for trace in traces) - began_s
    new_tokens = sum(trace.new_tokens or 0 for trace in answered)
    prompts = [trace.prompt_tokens for trace in answered if trace.prompt_tokens is not None]
    gaps = [b - a for trace in answered for a, b in pairwise(trace.chunks_s)]
    each = [
        (trace.chunks_s[-1] - trace.chunks_s[0]) / (trace.new_tokens - 1)
        for trace in answered
        if trace.new_tokens is not None and trace.new_tokens > 1
    ]
    measured = bool(answered) and duration_s > 0
    return LoadLevel(
        concurrency=concurrency,
        requests=len(traces),
        duration_s=duration_s,
        new_tokens=new_tokens,
        tokens_per_s=new_tokens / duration_s if measured else None,
        requests_per_s=len(answered) / duration_s if measured else None,
        ttft=_percentiles([trace.chunks_s[0] for trace in answered]),
        itl=_percentiles(gaps),
        tpot=_percentiles(each),
        latency=_percentiles([trace.ended_s for trace in answered]),
        prompt_tokens=fmean(prompts) if prompts else None,
        errors=dict(Counter(trace.error for trace in traces if trace.error is not None)),
        traces=tuple(traces),
    )


def saturation(levels: Sequence[LoadLevel]) -> int | None:
    """The smallest concurrency whose throughput no higher one exceeds by ``SATURATED``.

    None where that is the highest of them, so that a still higher one may give more, and where
    fewer than two were answered.
    """
    rates = sorted((each.concurrency, each.tokens_per_s) for each in levels if each.tokens_per_s)
    for index, (concurrency, rate) in enumerate(rates[:-1]):
        if all(later < SATURATED * rate for _, later in rates[index + 1 :]):
            return concurrency
    return None


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    return Percentiles(
        mean_s=fmean(values),
        p50_s=percentile(values, 50),
        p95_s=percentile(values, 95),
        p99_s=percentile(values, 99),
    )
