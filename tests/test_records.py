"""Records survive their JSON, and JSON that is none is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmfit.errors import StoreError
from llmfit.records import Comparison, Plan, RunRecord, from_json, read_record, to_json
from llmfit.testing import make_comparison, make_model, make_record


def test_records_come_back_equal() -> None:
    """Plan, row and comparison are the same after writing and reading."""
    plan = Plan(backend="nf4", model=make_model(), device="cuda")
    row = make_record("nf4")
    comparison = make_comparison([row])
    assert from_json(Plan, to_json(plan)) == plan
    assert from_json(RunRecord, to_json(row)) == row
    assert from_json(Comparison, to_json(comparison)) == comparison


def test_schema_version_is_the_first_key() -> None:
    """A reader can tell the format from the first key."""
    assert (
        next(iter(json.loads(to_json(make_comparison([make_record("awq")]))))) == "schema_version"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"backend": 3}', '{"schema_version": "x"}'])
def test_wrong_json_is_refused_with_its_source(text: str, tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "row.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"row\.json"):
        read_record(RunRecord, path)


def test_missing_file_is_a_store_error(tmp_path: Path) -> None:
    """A record that is not there is named."""
    with pytest.raises(StoreError, match="absent"):
        read_record(RunRecord, tmp_path / "absent.json")
