"""``Found`` ─► the tables and plots: figures by new tokens, and how they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmfit.records import Sampled
from llmfit.studies.base import cell, ratio_cell, sampled_cell, time_cell
from llmfit.studies.growth import FIT_NOTE, growth_plot
from llmfit.studies.kv_cache.growth_of import flops_growth, time_growth
from llmfit.studies.kv_cache.measuring import Found
from llmfit.studies.kv_cache.published import published_speedup, published_text
from llmfit.study_records import (
    BenchmarkResult,
    Series,
    StudyColumn,
    StudyPlot,
    StudyRow,
    StudyTable,
)


def tables(both: Sequence[Sequence[Found]], fit_from: int) -> tuple[StudyTable, ...]:
    """One a model, and one of the growth of both."""
    return (*(_table(found) for found in both), _growth_table(both, fit_from))


def _table(found: Sequence[Found]) -> StudyTable:
    published = published_text()
    return StudyTable(
        title=f"{found[0].model}: time of a greedy generation",
        head="new tokens",
        columns=(
            StudyColumn(key="cached", head="time", under="with cache", unit="s"),
            StudyColumn(key="plain", head="time", under="without", unit="s"),
            StudyColumn(key="cached_rate", head="tokens/s", under="with cache", unit="per_s"),
            StudyColumn(key="plain_rate", head="tokens/s", under="without", unit="per_s"),
            StudyColumn(key="faster", head="speed-up", unit="ratio"),
            StudyColumn(key="expected", head="speed-up", under="published", unit="text"),
            StudyColumn(key="bytes", head="cache", under="measured", unit="bytes"),
            StudyColumn(
                key="predicted", head="cache", under="predicted", unit="bytes", needed=False
            ),
            StudyColumn(
                key="cached_flops", head="FLOPs", under="with cache", unit="count", needed=False
            ),
            StudyColumn(
                key="plain_flops", head="FLOPs", under="without", unit="count", needed=False
            ),
        ),
        rows=tuple(
            StudyRow(
                name=f"{each.new_tokens:,}",
                cells={
                    "cached": time_cell(each.cached),
                    "plain": time_cell(each.plain),
                    "cached_rate": sampled_cell(each.cached.throughput_per_s),
                    "plain_rate": sampled_cell(each.plain.throughput_per_s),
                    "faster": ratio_cell(each.speedup),
                    "expected": cell(published),
                    "bytes": cell(each.cache_bytes),
                    "predicted": cell(each.predicted_bytes),
                    "cached_flops": cell(each.cached_flops),
                    "plain_flops": cell(each.plain_flops),
                },
            )
            for each in found
        ),
    )


def _growth_table(both: Sequence[Sequence[Found]], fit_from: int) -> StudyTable:
    rows = []
    for found in both:
        for cached in (True, False):
            time = time_growth(found, cached=cached, fit_from=fit_from)
            flops = flops_growth(found, cached=cached, fit_from=fit_from)
            cells = {"theory": cell("1 to 2" if cached else "2 to 3")}
            if time is not None:
                cells["time"] = time.as_cell()
            if flops is not None:
                cells["flops"] = flops.as_cell()
            name = f"{found[0].model}, {'with' if cached else 'without'} cache"
            rows.append(StudyRow(name=name, cells=cells))
    return StudyTable(
        title=f"Growth from {fit_from:,} new tokens on: cost = a · tokensᵇ",
        head="generation",
        columns=(
            StudyColumn(key="time", head="time", under="b", unit="number"),
            StudyColumn(key="flops", head="FLOPs", under="b", unit="number"),
            StudyColumn(key="theory", head="FLOPs", under="theory", unit="text"),
        ),
        rows=tuple(rows),
        notes=(
            "The lower figure of theory is of linear layers, the upper one of attention alone.",
            FIT_NOTE,
        ),
    )


def plots(both: Sequence[Sequence[Found]]) -> tuple[StudyPlot, ...]:
    """Time, speed and speed-up by new tokens, the last beside what is published."""

    def lines(value: Callable[[BenchmarkResult], Sampled]) -> tuple[Series, ...]:
        return tuple(
            Series(
                name=f"{found[0].model}, {'with' if cached else 'without'} cache",
                x=tuple(each.new_tokens for each in found),
                y=tuple(value(each.cached if cached else each.plain).median for each in found),
            )
            for found in both
            for cached in (True, False)
        )

    gains = tuple(
        Series(
            name=found[0].model,
            x=tuple(each.new_tokens for each in found),
            y=tuple(each.speedup.value for each in found),
        )
        for found in both
    )
    every = sorted({each.new_tokens for found in both for each in found})
    ends = (every[0], every[-1])
    published = tuple(
        Series(name=f"published {value:g}×", x=ends, y=(value, value), reference=True)
        for value in published_speedup()
    )
    x_label = "new tokens"
    return (
        growth_plot("Time of a generation", x_label, "seconds", lines(lambda it: it.latency_s)),
        growth_plot("Speed", x_label, "tokens/s", lines(lambda it: it.throughput_per_s)),
        growth_plot("Speed-up by the cache", x_label, "×", (*gains, *published)),
    )
