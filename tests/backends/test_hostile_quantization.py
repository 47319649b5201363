"""Settings of quantised checkpoints that no tool writes: refused before a library reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import wholes
from llmfit.backends._packed import loadable
from llmfit.errors import ModelLoadError

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one packed layer."""
    content = wholes.safetensors(wholes.TENSORS, wholes.TENSOR_BYTES)
    (tmp_path / "model.safetensors").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": "four"}, {"bits": True}, {"bits": 4.0}, {"bits": None}, {"bits": [4]}, {"bits": 5},
        {"group_size": 0}, {"group_size": -7}, {"group_size": "128"}, {"group_size": 1e300},
        {"dynamic": [1]}, {"dynamic": "all"}, {"checkpoint_format": {"a": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_odd_settings_are_refused(changes: dict[str, Any], folder: Path) -> None:
    """In a line that names the folder."""
    with pytest.raises(ModelLoadError, match=folder.name) as refused:
        loadable(folder, GPTQ | changes, device="cpu")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("group", [-1, 32, 128])
def test_usual_settings_are_taken(group: int, folder: Path) -> None:
    """−1 is one group a row."""
    facts = loadable(folder, GPTQ | {"group_size": group}, device="cpu")
    assert facts["modules_in_block_to_quantize"] == [["model.layers.0.mlp.up_proj"]]
