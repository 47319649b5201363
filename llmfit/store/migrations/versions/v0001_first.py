"""Sessions, runs, rows and figures, and triggers that keep them as they were written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TABLES = ("sessions", "session_ends", "runs", "conclusions", "rows", "figures")


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("config_hash", sa.String, nullable=False),
        sa.Column("machine", sa.String, nullable=False),
        sa.Column("started_at", sa.String, nullable=False),
        sa.Column("tag", sa.String),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "session_ends",
        sa.Column("session_id", sa.String, sa.ForeignKey("sessions.session_id"), primary_key=True),
        sa.Column("ended_at", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, sa.ForeignKey("sessions.session_id")),
        sa.Column("machine", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("started_at", sa.String, nullable=False),
        sa.Column("tag", sa.String),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("runs_by_model", "runs", ["model", "started_at"])
    op.create_index("runs_by_start", "runs", ["started_at"])
    op.create_table(
        "conclusions",
        sa.Column("run_id", sa.String, sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("ended_at", sa.String, nullable=False),
        sa.Column("pick", sa.String),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rows",
        sa.Column("row_id", _ID, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String, sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("backend", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("settings", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("started_at", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("run_id", "backend", name="one_row_a_backend"),
    )
    op.create_table(
        "figures",
        sa.Column("row_id", _ID, sa.ForeignKey("rows.row_id"), primary_key=True),
        sa.Column("metric", sa.String, primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("low", sa.Float),
        sa.Column("high", sa.Float),
        sa.Column("better", sa.String, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _guard_sqlite() -> None:
    for table in _TABLES:
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'what is stored is never changed'); END"
            )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION llmfit_never_changed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'what is stored is never changed'; END $$"
    )
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_never_changed BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION llmfit_never_changed()"
        )
