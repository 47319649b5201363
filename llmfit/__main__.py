"""``python -m llmfit`` is ``llmfit``."""

from __future__ import annotations

import sys

from llmfit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
