"""What a worker tells its parent: JSON lines over a pipe of their own.

Libraries print to stdout and stderr as they like; those go to a log file, never into this pipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from llmfit.records import Environment, RunRecord

Task = Literal["run", "environment", "bandwidth"]
"""What a worker does: a plan's row, or to describe the machine, with or without its bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How far the work is; ``total`` is 0 where that is not known."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One line of the pipe: exactly one of the fields is set."""

    stage: Stage | None = None
    record: RunRecord | None = None
    environment: Environment | None = None


def encode(message: Message) -> bytes:
    """A message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line, which a crash may have cut short.

    Raises msgspec.MsgspecError, UnicodeDecodeError or RecursionError for what is none.
    """
    return msgspec.json.decode(line, type=Message)
