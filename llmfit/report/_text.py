"""Makes text from outside (model names, reasons, versions) safe to show: a function an output.

    text ─► plain ─┬► terminals, XML, a page's text (Jinja escapes the rest)
                   ├► in_markdown ─► Markdown
                   ├► in_plotly ─► names and hovers of a page's plots
                   ├► in_matplotlib ─► pictures
                   └► in_chat ─► messages
         ─► in_csv ─► CSV

JSON and Parquet hold texts as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from html import escape

# Categories: control, format (bidirectional overrides, zero width), surrogate, line and
# paragraph separators. Any of them can rewrite what a terminal shows.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# An underscore inside a word is no markup; what begins a line may be a list or an underlining.
_MARKUP = re.compile(r"([\\`*{}\[\]<>|#~$]|(?<![^\W_])_|_(?![^\W_])|^[-+=](?=[-+=\s]|$))")
_LIST_NUMBER = re.compile(r"^(\d+)(?=[.)](?:\s|$))")
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What makes a spreadsheet compute a field. Source: OWASP, CSV injection; a tab and a carriage
return, which it names too, are spelled out."""
_MENTION = re.compile(r"@(?=(?:channel|here|everyone|all)\b)")


def plain(text: str) -> str:
    r"""``text`` on one line with every control character spelled out, e.g. ``\x1b``.

    Runs of spaces, tabs and line breaks become one space.
    """
    return visible(" ".join(text.split()))


def visible(text: str, *, keep: str = "") -> str:
    """``text`` with every control character but those of ``keep`` spelled out.

    So are Unicode's noncharacters, which XML cannot hold.
    """
    return "".join(
        char.encode("unicode_escape").decode() if char not in keep and _is_unsafe(char) else char
        for char in text
    )


def _is_unsafe(char: str) -> bool:
    code = ord(char)
    no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return no_character or unicodedata.category(char) in _UNSAFE


def in_markdown(text: str) -> str:
    """One line of text for Markdown: what means something there, or in HTML, made literal."""
    return _LIST_NUMBER.sub(r"\1\\", _MARKUP.sub(r"\\\1", text.replace("&", "&amp;")))


def markdown_code(lines: Iterable[str]) -> list[str]:
    """Lines of text as a block of code, which none of them can end."""
    shown = list(lines)
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *shown, fence]


def in_plotly(text: str) -> str:
    """A text for Plotly's names and hovers, which read a little HTML and fill in ``%{…}``."""
    return escape(plain(text)).replace("%{", "&#37;{")


def in_matplotlib(text: str) -> str:
    """A text for a picture, in which dollar signs would begin a formula."""
    return plain(text).replace("$", r"\$")


def in_csv(text: str) -> str:
    """A text for a field of CSV: one that a spreadsheet would compute gets an apostrophe."""
    shown = visible(text, keep="\n")
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA_STARTS) else shown


def in_chat(text: str) -> str:
    """Lines for Slack and its like: no link, no mention that calls everyone.

    Source: Slack's "Formatting text for app surfaces": ``&``, ``<`` and ``>`` are its controls.
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MENTION.sub("@\u200b", escaped)
