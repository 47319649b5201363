"""The store's tables. Rows are added and never changed: triggers refuse anything else.

    sessions ─┬─► session_ends           one nightly run, from a file of settings
              └─► runs ─┬─► conclusions  one comparison; how it ended, when it did
                        └─► rows ─► figures   one format; its record whole, and its figures apart
    servers                              one running server, measured from outside

A ``body`` is a record's JSON, compressed by zlib: figures are apart so that ten thousand rows can
be looked through without reading their bodies. ``migrations/`` makes these tables.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

_ID = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts up by itself there

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("config_hash", String, nullable=False),
    Column("machine", String, nullable=False),
    Column("started_at", String, nullable=False),
    Column("tag", String),
    Column("body", LargeBinary, nullable=False),
)

session_ends = Table(
    "session_ends",
    metadata,
    Column("session_id", String, ForeignKey("sessions.session_id"), primary_key=True),
    Column("ended_at", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id")),
    Column("machine", String, nullable=False),
    Column("model", String, nullable=False),
    Column("started_at", String, nullable=False),
    Column("tag", String),
    Column("body", LargeBinary, nullable=False),
    Index("runs_by_model", "model", "started_at"),
    Index("runs_by_start", "started_at"),
)

conclusions = Table(
    "conclusions",
    metadata,
    Column("run_id", String, ForeignKey("runs.run_id"), primary_key=True),
    Column("ended_at", String, nullable=False),
    Column("pick", String),
    Column("body", LargeBinary, nullable=False),
)

rows = Table(
    "rows",
    metadata,
    Column("row_id", _ID, primary_key=True, autoincrement=True),
    Column("run_id", String, ForeignKey("runs.run_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("backend", String, nullable=False),
    Column("label", String, nullable=False),
    Column("settings", String, nullable=False),
    Column("status", String, nullable=False),
    Column("reason", Text),
    Column("started_at", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "backend", name="one_row_a_backend"),
)

figures = Table(
    "figures",
    metadata,
    Column("row_id", _ID, ForeignKey("rows.row_id"), primary_key=True),
    Column("metric", String, primary_key=True),
    Column("value", Float, nullable=False),
    Column("low", Float),
    Column("high", Float),
    Column("better", String, nullable=False),
)

servers = Table(
    "servers",
    metadata,
    Column("benchmark_id", String, primary_key=True),
    Column("machine", String, nullable=False),
    Column("model", String),
    Column("served_model", String, nullable=False),
    Column("backend", String),
    Column("started_at", String, nullable=False),
    Column("tag", String),
    Column("body", LargeBinary, nullable=False),
    Index("servers_by_start", "started_at"),
)

TABLES = (sessions, session_ends, runs, conclusions, rows, figures, servers)


def is_model(name: str) -> ColumnElement[bool]:
    """Of runs: those of the model of that name, as it was given, or its last part."""
    return (runs.c.model == name) | runs.c.model.endswith(f"/{name}", autoescape=True)
