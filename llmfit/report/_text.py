"""Makes text from outside (model names, reasons, versions) safe to show."""

from __future__ import annotations

import unicodedata

# Categories: control, format (bidirectional overrides, zero width), surrogate, line and
# paragraph separators. Any of them can rewrite what a terminal shows.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def plain(text: str) -> str:
    r"""``text`` on one line with every control character spelled out, e.g. ``\x1b``.

    Runs of spaces, tabs and line breaks become one space.
    """
    return visible(" ".join(text.split()))


def visible(text: str, *, keep: str = "") -> str:
    """``text`` with every control character but those of ``keep`` spelled out."""
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in keep and unicodedata.category(char) in _UNSAFE
        else char
        for char in text
    )
