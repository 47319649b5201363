"""Running servers, measured from outside."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table, with the guards of the first ones."""
    op.create_table(
        "servers",
        sa.Column("benchmark_id", sa.String, primary_key=True),
        sa.Column("machine", sa.String, nullable=False),
        sa.Column("model", sa.String),
        sa.Column("served_model", sa.String, nullable=False),
        sa.Column("backend", sa.String),
        sa.Column("started_at", sa.String, nullable=False),
        sa.Column("tag", sa.String),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("servers_by_start", "servers", ["started_at"])
    if op.get_bind().dialect.name == "sqlite":
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER servers_no_{act.lower()} BEFORE {act} ON servers "
                "BEGIN SELECT RAISE(ABORT, 'what is stored is never changed'); END"
            )
    else:
        op.execute(
            "CREATE TRIGGER servers_never_changed BEFORE UPDATE OR DELETE ON servers "
            "FOR EACH ROW EXECUTE FUNCTION llmfit_never_changed()"
        )
