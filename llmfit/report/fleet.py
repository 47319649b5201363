"""What each kind of a fleet's nodes makes of the same rows: a column a kind.

comparisons, each of one kind ─► the newest of every model, workload and kind ─► columns
"""

from __future__ import annotations

from collections.abc import Sequence

from llmfit.planning.verdict.recommend import STATUS_WORDS, needed_bytes
from llmfit.records import Comparison, RunRecord, Workload
from llmfit.report._column import UNKNOWN, Column
from llmfit.report._text import plain
from llmfit.units import format_bytes, format_rate

LEGEND = "tokens/s, peak memory; ★ is the pick of its kind"


def title_of(comparison: Comparison) -> str:
    """The model's name, and the kind of the fleet's nodes where it ran on one."""
    return plain(", ".join(filter(None, (comparison.model.name, comparison.environment.kind))))


def fleet_columns(comparisons: Sequence[Comparison]) -> tuple[Column, ...]:
    """The columns, a row for each format of a model under a workload; empty outside a fleet.

    ``comparisons`` have the newest first.
    """
    by_kind: dict[tuple[str, Workload], dict[str, Comparison]] = {}
    for comparison in comparisons:
        kind = comparison.environment.kind
        if kind is not None:
            of_model = by_kind.setdefault((comparison.model.name, comparison.workload), {})
            of_model.setdefault(kind, comparison)
    rows = [
        (name, workload, backend, of_model)
        for (name, workload), of_model in by_kind.items()
        for backend in dict.fromkeys(
            row.backend for comparison in of_model.values() for row in comparison.rows
        )
    ]
    if not rows:
        return ()
    kinds = dict.fromkeys(kind for *_, of_model in rows for kind in of_model)
    return (
        Column(head="model", unit="", cells=tuple(plain(row[0]) for row in rows), align="left"),
        Column(
            head="tokens", unit="prompt + new", cells=tuple(_asked(row[1]) for row in rows),
            align="left",
        ),
        Column(head="format", unit="", cells=tuple(row[2] for row in rows), align="left"),
        *(
            Column(
                head=plain(kind), unit="tokens per s",
                cells=tuple(_cell(of_model.get(kind), backend) for _, _, backend, of_model in rows),
                keys=tuple(_rate(of_model.get(kind), backend) for _, _, backend, of_model in rows),
            )
            for kind in kinds
        ),
    )  # fmt: skip


def _asked(workload: Workload) -> str:
    batch = "" if workload.batch == 1 else f", batch {workload.batch}"
    return f"{workload.prompt_tokens} + {workload.new_tokens}{batch}"


def _row(comparison: Comparison | None, backend: str) -> RunRecord | None:
    rows = () if comparison is None else comparison.rows
    return next((row for row in rows if row.backend == backend), None)


def _rate(comparison: Comparison | None, backend: str) -> float | None:
    row = _row(comparison, backend)
    if row is None or row.status != "ok" or row.decode is None:
        return None
    return row.decode.tokens_per_s.median


def _cell(comparison: Comparison | None, backend: str) -> str:
    row = _row(comparison, backend)
    if comparison is None or row is None:
        return UNKNOWN
    rate = _rate(comparison, backend)
    if rate is None:
        return STATUS_WORDS[row.status]
    need = needed_bytes(row)
    star = "★ " if comparison.verdict.backend == backend else ""
    return f"{star}{format_rate(rate)}" + ("" if need is None else f", {format_bytes(need)}")
