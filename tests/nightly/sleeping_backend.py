"""A backend of another package, as fast as it is told: an entry point in a folder on the path."""

from __future__ import annotations

from pathlib import Path

_MODULE = '''
"""Steps that last as long as SLOWPOKE_S says; SLOWPOKE_FAILS names a reason to fail."""
import os
import time

from llmfit.backends.base import Progress, no_progress
from llmfit.errors import ModelLoadError
from llmfit.testing import FakeBackend, FakeDecoder, FakeModel


class SlowDecoder(FakeDecoder):
    def step(self):
        time.sleep(float(os.environ.get("SLOWPOKE_S", "0.005")))
        super().step()


class SlowModel(FakeModel):
    def decoder(self, *, batch, capacity, prefill_chunk=None):
        return SlowDecoder(batch, capacity, self.vocab_size)


class Slowpoke(FakeBackend):
    id = "slowpoke"
    label = "Slowpoke"

    def load(self, plan, progress=no_progress):
        if os.environ.get("SLOWPOKE_FAILS"):
            raise ModelLoadError(os.environ["SLOWPOKE_FAILS"])
        return SlowModel()


class Slowpoke2(Slowpoke):
    id = "slowpoke2"
    label = "Slowpoke 2"
'''


def install(folder: Path, *, version: str = "1.0") -> Path:
    """Make the package in ``folder``, in place of another version of it, and return ``folder``."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("slowpoke-*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    (folder / "slowpoke.py").write_text(_MODULE)
    about = folder / f"slowpoke-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: slowpoke\nVersion: {version}\n")
    points = "[llmfit.backends]\nslowpoke = slowpoke:Slowpoke\nslowpoke2 = slowpoke:Slowpoke2\n"
    (about / "entry_points.txt").write_text(points)
    return folder
