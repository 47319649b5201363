"""Alembic's entry: migrate over the connection that ``migrate.py`` hands in."""

from __future__ import annotations

from alembic import context

from llmfit.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
