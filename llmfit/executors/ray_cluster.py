"""A Ray cluster as a place for rows: its connection, its kinds of nodes, and one of them opened.

    RayCluster: connect ─► Fleet(kind).open ─► nodes of one kind, one of them probed ─► RaySite

All rows of a comparison run on one kind of node: figures of two kinds do not compare.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from types import TracebackType

from llmfit.child import variables
from llmfit.errors import BackendUnavailable, UsageError, first_line
from llmfit.executors.base import Executor
from llmfit.executors.ray_node import NodeFacts, facts_of_node
from llmfit.executors.ray_pool import CPU, Node, Pool, kind_resource, living_nodes
from llmfit.executors.ray_site import Artifacts, RaySite
from llmfit.network import NO_TELEMETRY, is_offline
from llmfit.records import Plan, from_json, to_json

_HOW_TO_JOIN = (
    "ray status --address HOST:PORT; RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN where it "
    "has one"
)
_PROBE_LIMIT_S = 300
"""For a node to become free, import and measure its bandwidth."""
_LOOK_S = 2.0
"""Between two looks at whether there is a node at all."""


class RayCluster:
    """A connection to a Ray cluster, or a Ray of its own on this machine; a context manager.

    One at a time in a process, as Ray has it.
    """

    def __init__(self, address: str | None = None) -> None:
        """``address`` is HOST:PORT of the cluster's head; None is RAY_ADDRESS, else a new Ray here.

        Raises BackendUnavailable where Ray is not installed, and UsageError for a client's address
        and for any where no network is to be used.
        """
        self.address = address or os.environ.get("RAY_ADDRESS")
        if find_spec("ray") is None:
            raise BackendUnavailable(
                "--executor ray needs Ray, which is not installed.",
                hint="pip install 'llmfit[ray]'",
            )
        if self.address is not None and self.address.startswith("ray://"):
            raise UsageError(
                f"{self.address} is a Ray client's address, which carries no files between nodes.",
                hint="run llmfit on a node of the cluster, with --ray-address auto",
            )
        if is_offline() and self.address is not None:
            raise UsageError(
                f"--offline uses no network, which the Ray cluster {self.address} is on.",
                hint="--executor ray alone, for a Ray of its own, or without --offline",
            )
        self.artifacts = Artifacts()
        self.interrupted = threading.Event()
        """Set, it has comparisons of every thread end as by Ctrl-C."""
        self._undo = ExitStack()

    def __enter__(self) -> RayCluster:
        """Connect. Raises UsageError where no cluster answers."""
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with ExitStack() as undo:
            undo.enter_context(variables(NO_TELEMETRY | (_own_ray() if self._is_own else {})))
            import ray  # which reads some of them

            try:
                if self._is_own:
                    own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
                    ray.init("local", **own, **quiet)
                else:
                    ray.init(self.address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as exc:
                place = self.address or "this machine"
                raise UsageError(
                    f"no Ray cluster answers at {place}: {first_line(exc)}.", hint=_HOW_TO_JOIN
                ) from exc
            finally:
                if threading.current_thread() is threading.main_thread():
                    for number, handler in ours.items():  # Ray takes SIGTERM for itself
                        signal.signal(number, handler)
            undo.callback(ray.shutdown)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect; a Ray of its own ends."""
        self._undo.close()

    @property
    def _is_own(self) -> bool:
        return self.address is None


def _own_ray() -> dict[str, str]:
    """Variables for a Ray of llmfit's own: nobody else uses it, and nothing is left of it.

    A secret of its own lets nobody else on the machine in, and is written nowhere; Ray asks for it
    by itself unless RAY_AUTH_MODE says otherwise. Rows are watched by llmfit itself, which tells a
    row's memory from the machine's, as Ray does not.
    """
    return {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
    }


class Fleet(Executor):
    """The nodes of one kind of a cluster."""

    def __init__(self, cluster: RayCluster, kind: str | None = None) -> None:
        """``kind`` is a GPU's name in the cluster, or cpu; None: the only kind that there is."""
        self._cluster = cluster
        self._kind = kind

    def machine_name(self, name: str) -> str:
        """A series of figures is of one kind, on whichever node."""
        return f"{name}/{self._kind or 'ray'}"

    @contextmanager
    def open(self, asked: Plan, *, device: str | None, measure: bool) -> Iterator[RaySite]:
        """See ``Executor``."""
        kind = self._settled(device)
        pool = Pool(kind=kind, gpus=0 if CPU in (kind, device) else asked.gpus)
        facts = _probed(pool, asked, measure)
        if pool.gpus and facts.environment.gpu is None:
            raise UsageError(
                f"torch sees no CUDA device on the node {facts.environment.node} of kind {kind}.",
                hint="--device cpu for rows on its processors",
            )
        yield RaySite(pool, facts, self._cluster.artifacts, self._cluster.interrupted)

    def _settled(self, device: str | None) -> str:
        """The kind to run on. Raises UsageError where it is not there, or not the only one."""
        nodes = living_nodes()
        known = {kind.casefold(): kind for node in nodes for kind in node.kinds}
        told = ", ".join(sorted(known.values())) or "none"
        if not nodes:
            raise UsageError("the Ray cluster has no node with processors.", hint="ray status")
        if self._kind is not None and self._kind.casefold() == CPU:
            return CPU
        if self._kind is not None:
            if self._kind.casefold() not in known:
                raise UsageError(
                    f"the Ray cluster has no node of kind {self._kind}; its kinds are: {told}.",
                    hint="--gpu-kind cpu for nodes of any kind, on their processors",
                )
            return known[self._kind.casefold()]
        with_gpu = {kind for node in nodes if node.gpus > 0 for kind in node.kinds}
        if device == "cpu" or not with_gpu:
            return CPU
        if len(with_gpu) > 1:
            raise UsageError(
                f"the Ray cluster has GPUs of several kinds ({told}), and rows of different kinds "
                "do not compare.",
                hint=f"--gpu-kind {min(with_gpu)}",
            )
        return with_gpu.pop()


def _probed(pool: Pool, asked: Plan, measure: bool) -> NodeFacts:
    """The facts of one node of the pool. Raises UsageError where none can be told."""
    import ray
    from ray.exceptions import RayError

    nodes = _nodes(pool)
    told = (
        ray.remote(facts_of_node)
        .options(
            num_cpus=nodes[0].cpus,
            num_gpus=pool.gpus,
            resources=kind_resource(pool.kind),
            max_retries=1,
        )
        .remote(to_json(asked), measure, pool.kind)
    )
    deadline = time.monotonic() + _PROBE_LIMIT_S
    try:
        while not ray.wait([told], timeout=_LOOK_S)[0]:
            _nodes(pool)
            if time.monotonic() > deadline:
                raise UsageError(
                    f"no node of kind {pool.kind} was free within {_PROBE_LIMIT_S} s.",
                    hint="ray status, which tells what they are busy with",
                )
    except BaseException:
        ray.cancel(told, force=True)  # one that has ended must not be: Ray 2.60 aborts over it
        raise
    try:
        there, text = ray.get(told)
    except RayError as exc:
        raise UsageError(
            f"no node of kind {pool.kind} tells what it is: {first_line(exc)}",
            hint="ray status, and llmfit backends on that node",
        ) from exc
    if there != version("llmfit"):
        raise UsageError(
            f"the Ray cluster's nodes have llmfit {there}, this one {version('llmfit')}.",
            hint=f"pip install llmfit=={version('llmfit')} on every node",
        )
    return from_json(NodeFacts, text)


def _nodes(pool: Pool) -> list[Node]:
    """The pool's nodes. Raises UsageError where there is none."""
    nodes = pool.nodes()
    if not nodes:
        number = f" with {pool.gpus} GPUs" if pool.gpus else ""
        raise UsageError(
            f"the Ray cluster has no node of kind {pool.kind}{number}.", hint="ray status"
        )
    return nodes
