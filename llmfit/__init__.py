"""llmfit: which deploy format of a language model fits, how fast it is, what quality it costs."""

from __future__ import annotations

__version__ = "0.1.0"
