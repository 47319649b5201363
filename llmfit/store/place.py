"""Where and when: the default place, the machine's name, this moment. No database is imported."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime

from llmfit.errors import UsageError
from llmfit.network import is_offline
from llmfit.redaction import without_passwords

PLACE_VARIABLE = "LLMFIT_STORE"
MACHINE_VARIABLE = "LLMFIT_MACHINE"


def default_place() -> str:
    """Where runs are stored unless told otherwise: ``LLMFIT_STORE``, or the user's data folder."""
    from platformdirs import user_data_path

    return os.environ.get(PLACE_VARIABLE) or str(user_data_path("llmfit") / "store.db")


def check_reachable(place: str | None) -> None:
    """Raise UsageError for a store on a network where none is to be used.

    ``place`` of None is the default one. No connection is made.
    """
    told = default_place() if place is None else place
    if is_offline() and "://" in told and not told.startswith("sqlite:"):
        raise UsageError(
            f"--offline uses no network, which the store {without_passwords(told)} is on.",
            hint="--store FILE, or without --offline",
        )


def machine_name() -> str:
    """``LLMFIT_MACHINE``, or the host's name: what keeps several machines' series apart."""
    return os.environ.get(MACHINE_VARIABLE) or platform.node() or "unnamed"


def utc_now() -> str:
    """This moment, UTC, ISO 8601 with microseconds, so that text sorts as time does."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
