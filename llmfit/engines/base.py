"""What an engine is to the rest: the formats that it serves, and the words that start it.

An engine is one file with one subclass of ``Engine`` and one line in ``registry``. Nothing of it
is imported: its own program is started.
"""

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmfit.errors import UsageError
from llmfit.records import Device

Kind = Literal["folder", "gguf"]
"""What an engine loads: a folder as transformers writes it, or one GGUF file."""


Setting = Literal["context", "name", "threads"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One model in one format, as it is to be served."""

    name: str
    """What requests call it."""
    backend: str
    """llmfit's format, e.g. ``awq`` or ``gguf:q3_k_m``."""
    path: str
    """The folder or GGUF file."""
    device: Device
    context: int
    """Tokens of prompt and answer together."""
    threads: int | None = None
    gpu_share: float | None = None
    """Of the GPU's memory, 0…1; None where the engine is to take what it takes."""
    host: str = "127.0.0.1"
    port: int = 8000
    trust_remote_code: bool = False


class Engine(ABC):
    """A server of others."""

    id: str
    label: str
    kind: Kind
    formats: tuple[str, ...]
    """Backends, without their variants, whose files it loads."""
    devices: frozenset[Device] = frozenset({"cpu", "cuda"})
    serves: bool = True
    """False where its command makes the model known to a daemon of its own."""
    takes: frozenset[Setting] = frozenset({"context", "name"})
    """What can be asked of it; anything else is refused, for it would do nothing."""
    install: str
    """The command that installs it."""

    def require_format(self, backend: str) -> None:
        """Raise UsageError for a format that it does not serve."""
        if backend.partition(":")[0] not in self.formats:
            raise UsageError(
                f"{self.label} serves no {backend}; it serves {', '.join(self.formats)}.",
                hint=f"--backend {self.formats[0]}, or another --engine",
            )

    def require_setting(self, setting: Setting, value: object) -> None:
        """Raise UsageError for a ``value`` that is asked for (not None) and would do nothing."""
        if value is not None and setting not in self.takes:
            raise UsageError(
                f"{self.label} takes no {setting}, and {value!r} is asked for.",
                hint=f"without --{setting}, or another --engine",
            )

    @abstractmethod
    def missing(self) -> str | None:
        """What is not installed here; None where it can be started."""

    @abstractmethod
    def command(self, served: Served) -> tuple[str, ...]:
        """The words that start it, wherever it is installed."""

    def command_here(self, served: Served) -> tuple[str, ...]:
        """The words that start it in this environment, which need not be on the PATH."""
        return self.command(served)

    def asked_as(self, served: Served) -> str:
        """The name by which requests have to ask for the model."""
        return served.name

    def notes(self, served: Served) -> tuple[str, ...]:
        """What it does otherwise than llmfit's row of that format."""
        return ()

    def settings(self, served: Served) -> dict[str, str]:
        """Other files that it reads, by their names; paths in them are beside them."""
        return {}


def script(name: str) -> str:
    """A program of this Python environment by its path, or by its name where it is not there."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else name


def program_missing(name: str) -> str | None:
    """``name`` where that program is neither in this environment nor on the PATH."""
    return None if shutil.which(script(name)) else name
