"""Rows on this machine, one after the other, so that none disturbs another's figures."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module

from llmfit.device.detect import detect_cpu, detect_gpu
from llmfit.executors.base import OUT_OF_TIME, Executor, Limits, RowTask, Site, Watch
from llmfit.records import Environment, Hardware, Plan, RunRecord
from llmfit.row import fetched_for, not_run, run_row
from llmfit.runner.forkserver import ForkServer, ForkServers
from llmfit.runner.isolate import fork_server, probe_environment


class Local(Executor):
    """This machine. Processes of rows are forked from one that has imported the libraries."""

    def __init__(self, servers: ForkServers | None = None) -> None:
        """``servers`` outlive a comparison, so that several of them import once."""
        self._servers = servers

    @contextmanager
    def open(self, asked: Plan, *, device: str | None, measure: bool) -> Iterator[LocalSite]:
        """See ``Executor``."""
        with fork_server(asked, self._servers) if measure else nullcontext() as server:
            if server is not None and asked.evaluation is not None:
                import_module("scipy.stats")  # compares quality; the server imports meanwhile
            yield LocalSite(probe_environment(bandwidth=measure, server=server), server)


class LocalSite(Site):
    """This machine, probed."""

    def __init__(self, environment: Environment, server: ForkServer | None) -> None:
        """Rows' processes are forked from ``server``; without one each starts anew."""
        self.environment = environment
        self._server = server

    @property
    def hardware(self) -> tuple[Hardware | None, Hardware]:
        """See ``Site``."""
        return detect_gpu(), detect_cpu()

    def fetch(self, plans: Sequence[Plan]) -> list[Plan]:
        """See ``Site``."""
        return fetched_for(plans, self.environment)

    def run(
        self, tasks: Sequence[RowTask], *, limits: Limits, watch: Watch
    ) -> Generator[tuple[RowTask, RunRecord], None, None]:
        """See ``Site``."""
        for task in tasks:
            watch.started(task)
            if limits.reached():
                yield task, not_run(task.plan, self.environment, "skipped", OUT_OF_TIME)
                continue
            yield (
                task,
                run_row(
                    task.plan,
                    self.environment,
                    time_limit_s=limits.left_s(),
                    progress=partial(watch.progress, task),
                    log_path=task.log_path,
                    server=self._server,
                ),
            )
