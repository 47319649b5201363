"""Alembic's environment: ``versions/`` takes the tables from one version to the next."""
