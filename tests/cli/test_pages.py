"""Every command that the pages show is one: its verb, options and values are taken."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llmfit.cli.main import _check_words, _parser

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
HERE = ("nightly.toml", "result.json", "f.parquet", "prompt.txt", "wiki.test.raw")
"""Files that the pages speak of."""


def commands() -> list[str]:
    """Lines of the pages that begin with llmfit; one a form where a page writes a choice."""
    found = []
    for page in PAGES:
        for line in page.read_text("utf-8").splitlines():
            shown = re.match(r"    (llmfit .*)", line)
            if shown is not None:
                found.append(re.sub(r"\s+#.*", "", shown.group(1)))
    return found


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_page_s_command_is_taken(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the parser, in a folder with the files that it names."""
    for name in HERE:
        (tmp_path / name).write_text("")
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    _check_words(words)
    _, unknown = _parser().parse_known_args(words)
    assert not unknown
