"""The network: what no process of ours tells anyone, and what none asks for within ``offline()``.

    NO_TELEMETRY ─► environment of every process that is started
    with offline(): ─► OFFLINE ─► the same; the hub is not asked, stores and trackers on hosts are
                                  refused

Besides the hub, a store, a tracker and the webhook that a user names, nothing is reached anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",  # it takes no "true"
    "WANDB_ERROR_REPORTING": "false",
}
"""Keeps libraries from telling their makers of their use."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Keeps the hub's clients to what they have downloaded; they read it when they are imported."""

_offline: ContextVar[bool] = ContextVar("offline", default=False)


@contextmanager
def offline(asked: bool = True) -> Iterator[None]:
    """Within it nothing that llmfit does uses the network; what is downloaded already serves.

    >>> with llmfit.offline():
    ...     llmfit.compare("org/model")

    With ``asked`` False it changes nothing.
    """
    before = _offline.set(asked or is_offline())
    try:
        yield
    finally:
        _offline.reset(before)


def is_offline() -> bool:
    """True within ``offline()``."""
    return _offline.get()
