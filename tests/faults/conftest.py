"""What several tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmfit.records import EvaluationSettings, Plan
from llmfit.runner.forkserver import ForkServer
from llmfit.runner.isolate import fork_server
from llmfit.testing import make_model


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer | None]:
    """Forks the rows' processes of a file's tests, so that imports are paid once."""
    scored = Plan(backend="bf16", model=make_model(), device="cpu", evaluation=EvaluationSettings())
    with fork_server(scored) as forking:
        yield forking
