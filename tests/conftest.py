"""Fixtures shared by all tests: real small models, and the optional folder of reference data."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmfit.executors.local import Local
from llmfit.models import data_path, resolve
from llmfit.records import ModelSpec
from llmfit.runner.forkserver import ForkServer, ForkServers

REPOSITORY = Path(__file__).resolve().parents[1]


ENVIRONMENT = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the suite off the network and to two threads, whatever the machine is."""
    # A shell starts what it runs in the background with Ctrl-C ignored, which processes inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    # Threads that wait would else take the core from the tests of the other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # What a test stores is not the user's; a test that looks there takes a place of its own.
    folder = Path(tempfile.mkdtemp(prefix="llmfit-test-store-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["LLMFIT_STORE"] = str(folder / "store.db")
    config.stash[ENVIRONMENT] = dict(os.environ)


@pytest.fixture(autouse=True)
def _environment_of_the_suite(pytestconfig: pytest.Config) -> None:
    """Every test starts with the environment of the first: importing gptqmodel moves HF_HOME."""
    present = os.environ.get("PYTEST_CURRENT_TEST")
    os.environ.clear()
    os.environ.update(pytestconfig.stash[ENVIRONMENT])
    if present is not None:
        os.environ["PYTEST_CURRENT_TEST"] = present


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--network`` runs what downloads from a package index or a hub."""
    parser.addoption("--network", action="store_true", help="run the tests that need a network")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the network alone unless it is asked for."""
    if config.getoption("--network"):
        return
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.skip(reason="needs --network"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Third-party reference data in a folder beside the checkout; not part of the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the reference data folder ../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> ModelSpec:
    """A real trained model of 260,032 parameters with layers of width 64 and 172."""
    return resolve(str(shared_data / "stories260k"))


@pytest.fixture(scope="session")
def embedded() -> ModelSpec:
    """The model inside the package."""
    return resolve(None)


@pytest.fixture(scope="session")
def embedded_text() -> str:
    """The embedded perplexity text."""
    return data_path("text.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def artifact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the whole run and all its processes: each artifact is made once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the user's cache and data folders into the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


class _Warm(ForkServers):
    """A server for all tests: which of them runs is not for workers to know."""

    def server(self, environment: dict[str, str], *, scoring: bool) -> ForkServer:
        """See ``ForkServers``."""
        known = {name: environment[name] for name in environment if name != "PYTEST_CURRENT_TEST"}
        return super().server(known, scoring=True)


@pytest.fixture(scope="module")
def warm() -> Iterator[Local]:
    """This machine, the libraries imported once for all comparisons of a module's tests."""
    with _Warm() as servers:
        yield Local(servers)


@pytest.fixture(scope="module")
def imported_once(warm: Local) -> Iterator[None]:
    """Comparisons and reproductions that are given no executor run there, too."""
    import llmfit.comparison
    import llmfit.reproduction

    with pytest.MonkeyPatch.context() as patch:
        for module in (llmfit.comparison, llmfit.reproduction):
            patch.setattr(module, "Local", lambda: warm)
        yield
