"""Where and when: the default place, the machine's name, this moment. No database is imported."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime

PLACE_VARIABLE = "LLMFIT_STORE"
MACHINE_VARIABLE = "LLMFIT_MACHINE"


def default_place() -> str:
    """Where runs are stored unless told otherwise: ``LLMFIT_STORE``, or the user's data folder."""
    from platformdirs import user_data_path

    return os.environ.get(PLACE_VARIABLE) or str(user_data_path("llmfit") / "store.db")


def machine_name() -> str:
    """``LLMFIT_MACHINE``, or the host's name: what keeps several machines' series apart."""
    return os.environ.get(MACHINE_VARIABLE) or platform.node() or "unnamed"


def utc_now() -> str:
    """This moment, UTC, ISO 8601 with microseconds, so that text sorts as time does."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
