"""A night's settings: a TOML file ─► NightlyConfig, or every wrong key at once.

    title = "…"    [defaults] …    [workloads.NAME] …    [[models]] …

``[defaults]`` holds what every model is measured with unless its own table says otherwise.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from llmfit.backends.registry import check_backends
from llmfit.errors import LlmfitError, UsageError
from llmfit.evaluate.tasks import check_tasks
from llmfit.files import expanded
from llmfit.foreign.json import shortened
from llmfit.planning.verdict.constraints import Objective
from llmfit.records import EvaluationSettings, KvCacheDtype, PplProtocol, Weights, Workload

T = TypeVar("T")
EMBEDDED = "embedded"
"""Name of the model inside the package."""
HISTORY = "history"
_LONGEST_LINE = 500
_FILES = ("hellaswag_file", "text_file", "include_path", "calibration_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a model is measured with. None is the default of ``llmfit compare``."""

    backends: tuple[str, ...] | None = None
    workloads: tuple[str, ...] | None = None
    """Names of ``[workloads.NAME]``; None: all of them, or the default workload without any."""
    tasks: tuple[str, ...] | None = None
    """lm-eval tasks; an empty list scores nothing."""
    limit: int | None = None
    include_path: str | None = None
    hellaswag_file: str | None = None
    text_file: str | None = None
    ppl_protocol: PplProtocol | None = None
    gpu_gb: float | None = None
    ram_gb: float | None = None
    device: str | None = None
    weights: Weights = "real"
    kv_cache_dtype: KvCacheDtype | None = None
    checkpoints: dict[str, str] = field(default_factory=dict)
    calibration_file: str | None = None
    threads: int | None = None
    seed: int = 0
    objective: Objective = "speed"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    row_time_limit_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry(Asked):
    """A model of the night."""

    model: str
    """A folder, a hub id, a catalogue name, or ``embedded``."""
    name: str | None = None
    """For people; None: ``model``. Two entries of one model need two names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One comparison of the night: a model under one workload."""

    model: ModelEntry
    workload_name: str
    workload: Workload | None
    """None: the default one, cut to the model's context."""
    kind: str | None = None
    """Of the fleet's nodes; None where the night names no kinds."""

    @property
    def name(self) -> str:
        """For people, e.g. ``embedded, chat``."""
        parts = (self.model.name or self.model.model, self.workload_name, self.kind)
        return ", ".join(filter(None, parts))

    def evaluation(self) -> EvaluationSettings | None:
        """What is scored; None for nothing."""
        asked = self.model
        if asked.tasks == () or asked.weights == "synthetic":
            return None
        names = ("tasks", "limit", "include_path", "hellaswag_file", "text_file", "ppl_protocol")
        given = {name: value for name in names if (value := getattr(asked, name)) is not None}
        return EvaluationSettings(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class NightlyConfig:
    """A night."""

    title: str = "llmfit nightly"
    machine: str | None = None
    """Name of this machine's series; None: the host's."""
    store: str | None = None
    """A file, or ``postgresql://…``; None: the default place."""
    time_limit_h: float | None = None
    """Of the whole night."""
    executor: Literal["local", "ray"] = "local"
    """Where rows run: on this machine one after the other, or on the nodes of a Ray cluster."""
    ray_address: str | None = None
    """HOST:PORT of the cluster's head, or ``auto``; None: RAY_ADDRESS, else a Ray of its own."""
    gpu_kinds: tuple[str, ...] = ()
    """Kinds of nodes, each of which measures everything; empty: the only kind that there is."""
    baseline: str = HISTORY
    """What regressions are held against: ``history``, ``last``, a tag or a run's id."""
    tag: str | None = None
    """Given to this night's runs."""
    models: tuple[ModelEntry, ...]
    workloads: dict[str, Workload] = field(default_factory=dict)
    digest: str = ""
    """Hash of the file: an interrupted night is resumed by the same one."""

    def cells(self) -> tuple[Cell, ...]:
        """All comparisons, in the file's order."""
        return tuple(
            Cell(model=model, workload_name=name, workload=self.workloads.get(name), kind=kind)
            for model in self.models
            for name in self._names(model)
            for kind in self.gpu_kinds or (None,)
        )

    def _names(self, model: ModelEntry) -> tuple[str, ...]:
        return model.workloads or tuple(self.workloads) or ("",)


def read_config(path: Path) -> NightlyConfig:
    """Read a night's settings. Raises UsageError that names every wrong key and its place."""
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode())
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}.") from exc
    except (ValueError, RecursionError) as exc:  # a number of 5,000 digits is a bare ValueError
        raise UsageError(f"{path} is not TOML: {exc}.") from exc
    reader = _Reader(path.absolute().parent)
    config = reader.config(table)
    if config is None or reader.wrong:
        lines = "\n".join(f"  {line[:_LONGEST_LINE]}" for line in reader.wrong)
        count = f"{len(reader.wrong)} wrong keys" if len(reader.wrong) > 1 else "a wrong key"
        raise UsageError(f"{path} has {count}:\n{lines}")
    return replace(config, digest=hashlib.blake2b(content, digest_size=16).hexdigest())


class _Reader:
    """Reads tables key by key, and keeps what is wrong with each."""

    def __init__(self, folder: Path) -> None:
        self.wrong: list[str] = []
        self._folder = folder

    def config(self, table: Mapping[str, Any]) -> NightlyConfig | None:
        """The whole file; None where it holds no model that could be read."""
        apart = {"models", "workloads", "defaults"}
        top = {key: value for key, value in table.items() if key not in apart}
        given = self._values(NightlyConfig, top, "", without={*apart, "digest"}, also=apart)
        workloads = self._workloads(table.get("workloads", {}))
        defaults = self._table(table.get("defaults", {}), "defaults")
        shared = self._values(Asked, defaults, "defaults.")
        self._check(shared, "defaults.", workloads)
        if given.get("store") is not None and "://" not in given["store"]:
            given["store"] = self._absolute(given["store"])
        entries = table.get("models", [])
        if not isinstance(entries, list) or not entries:
            self.wrong.append("models: at least one [[models]] table is needed, with a key model")
            return None
        models = []
        for index, entry in enumerate(entries):
            place = f"models[{index}]."
            own = self._values(ModelEntry, self._table(entry, place.rstrip(".")), place)
            self._check(own, place, workloads)
            if "model" not in own:
                if not (isinstance(entry, dict) and "model" in entry):
                    self.wrong.append(f'{place}model: missing; a folder, a hub id, or "embedded"')
                continue
            models.append(ModelEntry(**{**shared, **own}))
        if not 0 < given.get("time_limit_h", 1) < math.inf:
            self.wrong.append(f"time_limit_h: must be above 0, not {given['time_limit_h']}")
        for key in ("ray_address", "gpu_kinds"):
            if given.get(key) and given.get("executor") != "ray":
                self.wrong.append(f'{key}: means nothing without executor = "ray"')
        kinds = given.get("gpu_kinds", ())
        for kind in sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            self.wrong.append(f"gpu_kinds: {kind!r} is named twice")
        given["gpu_kinds"] = tuple(dict.fromkeys(kinds))
        config = NightlyConfig(**given, models=tuple(models), workloads=workloads)
        names = [cell.name for cell in config.cells()]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.wrong.append(f"models: {name!r} is measured twice; give each entry a name")
        return config

    def _workloads(self, table: object) -> dict[str, Workload]:
        found = {}
        for name, entry in self._table(table, "workloads").items():
            place = f"workloads.{name}."
            values = self._values(Workload, self._table(entry, place.rstrip(".")), place)
            for key, value in values.items():
                least = 0 if key == "warmup" else 2 if key == "new_tokens" else 1
                if value is not None and value < least:
                    self.wrong.append(f"{place}{key}: must be {least} or more, not {value}")
            found[name] = Workload(**values)
        return found

    def _table(self, value: object, place: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.wrong.append(f"{place}: must be a table, not {shortened(value)}")
        return {}

    def _values(
        self,
        kind: type[Any],
        table: Mapping[str, Any],
        place: str,
        *,
        without: frozenset[str] | set[str] = frozenset(),
        also: frozenset[str] | set[str] = frozenset(),
    ) -> dict[str, Any]:
        """The keys of ``table`` that are fields of ``kind``, each of its field's type."""
        types = get_type_hints(kind)
        known = [each.name for each in fields(kind) if each.name not in without]
        found = {}
        for key, value in table.items():
            if key not in known:
                close = get_close_matches(key, [*known, *also], n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                self.wrong.append(f"{place}{key}: unknown key; {hint}")
                continue
            try:
                found[key] = msgspec.convert(value, types[key])
            except msgspec.ValidationError as exc:
                words = _words(types[key])
                known_words = f"; known are {', '.join(words)}" if words else ""
                self.wrong.append(f"{place}{key}: {exc}, not {shortened(value)}{known_words}")
        return found

    def _check(self, given: dict[str, Any], place: str, workloads: Mapping[str, Workload]) -> None:
        """What a type does not tell; paths become absolute, from the file's folder on."""
        for key in _FILES:
            if given.get(key) is not None:
                given[key] = self._absolute(given[key])
                if not Path(given[key]).exists():
                    self.wrong.append(f"{place}{key}: {given[key]!r} is not there")
        if given.get("model") is not None:
            given["model"] = self._local(given["model"])
        if given.get("checkpoints"):
            ready = given["checkpoints"].items()
            given["checkpoints"] = {name: self._local(value) for name, value in ready}
        for name in given.get("workloads") or ():
            if name not in workloads:
                known = ", ".join(workloads) or "none"
                self.wrong.append(f"{place}workloads: no [workloads.{name}]; there are: {known}")
        for key in ("gpu_gb", "ram_gb", "limit", "row_time_limit_s", "threads"):
            if given.get(key) is not None and not 0 < given[key] < math.inf:
                self.wrong.append(f"{place}{key}: must be above 0, not {given[key]}")
        for key, problem in self._refused(given):
            self.wrong.append(f"{place}{key}: {problem}")

    def _absolute(self, path: str) -> str:
        return str(self._folder / expanded(path))

    def _local(self, name: str) -> str:
        """A path that says it is one, from the file's folder on; a hub id as it is."""
        return self._absolute(name) if name.startswith((".", "~")) else name

    def _refused(self, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What ``llmfit compare`` itself would refuse before it runs."""
        if given.get("device") not in (None, "auto", "cpu", "cuda"):
            yield "device", f"unknown device {given['device']!r}; known are auto, cpu, cuda"
        try:
            if given.get("backends") is not None:
                check_backends(given["backends"])
        except LlmfitError as exc:
            yield "backends", str(exc)
        try:
            if given.get("tasks"):
                check_tasks(
                    EvaluationSettings(tasks=given["tasks"], include_path=given.get("include_path"))
                )
        except LlmfitError as exc:
            yield "tasks", str(exc)


def _words(kind: Any) -> list[str]:
    """The words that a field takes, where it takes no others."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [word for each in get_args(kind) for word in _words(each)]
