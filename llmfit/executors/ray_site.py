"""Rows as tasks of Ray: given to it all at once, heard from one by one, tried again where lost.

RowTask ─► hashed ─► NodeJob ─► Ray's queue ─► ray_node on some node
                                                    └► stages, log, logits, record ─► here
node or worker lost ─► once more ─► a failed record
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmfit.backends.base import Backend
from llmfit.backends.registry import get_backend, split_id
from llmfit.errors import LlmfitError, first_line
from llmfit.executors.base import OUT_OF_TIME, Limits, RowTask, Site, Watch
from llmfit.executors.ray_files import Sent
from llmfit.executors.ray_node import NodeFacts, NodeJob, Told, row_on_node
from llmfit.executors.ray_pool import Pool
from llmfit.inputs import hashed, hashed_inputs
from llmfit.planning.comparing.differences import REFERENCE
from llmfit.records import Hardware, Plan, RunRecord, Status, from_json, to_json
from llmfit.row import not_run

_RETRIES = 1
"""Of a row whose node or worker process is lost."""
_POLL_S = 0.5
_LOOK_S = 5.0
"""Between two looks at which nodes there are."""
_NO_NODE_S = 60.0
"""How long rows wait for a node after the last one that could run them is gone."""
_CANCEL_S = 10.0
_MESSAGES_AHEAD = 16
"""That wait for a driver which is slower than a node: each is 16 MiB of logits at most."""

Finished = tuple[RowTask, RunRecord]


class Artifacts:
    """Which node has which row's artifact, and which are being made: one for a whole cluster."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[object, Sent] = {}
        self._making: set[object] = set()

    def begin(self, plan: Plan) -> bool:
        """True where a row may run: no other one is just making the artifact that it would."""
        what = _artifact_of(plan)
        with self._lock:
            if what is None or what in self._made:
                return True
            if what in self._making:
                return False
            self._making.add(what)
            return True

    def known(self, plan: Plan) -> Sent | None:
        """Where the row's artifact is; None where nobody has told."""
        with self._lock:
            return self._made.get(_artifact_of(plan))

    def tell(self, plan: Plan, made: Sent) -> None:
        """The artifact that a row has loaded."""
        with self._lock:
            self._made[_artifact_of(plan)] = made

    def end(self, plan: Plan) -> None:
        """The row runs no more."""
        with self._lock:
            self._making.discard(_artifact_of(plan))


def _artifact_of(plan: Plan) -> object:
    """What rows have in common that load one artifact; None for rows that make none."""
    backend = get_backend(plan.backend)
    if type(backend).make is Backend.make or plan.checkpoint is not None:
        return None
    name, variant = split_id(plan.backend)
    calibration = plan.inputs.get(plan.calibration_file or "")
    model = plan.model.content_hash or plan.model.path
    return (backend.files_of or name, variant, model, calibration, plan.seed, plan.cache_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A task that Ray does not have yet."""

    task: RowTask
    plan: Plan
    """The task's, hashed."""
    lost: tuple[str, ...] = ()
    """Why each earlier try was lost."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """A task that Ray has."""

    waiting: _Waiting
    stream: Any
    """Ray's generator of what the node tells."""
    cpus: float
    node: str | None = None
    """Where it runs, for people; None while it is in Ray's queue."""
    node_id: str = ""
    stage: str = "start"

    @property
    def task(self) -> RowTask:
        return self.waiting.task


class RaySite(Site):
    """Nodes of one kind, one of which was probed."""

    def __init__(
        self, pool: Pool, facts: NodeFacts, artifacts: Artifacts, interrupted: threading.Event
    ) -> None:
        """``facts`` are those of one of the pool's nodes; ``interrupted`` may be set elsewhere."""
        self.environment = facts.environment
        self.pool = pool
        self.artifacts = artifacts
        self.interrupted = interrupted
        self._facts = facts

    @property
    def hardware(self) -> tuple[Hardware | None, Hardware]:
        """See ``Site``."""
        return (self._facts.gpu if self.pool.gpus else None), self._facts.cpu

    def fetch(self, plans: Sequence[Plan]) -> list[Plan]:
        """See ``Site``. What the hub has, every node fetches for itself."""
        return list(plans)

    def run(
        self, tasks: Sequence[RowTask], *, limits: Limits, watch: Watch
    ) -> Generator[Finished, None, None]:
        """See ``Site``."""
        return _Run(self, limits, watch).all(tasks)

    def not_run(self, plan: Plan, status: Status, reason: str) -> RunRecord:
        """The record of a row that no node has made."""
        return not_run(plan, self.environment, status, reason)


class _Run:
    """Tasks under way."""

    def __init__(self, site: RaySite, limits: Limits, watch: Watch) -> None:
        self._site = site
        self._limits = limits
        self._watch = watch
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Running] = []
        self._looked = time.monotonic()
        self._seen = self._looked
        """When a node that could run rows was seen last."""

    def all(self, tasks: Sequence[RowTask]) -> Generator[Finished, None, None]:
        """Every task's record; closing it cancels what runs and what waits."""
        try:
            for task in tasks:
                try:
                    self._waiting.append(_Waiting(task=task, plan=_hashed(task.plan)))
                except LlmfitError as exc:
                    yield task, self._site.not_run(task.plan, "failed", str(exc))
            while self._waiting or self._running:
                if self._site.interrupted.is_set():
                    raise KeyboardInterrupt
                self._submit()
                if self._limits.reached():
                    yield from self._out_of_time()
                    return
                yield from self._without_nodes()
                yield from self._hear()
        finally:
            self._cancel(self._running)

    # ------------------------------------------------------------ given to Ray

    def _submit(self) -> None:
        """Give Ray what waits and may run; a row whose artifact another one makes waits for it."""
        for _ in range(len(self._waiting)):
            waiting = self._waiting.popleft()
            resources = self._site.pool.resources(waiting.plan)
            if resources is not None and self._site.artifacts.begin(waiting.plan):
                self._running.append(self._given(waiting, resources))
            else:
                self._waiting.append(waiting)

    def _given(self, waiting: _Waiting, resources: dict[str, Any]) -> _Running:
        import ray

        job = self._job(waiting.plan)
        task = ray.remote(row_on_node).options(
            num_returns="streaming",
            max_retries=0,  # a row that is tried again says so
            name=f"llmfit {waiting.plan.backend}",
            _generator_backpressure_num_objects=_MESSAGES_AHEAD,
            **resources,
        )
        stream = task.remote(version("llmfit"), to_json(job))
        return _Running(waiting=waiting, stream=stream, cpus=resources["num_cpus"])

    def _job(self, plan: Plan) -> NodeJob:
        import ray

        here = ray.get_runtime_context().get_node_id()
        place = plan.reference_file
        return NodeJob(
            plan=plan,
            files=tuple(_sent(plan, here)),
            driver=here,
            reference_ready=place is not None and Path(place).is_file(),
            artifact=self._site.artifacts.known(plan),
            kind=self._site.pool.kind,
            time_limit_s=self._limits.row_s,
        )

    # ------------------------------------------------------------ heard from nodes

    def _hear(self) -> Iterator[Finished]:
        """Take what one node says next, or wait a moment where none does."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        streams = [running.stream for running in self._running]
        if not streams:  # no node is there to run what waits
            time.sleep(_POLL_S)
            return
        ready, _ = ray.wait(streams, num_returns=1, timeout=_POLL_S)
        for running in [each for each in self._running if each.stream in ready]:
            try:
                told: Told = ray.get(next(running.stream))
            except StopIteration:
                yield from self._lost(running, "it ended without a record")
            except RayTaskError as exc:
                reason = f"the node's worker failed: {first_line(exc.cause or exc)}"
                yield self._ended(running, self._failed(running, reason))
            except RayError as exc:
                yield from self._lost(running, first_line(exc))
            else:
                yield from self._told(running, told)

    def _told(self, running: _Running, told: Told) -> Iterator[Finished]:
        """What a node says of a row; its record ends it."""
        task, plan = running.task, running.waiting.plan
        match told:
            case ("begun", node, node_id):
                running.node, running.node_id = node, node_id
                self._watch.started(task)
            case ("stage", stage, done, total):
                running.stage = stage
                self._watch.progress(task, stage, done, total)
            case ("log", text):
                with suppress(OSError):  # a log that cannot be kept ends no row
                    task.log_path.write_bytes(text)
            case ("reference", piece):
                with _half(plan).open("ab") as stream:
                    stream.write(piece)
            case ("artifact", path, key):
                found = Sent(path=path, digest=key, reading="everything", node=running.node_id)
                self._site.artifacts.tell(plan, found)
            case ("refused", reason):
                yield self._ended(running, self._failed(running, reason))
            case ("record", text):
                if plan.backend == REFERENCE and plan.reference_file and _half(plan).exists():
                    _half(plan).replace(plan.reference_file)
                yield self._ended(running, _as_asked(from_json(RunRecord, text), plan))

    def _ended(self, running: _Running, record: RunRecord) -> Finished:
        self._dropped(running)
        again = tuple(
            f"run again, as the first try was lost: {why}" for why in running.waiting.lost
        )
        return running.task, replace(record, notes=(*record.notes, *again))

    def _lost(self, running: _Running, why: str) -> Iterator[Finished]:
        """Try a row again whose node or worker process is gone, unless it has been."""
        self._dropped(running)
        if running.waiting.plan.reference_file and running.waiting.plan.backend == REFERENCE:
            _half(running.waiting.plan).unlink(missing_ok=True)
        lost = (*running.waiting.lost, f"{why} ({running.node or 'no node'})")
        if len(lost) <= _RETRIES:
            self._waiting.append(replace(running.waiting, lost=lost))
            return
        yield self._ended(running, self._failed(running, f"lost {len(lost)} times: {lost[-1]}"))

    def _dropped(self, running: _Running) -> None:
        if running in self._running:
            self._running.remove(running)
        self._site.artifacts.end(running.waiting.plan)

    def _failed(self, running: _Running, reason: str) -> RunRecord:
        return self._site.not_run(running.waiting.plan, "failed", reason)

    # ------------------------------------------------------------ given up

    def _out_of_time(self) -> Iterator[Finished]:
        """The whole's time is over: what runs is stopped, what waits is left out."""
        begun = [running for running in self._running if running.node is not None]
        queued = [running.waiting for running in self._running if running.node is None]
        self._cancel(self._running)
        for running in begun:
            yield running.task, self._failed(running, f"{OUT_OF_TIME} during {running.stage!r}")
        for waiting in (*queued, *self._waiting):
            yield waiting.task, self._site.not_run(waiting.plan, "skipped", OUT_OF_TIME)
        self._waiting.clear()

    def _without_nodes(self) -> Iterator[Finished]:
        """Take back what Ray can place nowhere now, and fail it where no node comes for long."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        nodes = self._site.pool.nodes()
        most = max((node.cpus for node in nodes), default=0.0)
        if nodes:
            self._seen = now
        stuck = [each for each in self._running if each.node is None and each.cpus > most]
        self._cancel(stuck)
        self._waiting.extend(running.waiting for running in stuck)
        if now - self._seen < _NO_NODE_S:
            return
        reason = f"no node of kind {self._site.pool.kind} is left in the Ray cluster"
        for waiting in self._waiting:
            yield waiting.task, self._site.not_run(waiting.plan, "failed", reason)
        self._waiting.clear()

    def _cancel(self, some: list[_Running]) -> None:
        """Stop tasks on their nodes, where a row's process ends with Ray's; drop queued ones."""
        import ray

        streams = [running.stream for running in some]
        for running in list(some):
            ray.cancel(running.stream, force=True)
            self._dropped(running)
        if streams:
            ray.wait(streams, num_returns=len(streams), timeout=_CANCEL_S)


def _hashed(plan: Plan) -> Plan:
    """The plan with the hashes of what it reads from this node's disk. Raises LlmfitError."""
    return hashed_inputs(plan) if plan.model.source == "hub" else hashed(plan)


def _sent(plan: Plan, node: str) -> Iterator[Sent]:
    """What the row reads from this node's disk: the model and what was given for it."""
    if plan.model.content_hash is not None:
        digest = plan.model.content_hash
        yield Sent(path=plan.model.path, digest=digest, reading="model", node=node)
    given = [plan.checkpoint, plan.calibration_file]
    if plan.evaluation is not None:
        asked = plan.evaluation
        given += [asked.include_path, asked.hellaswag_file, asked.text_file]
    for path in given:
        if path is not None and path in plan.inputs:
            yield Sent(path=path, digest=plan.inputs[path], reading="everything", node=node)


def _half(plan: Plan) -> Path:
    """Where the reference's logits come in; hidden, so that a sweep removes what a crash leaves."""
    place = Path(str(plan.reference_file))
    return place.with_name(f".{place.name}.part")


def _as_asked(record: RunRecord, plan: Plan) -> RunRecord:
    """The record with this node's paths, of which the other node may have had copies."""
    if record.plan is None:
        return record
    model = plan.model if plan.model.content_hash is not None else record.plan.model
    return replace(record, plan=replace(plan, model=model))
