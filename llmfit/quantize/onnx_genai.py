"""ONNX for onnxruntime-genai: its own model builder, in a process of its own, through the cache.

model folder ─► python -m onnxruntime_genai.models.builder ─► model.onnx, its data, its config
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from llmfit.child import ending, environment
from llmfit.errors import QuantizationError
from llmfit.quantize.cache import Artifact, ArtifactCache

PRECISION = "int4"
_SHOWN_LINES = 3


def make_onnx(source: Path, cache: ArtifactCache, *, trust_remote_code: bool) -> Artifact:
    """The model ``source`` with 4-bit weights for onnxruntime's CPU kernels, made once and kept.

    Raises QuantizationError where the builder does not know the architecture or ends in an error,
    StoreError where the cache cannot be written.
    """

    def make(folder: Path) -> None:
        remote = "true" if trust_remote_code else "false"
        # What the builder keeps for itself goes with the folder when this process is killed.
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
            command = [
                sys.executable, "-m", "onnxruntime_genai.models.builder",
                "-i", str(source.resolve()), "-o", str(folder.resolve()), "-p", PRECISION,
                "-e", "cpu", "-c", scratch,
                "--extra_options", "hf_token=false", f"hf_remote={remote}",
            ]  # fmt: skip
            done = subprocess.run(
                command,
                cwd=scratch,
                env=environment(offline=True),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        if done.returncode != 0 or not (folder / "model.onnx").is_file():
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            raise QuantizationError(
                f"onnxruntime-genai's builder ended with {ending(done.returncode)} for {source}: "
                + " | ".join(lines[-_SHOWN_LINES:]),
                hint="--backends without onnx",
            )

    settings = {
        "precision": PRECISION,
        "provider": "cpu",
        "onnxruntime_genai": version("onnxruntime-genai"),
    }
    return cache.get_or_make("onnx", source, settings, make)
