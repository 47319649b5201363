"""A server's figures under load, as a table for a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from llmfit.report._column import UNKNOWN, Column, Detail
from llmfit.report._layout import hanging, styled, widest
from llmfit.report._text import in_markdown, markdown_code, plain
from llmfit.report.markdown import markdown_table
from llmfit.serving_records import LoadLevel, Percentiles, ServerBenchmark
from llmfit.trend_records import Report
from llmfit.units import format_rate, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

ServerFormat = Literal["table", "md", "json"]
SERVER_FORMATS: tuple[ServerFormat, ...] = get_args(ServerFormat)

_Show = Callable[[float], str]

LEGEND = (
    "TTFT: time to first token · ITL: between pieces of text of an answer · TPOT: per token after "
    "the first · p50, p95, p99: of so many in a hundred it is at most that"
)


def render_server(
    found: ServerBenchmark, fmt: ServerFormat, *, width: int = 120, color: bool = False
) -> str:
    """The figures as text that ends in a newline; ``width`` and ``color`` are of the table."""
    if fmt == "json":
        from llmfit.records import to_json

        return to_json(found) + "\n"
    return _markdown(found) if fmt == "md" else _terminal(found, width, color)


def heading(found: ServerBenchmark) -> str:
    """What was measured, in one line."""
    work = found.workload
    served = found.served_model
    if found.model is not None and found.model != served:
        served = f"{found.model} ({found.backend or 'format not told'}), served as {served}"
    elif found.backend is not None:
        served = f"{served} ({found.backend})"
    return plain(
        f"{served} at {found.url} · {work.prompt_tokens} prompt tokens, {work.new_tokens} new"
    )


def findings(found: ServerBenchmark) -> tuple[str, ...]:
    """Where it is saturated, what failed, and what was measured otherwise than asked."""
    if found.saturation is not None:
        lines = [
            f"saturated at {found.saturation} at once: more requests wait longer and give no more "
            "tokens"
        ]
    elif len(found.levels) > 1:
        lines = [f"not saturated at {max(e.concurrency for e in found.levels)} at once"]
    else:
        lines = []
    for level in found.levels:
        lines += [
            f"{count} of {level.requests} requests failed at {level.concurrency} at once: {reason}"
            for reason, count in level.errors.items()
        ]
    if found.local:
        lines.append("the server is on this machine, and shares its processor with the requests")
    return tuple(plain(line) for line in (*lines, *found.notes))


def history_line(found: ServerBenchmark) -> str:
    """What was served, and the figures of the level that gave most, in one line."""
    best = max(found.levels, key=lambda level: level.tokens_per_s or 0.0, default=None)
    parts = [
        found.benchmark_id,
        f"{found.model or found.served_model} ({found.backend or 'format not told'})",
        found.machine or found.url,
    ]
    if best is not None:
        rate, first = _rate(best.tokens_per_s), _seconds(best.ttft, "p50")
        parts.append(f"{rate} tokens/s at {best.concurrency} at once, {first} to the first")
    if found.saturation is not None:
        parts.append(f"saturated at {found.saturation}")
    return plain(" · ".join(parts))


def columns(found: ServerBenchmark, detail: Detail = Detail.ALL) -> tuple[Column, ...]:
    """The table's columns at this detail, one row a level."""
    levels = found.levels

    def column(head: str, unit: str, cell: Callable[[LoadLevel], str]) -> Column:
        return Column(head=head, unit=unit, cells=tuple(map(cell, levels)))

    def seconds(head: str, name: str, percentile: str) -> Column:
        return column(head, percentile, lambda level: _seconds(getattr(level, name), percentile))

    shown = [
        column("at once", "", lambda level: str(level.concurrency)),
        column("answered", "requests", _answered),
        column("tokens", "per s", lambda level: _rate(level.tokens_per_s)),
    ]
    percentiles = ("p50", "p95") if detail < Detail.LEAN else ("p50", "p95", "p99")
    for head, name in (("TTFT", "ttft"), ("ITL", "itl")):
        shown += [seconds(head, name, percentile) for percentile in percentiles]
    if detail >= Detail.FULL:
        shown.append(seconds("TPOT", "tpot", "p50"))
        shown += [seconds("answer", "latency", percentile) for percentile in percentiles]
        shown.append(column("requests", "per s", lambda level: _rate(level.requests_per_s)))
    return tuple(shown)


def served_columns(report: Report) -> tuple[Column, ...]:
    """Servers beside what was measured without them: a row a level, those of a server together."""
    servers, offline = report.servers, _without_server(report)
    levels = [(found, level) for found in servers for level in found.levels]

    def texts(head: str, cell: Callable[[ServerBenchmark], str]) -> Column:
        cells = tuple(plain(cell(found)) for found, _ in levels)
        return Column(head=head, unit="", cells=cells, align="left")

    def numbers(
        head: str, unit: str, value: Callable[[LoadLevel], float | None], show: _Show
    ) -> Column:
        keys = tuple(value(level) for _, level in levels)
        cells = tuple(UNKNOWN if key is None else show(key) for key in keys)
        return Column(head=head, unit=unit, cells=cells, keys=keys)

    def seconds(head: str, name: str, percentile: str) -> Column:
        def value(level: LoadLevel) -> float | None:
            found = getattr(level, name)
            return None if found is None else float(getattr(found, f"{percentile}_s"))

        return numbers(head, percentile, value, format_seconds)

    alone = tuple(
        offline.get((found.machine or "", found.model or "", found.backend or ""))
        for found, _ in levels
    )
    return (
        texts("served", lambda found: found.model or found.served_model),
        texts("format", lambda found: found.backend or UNKNOWN),
        texts("machine", lambda found: found.machine or found.url),
        numbers("at once", "", lambda level: level.concurrency, lambda value: f"{value:.0f}"),
        numbers("tokens", "per s", lambda level: level.tokens_per_s, format_rate),
        Column(
            head="without a server",
            unit="tokens per s",
            cells=tuple(UNKNOWN if rate is None else format_rate(rate) for rate in alone),
            keys=alone,
        ),
        seconds("TTFT", "ttft", "p50"),
        seconds("TTFT", "ttft", "p95"),
        seconds("ITL", "itl", "p50"),
        seconds("ITL", "itl", "p95"),
        numbers("failed", "", lambda level: sum(level.errors.values()), lambda v: f"{v:.0f}"),
        texts("saturated at", lambda f: UNKNOWN if f.saturation is None else str(f.saturation)),
        texts("measured", lambda found: found.started_at[:16].replace("T", " ")),
    )


def _answered(level: LoadLevel) -> str:
    return f"{level.requests - sum(level.errors.values())} of {level.requests}"


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else format_rate(value)


def _seconds(values: Percentiles | None, percentile: str) -> str:
    return UNKNOWN if values is None else format_seconds(getattr(values, f"{percentile}_s"))


def _terminal(found: ServerBenchmark, width: int, color: bool) -> str:
    from rich.text import Text

    table, _, hidden = widest(lambda detail: columns(found, detail), width=width)
    parts: list[RenderableType] = [Text(heading(found), style="bold"), Text(), table, Text()]
    parts += [hanging("- ", line) for line in findings(found)]
    parts += [Text(), Text(LEGEND)]
    if hidden:
        parts.append(Text(f"All columns: a terminal {hidden} wide"))
    return styled(parts, width=width, color=color)


def _markdown(found: ServerBenchmark) -> str:
    shown = columns(found)
    lines = [f"# {in_markdown(heading(found))}", ""]
    lines += markdown_table(shown)
    lines += ["", *(f"- {in_markdown(line)}" for line in findings(found)), "", in_markdown(LEGEND)]
    if found.command is not None:
        lines += ["", *markdown_code([plain(found.command)])]
    return "\n".join(lines).rstrip() + "\n"


def _without_server(report: Report) -> dict[tuple[str, str, str], float]:
    """Tokens per second of one sequence by machine, model and format: of the newest such run."""
    machines = {each.points[-1].run_id: each.key.machine for each in report.series}
    return {
        (machines[comparison.run_id], comparison.model.name, row.backend): (
            row.decode.tokens_per_s.median
        )
        for comparison in reversed(report.comparisons)
        if comparison.run_id in machines and comparison.workload.batch == 1
        for row in comparison.rows
        if row.decode is not None
    }
