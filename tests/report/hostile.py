"""Records in which every text is hostile: what a model, a library or an imported file could say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from llmfit.records import (
    Comparison,
    Hardware,
    MeasurementWarning,
    ProfileGroup,
    StepProfile,
    TaskMetric,
    TaskResult,
)
from llmfit.serving.judging import level
from llmfit.serving_records import RequestTrace, ServerBenchmark
from llmfit.study_records import (
    Cell,
    StudyCheck,
    StudyColumn,
    StudyPlot,
    StudyResult,
    StudyRow,
    StudyTable,
)
from llmfit.study_records import Series as Line
from llmfit.testing import make_comparison, make_record, make_server
from llmfit.trend_records import (
    CellResult,
    NightResult,
    Observation,
    Regression,
    Report,
    Series,
    SeriesKey,
)

T = TypeVar("T")

EVIL = (
    "=HYPERLINK(1)|x`y\n# [red]r[/red] <script>own()</script> ![i](http://e) [l](u) **b** "
    "<!channel> @here &lt; %{x} $d$ \x1b]0;t\x07\x1b[2J\x9b31m\r\x0b\x00 "
    "\u202eabc\u2066\u2028\ufffe\ufeff\u200b --> ]]> '\" \\ end"
)
"""Controls of every output: terminal, rich, Markdown, HTML, CSV, XML, chat, Plotly."""
_TIMES = frozenset({"started_at", "made_at", "since", "ended_at"})
"""Compared and sorted as times, never taken from outside but by an import."""


def poisoned(record: T, evil: str = EVIL) -> T:
    """``record`` with ``evil`` in place of every text that is free, in it and below it."""
    kinds = get_type_hints(type(record))
    changes = {
        each.name: _poisoned(getattr(record, each.name), kinds[each.name], evil)
        for each in fields(record)  # type: ignore[arg-type]
        if each.name not in _TIMES
    }
    return replace(record, **changes)  # type: ignore[type-var]


def _poisoned(value: Any, kind: Any, evil: str) -> Any:
    if isinstance(value, str):
        return value if _is_choice(kind) else evil
    if is_dataclass(value):
        return poisoned(value, evil)
    if isinstance(value, tuple):
        inner = get_args(kind)[0] if get_args(kind) else Any
        return tuple(_poisoned(each, inner, evil) for each in value)
    if isinstance(value, Mapping):
        return {f"{evil}{n}": _poisoned(v, Any, evil) for n, v in enumerate(value.values())}
    return value


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal or any(map(_is_choice, get_args(kind)))


def comparison(*, predicted_only: bool = False) -> Comparison:
    """Two rows that ran, one that failed, each with everything that a row may hold."""
    metric = TaskMetric(name="m", filter="f", value=0.5, stderr=0.1, higher_is_better=True)
    shared: dict[str, Any] = {
        "notes": ("n",),
        "tasks": (TaskResult(task="t", version="1", n=3, num_fewshot=0, metrics=(metric,)),),
        "warnings": (MeasurementWarning(code="c", message="m", hint="h"),),
        "profile": StepProfile(
            step_s=0.01, steps=3, groups=(ProfileGroup(name="g", step_s=0.01, share=1.0),)
        ),
        "dtype": "d",
        "predicted_only": predicted_only,
    }
    rows = [
        make_record("bf16", **shared),
        make_record("nf4", perplexity=6.5, kl_divergence=0.02, tokens_per_s=30, **shared),
        make_record("awq", status="failed", reason="r", **shared),
    ]
    gpu = Hardware(name="g", kind="gpu", memory_bytes=8, bandwidth=1.0, flops=1.0, source="s",
                   assumed=True)  # fmt: skip
    made = poisoned(make_comparison(rows, record="r", gpu=gpu, budget_bytes=10**10))
    apart = tuple(replace(row, backend=f"{EVIL}{n}") for n, row in enumerate(made.rows))
    return replace(made, rows=apart)


def report() -> Report:
    """The comparison in a report with a night, a regression and a figure over time."""
    shown = comparison()
    key = SeriesKey(machine="m", model="m", backend="b", settings="s", metric="x")
    worse = Regression(
        key=key,
        label="l",
        before=40.0,
        after=30.0,
        change=-0.25,
        threshold=0.05,
        since_run="s",
        since="2026-01-04",
        good_run="g",
        causes=("c",),
    )
    gone = replace(worse, change=None, status="failed", reason="r")
    points = tuple(
        Observation(run_id="r", started_at=f"2026-01-0{n}T00:00:00", value=float(n)) for n in (1, 2)
    )
    series = Series(key=key, label="l", better="higher", points=points)
    cells = tuple(
        CellResult(name="c", model="m", workload="w", status=status, reason="r")
        for status in ("done", "failed", "not run")
    )
    night = NightResult(
        session_id="n",
        title="t",
        machine="m",
        started_at="2026-01-04",
        ended_at="2026-01-05",
        tag="t",
        cells=cells,
        baseline="b",
        notes=("n",),
        command="c",
    )
    made = poisoned(
        Report(
            title="t",
            made_at="2026-01-05T00:00:00",
            comparisons=(),
            series=(series,),
            regressions=(worse, gone),
            baseline="b",
            night=night,
            servers=(server(""),),
            command="c",
        )
    )
    drawn = tuple(
        replace(each, key=replace(each.key, metric="decode.tokens_per_s")) for each in made.series
    )
    return replace(made, comparisons=(shown,), series=drawn)


def server(evil: str = EVIL) -> ServerBenchmark:
    """A server with a failed request beside those that were answered."""
    made = make_server(model="m", backend="b", tag="t", server="s", notes=("n",), command="c")
    failed = RequestTrace(started_s=0.0, ended_s=1.0, error="e")
    levels = (*made.levels, level(1, [failed]))
    return poisoned(replace(made, levels=levels), evil) if evil else replace(made, levels=levels)


def study(evil: str = EVIL) -> StudyResult:
    """A study with a table, a row that did not run, a plot, a check and a finding."""
    table = StudyTable(
        title="t",
        head="h",
        columns=(StudyColumn(key="k", head="h", unit="text"),),
        rows=(
            StudyRow(name="n", cells={"k": Cell(value="v")}),
            StudyRow(name="n", status="failed", reason="r"),
        ),
        notes=("n",),
    )
    kinds = ("lines", "bars")
    plots = tuple(
        StudyPlot(
            title="t",
            kind=kind,
            x_label="x",
            y_label="y",
            series=(Line(name="a", x=(1.0, 2.0), y=(1.0, 2.0)), Line(name="b", x=(1.0,), y=(1.0,))),
        )
        for kind in kinds
    )
    return poisoned(
        StudyResult(
            study="s",
            title="t",
            question="q",
            preset="default",
            device="cpu",
            settings={"threads": 2},
            tables=(table,),
            plots=plots,
            checks=(StudyCheck(name="n", holds=True, detail="d"),),
            findings=("f",),
            notes=("n",),
            reference="r",
            command="c",
        ),
        evil,
    )
