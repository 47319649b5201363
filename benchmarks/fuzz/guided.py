"""Coverage-guided cases by atheris, where it is installed: it keeps what reaches new lines.

    python -m benchmarks.fuzz.guided TARGET [-runs=N] [-seed=N] [-max_total_time=SECONDS] …

Everything after the target's name is libFuzzer's. A find ends the run and leaves its case in the
current folder. The limits of a case are those of ``watch``; only llmfit's own code is measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llmfit"]):
    import llmfit.backends._packed
    import llmfit.foreign.files
    import llmfit.foreign.json
    import llmfit.models
    import llmfit.nightly.config
    import llmfit.planner
    import llmfit.quantize.gguf_shape
    import llmfit.quantize.gguf_spm
    import llmfit.quantize.gguf_vocab
    import llmfit.store.exchange  # noqa: F401 - imported to be instrumented

from benchmarks.fuzz.targets import TARGETS, Target
from benchmarks.fuzz.watch import Watch, quiet
from llmfit.errors import LlmfitError

MOST_BYTES = 16_384


def main() -> None:
    """Fuzz one target until libFuzzer's limits, or a find."""
    target = next(each for each in TARGETS if each.name == sys.argv[1])
    quiet()
    with tempfile.TemporaryDirectory(prefix="llmfit-fuzz-") as name:
        folder, seeds = Path(name) / "model", Path(name) / "seeds"
        for each in (folder, seeds):
            each.mkdir()
        for number, content in enumerate(target.seeds()):
            if len(content) <= MOST_BYTES:
                (seeds / str(number)).write_bytes(content)
        target.warm()
        target.furnish(folder)
        watch = Watch(folder, also=(Path(tempfile.gettempdir()),))
        run = _one(target, folder, watch)
        atheris.Setup([sys.argv[0], *sys.argv[2:], f"-max_len={MOST_BYTES}", str(seeds)], run)
        atheris.Fuzz()


def _one(target: Target, folder: Path, watch: Watch) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        file = folder / target.file
        file.write_bytes(data)
        if target.padded_bytes is not None:
            os.truncate(file, max(len(data), target.padded_bytes))
        try:
            with watch.watching():
                target.run(folder)
        except LlmfitError:
            return
        if watch.outside:
            raise AssertionError("; ".join(watch.outside))

    return run


if __name__ == "__main__":
    main()
