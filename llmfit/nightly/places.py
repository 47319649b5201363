"""Where a night's comparisons run: this machine, or a Ray cluster's nodes kind by kind.

    NightlyConfig ─► Places, one a kind ─► all at once, the comparisons of each in turn

Nodes of one kind have nothing to wait for from those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeVar

from llmfit.executors.base import Executor
from llmfit.executors.local import Local
from llmfit.nightly.config import NightlyConfig
from llmfit.runner.forkserver import ForkServers

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The places of a night by the kind of node; None is the kind of a night that names none."""

    executors: Mapping[str | None, Executor]
    interrupt: Callable[[], None]
    """Has every comparison of another thread end as by Ctrl-C."""

    def machine_name(self, name: str, kind: str | None) -> str:
        """What the figures of a kind are filed under, on a machine called ``name``."""
        return self.executors[kind].machine_name(name)

    def each(self, work: Callable[[str | None], T]) -> dict[str | None, T]:
        """``work`` of every kind, at once; here where there is one kind alone.

        Raises what ``work`` does; an interrupt stops all of them first.
        """
        if len(self.executors) == 1:
            return {kind: work(kind) for kind in self.executors}
        with ThreadPoolExecutor(len(self.executors)) as threads:
            started = {
                kind: threads.submit(copy_context().run, work, kind) for kind in self.executors
            }
            try:
                wait(started.values())
            except KeyboardInterrupt:
                self.interrupt()
                raise
            return {kind: future.result() for kind, future in started.items()}


@contextmanager
def places(config: NightlyConfig) -> Iterator[Places]:
    """The places of a night. Raises UsageError where its cluster is not to be had."""
    if config.executor == "local":
        with ForkServers() as servers:
            yield Places(executors={None: Local(servers)}, interrupt=_nothing)
        return
    from llmfit.executors.ray_cluster import Fleet, RayCluster

    with RayCluster(config.ray_address) as cluster:
        kinds: tuple[str | None, ...] = config.gpu_kinds or (None,)
        yield Places(
            executors={kind: Fleet(cluster, kind) for kind in kinds},
            interrupt=cluster.interrupted.set,
        )


def _nothing() -> None:
    """A night on one machine is in the thread that is interrupted."""
