"""A real cluster for the tests of a module, and a row that lasts as long as a test needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "nightly"))

from ray_nodes import AUTH, RayNodes
from sleeping_backend import install


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head; its nodes know the row ``slowpoke``."""
    if find_spec("ray") is None:  # not imported: it reads its secret's variables when it is
        pytest.skip("ray is not installed")
    package = install(tmp_path_factory.mktemp("slowpoke") / "package")
    with RayNodes(python_path=package) as started:
        yield started


@pytest.fixture
def slowpoke(nodes: RayNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process knows that row, too, and may join the cluster."""
    monkeypatch.syspath_prepend(str(nodes.python_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(nodes.python_path), *sys.path[1:2]]))
    for name, value in AUTH.items():
        monkeypatch.setenv(name, value)
