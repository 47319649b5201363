"""A place to an engine: SQLite with a write-ahead log, or PostgreSQL, at the newest version.

"runs.db" | "postgresql://user@host/db" ─► Engine ─► tables there? ─► migrated
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import StaticPool

from llmfit.errors import StoreError, UsageError, first_line
from llmfit.files import expanded
from llmfit.redaction import without_passwords
from llmfit.store.place import check_reachable

VERSION = "0002"
"""Newest version of the tables: the revision of the last file in ``migrations/versions``."""
_BUSY_S = 60
"""How long a writer waits for another one."""
_MIGRATION_LOCK = 5_206_134_977
"""Any number of our own: PostgreSQL's advisory lock while tables are made."""
_WRITES = "llmfit_writes"


def url_of(place: str | Path) -> URL:
    """The database's address. Raises UsageError for one that is neither a file nor PostgreSQL."""
    text_ = str(place)
    if "://" not in text_:
        return URL.create("sqlite", database=str(expanded(text_).absolute()))
    try:
        url = make_url(text_)
    except (ArgumentError, ValueError) as exc:  # ValueError: a port that is no number
        raise UsageError(
            "the store's address cannot be read.", hint="postgresql://user@host/database"
        ) from exc
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise UsageError(
            f"a store is a file or PostgreSQL, not {url.get_backend_name()}.",
            hint="--store PATH or --store postgresql://user@host/database",
        )
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() != "sqlite" else url


def shown(url: URL) -> str:
    """The address without its password; of a file its path."""
    if _is_sqlite(url):
        return str(url.database)
    return without_passwords(url.render_as_string(hide_password=True))


def connect(place: str | Path, *, to_read: bool = False) -> Engine:
    """An engine on tables of this version. Raises UsageError and StoreError.

    One ``to_read`` makes no file: of one that is not there the tables are empty, and one that
    cannot be written is read as it is.
    """
    url = url_of(place)
    check_reachable(str(place))
    fixed = False
    if _is_sqlite(url) and not to_read:
        _make_folder(url)
    elif _is_sqlite(url):
        file = Path(str(url.database))
        fixed = file.exists() and not _writable(file)
        if not file.exists():
            url = URL.create("sqlite")
        elif fixed:
            url = _as_it_is(url)
    try:
        engine = create_engine(url, **_pool(url))
    except ModuleNotFoundError as exc:
        raise StoreError(
            f"{shown(url)} needs the package psycopg.", hint='pip install "llmfit[postgresql]"'
        ) from exc
    if _is_sqlite(url):
        _listen(engine, fixed=fixed)
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _pool(url: URL) -> dict[str, Any]:
    if not _is_sqlite(url):
        return {"pool_pre_ping": True}
    return {} if url.database else {"poolclass": StaticPool}  # in memory: one connection for all


def _writable(file: Path) -> bool:
    """Whether SQLite can write the file and, beside it, its log."""
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


def _as_it_is(url: URL) -> URL:
    """The file opened for reading. Source: SQLite, URI filenames.

    Without a log beside it nobody is writing, and none has to be made.
    """
    query = {"mode": "ro", "uri": "true"}
    if not Path(f"{url.database}-wal").exists():
        query["immutable"] = "1"
    return url.set(database=f"file:{quote(str(url.database))}", query=query)


def _make_folder(url: URL) -> None:
    folder = Path(str(url.database)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"cannot make the store's folder {folder}: {exc.strerror}.", hint="--store PATH"
        ) from exc


def _listen(engine: Engine, *, fixed: bool) -> None:
    @event.listens_for(engine, "connect")
    def _settings(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined] # BEGIN is ours, below
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_S}")
        if not fixed:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer that began as a reader could not wait for another writer: it would fail.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is there as a whole, or not at all. Raises StoreError."""
    with (
        translated(engine),
        engine.connect().execution_options(**{_WRITES: True}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the store. Raises StoreError."""
    with translated(engine), engine.connect() as connection:
        yield connection


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """The database's errors as StoreError, in one line and without the statement's values."""
    try:
        yield
    except DBAPIError as exc:
        cause = exc if exc.orig is None else exc.orig
        raise StoreError(
            f"the store {shown(engine.url)}: {first_line(cause)}",
            hint="another place by --store, or the same again when it can be reached",
        ) from exc


def _migrate(engine: Engine) -> None:
    with reading(engine) as connection:
        version = _version(connection)
    if version == VERSION:
        return
    with writing(engine) as connection:
        if not _is_sqlite(engine.url):
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MIGRATION_LOCK})
        _upgrade(connection, shown(engine.url))


def _version(connection: Connection) -> str | None:
    """The tables' version; None for an empty database. One query where there are tables."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection, name: str) -> None:
    """Bring the tables to ``VERSION``; a newer version than that is refused, nothing is changed."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    known = {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}
    version = _version(connection)
    if version is not None and version not in known:
        raise StoreError(
            f"the store {name} is of version {version}, which this llmfit does not know.",
            hint='pip install --upgrade "llmfit"',
        )
    command.upgrade(config, "head")
