"""The table of faults in benchmarks/README.md: each test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_TABLE = (TESTS.parent / "benchmarks" / "README.md").read_text("utf-8").partition("## Faults")[2]
NAMED = sorted(set(re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", _TABLE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}::{name}" for file, name in NAMED])
def test_a_promise_has_its_test(file: str, name: str) -> None:
    """The file has tests, and the named one among them."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert any(each.startswith("test_") for each in found)
    assert not name or name in found


def test_the_table_names_many() -> None:
    """So that a table that is not found does not pass."""
    assert len(NAMED) > 50
