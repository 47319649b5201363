"""What is fuzzed: a reader, the files it reads, and cases of each kind for one of them.

A case is the content of one file, ``Target.file``, in a folder that ``furnish`` has filled. It
passes where ``run`` returns, and where it raises an LlmfitError.
"""

from __future__ import annotations

from benchmarks.fuzz.targets import configs, headers, records, tokenizers
from benchmarks.fuzz.targets.base import Target

__all__ = ["TARGETS", "Target"]

TARGETS: tuple[Target, ...] = (
    *headers.TARGETS, *configs.TARGETS, *tokenizers.TARGETS, *records.TARGETS,
)  # fmt: skip
