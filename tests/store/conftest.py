"""A store of each kind: a SQLite file, and a real PostgreSQL server that the tests start."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmfit.store.store import Store


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a server of our own, whose databases are empty."""
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    folder = _programs()
    if folder is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    # Not pytest's folder: another user's server could not come by.
    data = Path(tempfile.mkdtemp(prefix="llmfit-postgresql-"))
    as_user = _not_as_root(data)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = [*as_user, str(folder / "pg_ctl"), "-D", str(data / "db"), "-w"]
    options = f"-k {data} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
    _run(*as_user, str(folder / "initdb"), "-D", str(data / "db"), "-A", "trust", "-U", "llmfit")
    _run(*server, "-l", str(data / "log"), "-o", options, "start")
    yield f"postgresql://llmfit@127.0.0.1:{port}"
    _run(*server, "-m", "immediate", "stop")
    shutil.rmtree(data)


def _programs() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    usable = [place for place in places if (place / "pg_ctl").exists()]
    return usable[-1] if usable else None


def _not_as_root(data: Path) -> list[str]:
    """PostgreSQL refuses to run as root: then as nobody, who gets the folder."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not here")
    shutil.chown(data, "nobody")
    return ["setpriv", "--reuid=nobody", "--clear-groups"]


def _run(*command: str) -> None:
    # Not through a pipe: the server would keep it open.
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, command


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store can be made, in each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    import psycopg

    server = request.getfixturevalue("postgresql")
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    return f"{server}/{name}"


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    """An empty store."""
    with Store(place) as opened:
        yield opened
