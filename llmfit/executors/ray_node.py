"""A row on a node of a Ray cluster: what Ray's worker process there does.

    NodeJob as JSON ─► files at hand ─► row.run_row ─► stages, as they come
                                                   └► what it made, record

Ray's worker holds no model: it is to the row's process what llmfit's own is on one machine, so a
row that crashes, hangs or eats its memory ends by itself. Everything is a generator of tuples,
which Ray brings to the driver one by one:

    ("begun", node, its id)    ("stage", name, done, total)    ("log", bytes)
    ("reference", piece of the logits)    ("artifact", path, key)
    at the end one of    ("record", json)    ("refused", reason)
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmfit.device.detect import detect_cpu, detect_gpu
from llmfit.errors import LlmfitError
from llmfit.executors.ray_files import Sent, at_hand, bring, pieces
from llmfit.planning.comparing.differences import REFERENCE
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Environment, Hardware, Plan, RunRecord, from_json, to_json
from llmfit.row import not_run, run_row
from llmfit.runner.forkserver import ForkServer, ForkServers
from llmfit.runner.isolate import fork_server, probe_environment

Told = tuple[Any, ...]
_STAGE_S = 0.5
"""The least time between two messages of one stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJob:
    """A row for a node."""

    plan: Plan
    """With the driver's paths, hashed there."""
    files: tuple[Sent, ...]
    """What the row reads from the driver's disk."""
    driver: str
    """Ray's id of the driver's node."""
    reference_ready: bool
    """The driver's node has the reference's logits."""
    artifact: Sent | None = None
    """The row's quantised artifact in another node's cache; its digest is the key."""
    kind: str
    time_limit_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node, as rows see it."""

    environment: Environment
    gpu: Hardware | None
    cpu: Hardware


def facts_of_node(text: str, measure: bool, kind: str) -> tuple[str, str]:
    """llmfit's version on this node, and its ``NodeFacts`` as JSON.

    ``text`` is a plan like those that are to come, as JSON.
    """
    _usual_priority()
    with fork_server(from_json(Plan, text), _servers()) as server:
        environment = _environment(measure, kind, server)
    found = NodeFacts(environment=environment, gpu=detect_gpu(), cpu=detect_cpu())
    return version("llmfit"), to_json(found)


def row_on_node(driver_version: str, text: str) -> Iterator[Told]:
    """Make the row of a ``NodeJob``, and tell how it goes."""
    if driver_version != version("llmfit"):
        yield ("refused", f"its node has llmfit {version('llmfit')}, the driver {driver_version}")
        return
    job = from_json(NodeJob, text)
    yield ("begun", _node(), _node_id())
    store = ArtifactCache(Path(job.plan.cache_dir) if job.plan.cache_dir else None)
    try:
        with store.scratch("row", 0) as folder:
            yield from _row(job, store, folder)
    except LlmfitError as exc:
        yield ("refused", str(exc))


def _row(job: NodeJob, store: ArtifactCache, folder: Path) -> Iterator[Told]:
    """The row, with its log and what else it needs for a moment in ``folder``."""
    yield ("stage", "find files", 0, 0)
    plan, notes = _with_files(job, store, folder)
    notes = (*notes, *_usual_priority())
    log = folder / "row.log"
    with fork_server(plan, _servers()) as server:
        machine = _environment(True, job.kind, server)
        if plan.device == "cuda" and machine.gpu is None:
            reason = f"torch sees no CUDA device on the node {machine.node}"
            record = not_run(plan, machine, "unavailable", reason)
        else:
            run = partial(
                run_row, plan, machine, time_limit_s=job.time_limit_s, log_path=log, server=server
            )
            record = yield from _followed(run)
    if log.exists():
        yield ("log", log.read_bytes())
    if job.plan.backend == REFERENCE and plan.reference_file not in (None, job.plan.reference_file):
        made = Path(str(plan.reference_file))
        if made.is_file():
            yield from (("reference", piece) for _, piece in pieces(str(made), True))
    key = None if record.artifact is None else store.key_of(Path(record.artifact))
    if key is not None:
        yield ("artifact", str(store.root / key), key)
    yield ("record", to_json(replace(record, notes=(*record.notes, *notes))))


def _followed(run: Callable[..., RunRecord]) -> Generator[Told, None, RunRecord]:
    """Call ``run(progress=…)`` in a thread, hand on its stages, and return its record."""
    said: queue.SimpleQueue[Told | RunRecord | BaseException] = queue.SimpleQueue()
    last = ("", 0.0)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= _STAGE_S:
            last = (stage, now)
            said.put(("stage", stage, done, total))

    def work() -> None:
        try:
            said.put(run(progress=progress))
        except BaseException as exc:  # noqa: BLE001 - raised below, in the thread that Ray follows
            said.put(exc)

    threading.Thread(target=work, daemon=True, name="row").start()
    while isinstance(each := said.get(), tuple):
        yield each
    if isinstance(each, BaseException):
        raise each
    return each


def _with_files(job: NodeJob, store: ArtifactCache, folder: Path) -> tuple[Plan, tuple[str, ...]]:
    """The plan with this node's paths, and what its record is to say of them."""
    here = {sent.path: str(at_hand(sent, store)) for sent in job.files}
    notes: tuple[str, ...] = ()
    if job.artifact is not None:
        notes = _adopt(job.artifact, store)
    plan = job.plan
    evaluation = plan.evaluation
    if evaluation is not None:
        evaluation = replace(
            evaluation,
            include_path=_moved(evaluation.include_path, here),
            hellaswag_file=_moved(evaluation.hellaswag_file, here),
            text_file=_moved(evaluation.text_file, here),
        )
    return (
        replace(
            plan,
            model=replace(plan.model, path=here.get(plan.model.path, plan.model.path)),
            checkpoint=_moved(plan.checkpoint, here),
            calibration_file=_moved(plan.calibration_file, here),
            evaluation=evaluation,
            reference_file=_reference(job, folder),
        ),
        notes,
    )


def _moved(path: str | None, here: dict[str, str]) -> str | None:
    return None if path is None else here.get(path, path)


def _reference(job: NodeJob, folder: Path) -> str | None:
    """Where the reference's logits are, or are to be written; the driver's place if it is seen."""
    place = job.plan.reference_file
    if place is None or Path(place).parent.is_dir():
        return place
    mine = folder / "reference-logits.bin"
    if job.reference_ready:
        bring(job.driver, place, mine)
    return str(mine)


def _adopt(artifact: Sent, store: ArtifactCache) -> tuple[str, ...]:
    """Have another node's artifact here; where that fails the row makes its own, and says so."""
    if (store.root / artifact.digest).exists():
        return ()
    try:
        store.adopt(artifact.digest, lambda folder: bring(artifact.node, artifact.path, folder))
    except LlmfitError as exc:
        return (f"the artifact of another node could not be had, so it was made again: {exc}",)
    return ()


def _usual_priority() -> tuple[str, ...]:
    """Give rows the priority of other programs, which Ray takes from its workers; else a note."""
    if os.getpriority(os.PRIO_PROCESS, 0) <= 0:
        return ()
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # of this thread, and of what it starts from now on
    except PermissionError:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        return (
            f"ran at priority {nice} below other programs (RAY_worker_niceness=0 for `ray start` "
            "gives the usual one)",
        )
    return ()


@cache
def _servers() -> ForkServers:
    """What this worker process of Ray's forks rows from; it ends with the process."""
    return ForkServers()


_FOUND: dict[tuple[bool, str], Environment] = {}
"""This node by whether its bandwidth was measured, and by its kind."""


def _environment(measure: bool, kind: str, server: ForkServer | None) -> Environment:
    """This node; its bandwidth is measured once in a worker process of Ray's."""
    if (measure, kind) not in _FOUND:
        found = probe_environment(bandwidth=measure, server=server)
        _FOUND[measure, kind] = replace(found, node=_node(), kind=kind)
    return _FOUND[measure, kind]


def _node() -> str:
    """This node's address and the beginning of its id: several may be on one machine."""
    import ray

    return f"{ray.util.get_node_ip_address()} ({_node_id()[:8]})"


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
