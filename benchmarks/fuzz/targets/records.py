"""Readers of llmfit's own records and of a night's settings, which strangers may send."""

from __future__ import annotations

import functools
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz import wholes
from benchmarks.fuzz.targets.base import Target

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from llmfit.store.store import Store


@functools.cache
def _store() -> Store:
    import tempfile

    from llmfit.store.store import Store

    return Store(str(Path(tempfile.mkdtemp(prefix="llmfit-fuzz-store-")) / "store.db"))


def _recorded(folder: Path) -> None:
    """A comparison's JSON: found as a record, taken into the store, shown in every form."""
    from llmfit.keeping import Keeping
    from llmfit.lookup import find_record
    from llmfit.report import FORMATS, render
    from llmfit.store.exchange import import_runs

    file = folder / "comparison.json"
    comparison = find_record(
        file, Keeping(runs_dir=str(folder), store=str(folder / "none.db"))
    ).comparison
    if comparison is not None:
        for form in FORMATS:
            render(comparison, form)
    import_runs(_store(), [file])


def _warm_store() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        (Path(folder) / "comparison.json").write_text(wholes.comparison())
        _recorded(Path(folder))


def _structured_comparison() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    whole = json.loads(wholes.comparison())
    return changed([whole], ["runs", "rows", "model", "run_id"]).map(as_json)


def _served(folder: Path) -> None:
    """A server's figures: found as a record, taken into the store, shown in every form."""
    from llmfit.keeping import Keeping
    from llmfit.lookup import find_record
    from llmfit.report.server import SERVER_FORMATS, history_line, render_server, served_columns
    from llmfit.store.exchange import import_runs

    file = folder / "server.json"
    found = find_record(file, Keeping(runs_dir=str(folder), store=str(folder / "none.db"))).server
    if found is not None:
        for form in SERVER_FORMATS:
            render_server(found, form)
        history_line(found)
        served_columns([found], [])
    import_runs(_store(), [file])


def _warm_served() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as folder:
        (Path(folder) / "server.json").write_text(wholes.server())
        _served(Path(folder))


def _structured_server() -> SearchStrategy[bytes]:
    from benchmarks.fuzz.values import as_json, changed

    whole = json.loads(wholes.server())
    return changed([whole], ["levels", "workload", "rows", "runs"]).map(as_json)


def _night(folder: Path) -> None:
    from llmfit.nightly.config import read_config

    read_config(folder / "night.toml").cells()


def _structured_night() -> SearchStrategy[bytes]:
    """TOML of changed tables: what TOML has no form for is written as a text."""
    from benchmarks.fuzz.values import changed

    return changed([tomllib.loads(wholes.NIGHT.decode())], ["models", "workloads", "defaults"]).map(
        lambda table: "\n".join(_toml_lines(table)).encode("utf-8", "surrogatepass")
    )


def _toml_lines(table: dict[str, Any]) -> list[str]:
    return [f"{json.dumps(str(key))} = {_toml(value)}" for key, value in table.items()]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return str(value) if value != value or abs(value) == float("inf") else repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else json.dumps(str(value))


TARGETS = (
    Target(
        name="comparison JSON", file="comparison.json", run=_recorded, warm=_warm_store,
        seeds=lambda: [wholes.comparison().encode()], structured=_structured_comparison,
    ),
    Target(
        name="server JSON", file="server.json", run=_served, warm=_warm_served,
        seeds=lambda: [wholes.server().encode()], structured=_structured_server,
    ),
    Target(
        name="nightly TOML", file="night.toml", run=_night, seeds=lambda: [wholes.NIGHT],
        structured=_structured_night,
    ),
)  # fmt: skip
