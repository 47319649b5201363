"""What a model is, read from its config and file headers."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path

import pytest

from llmfit.errors import ModelLoadError, ModelNotFound
from llmfit.models import count_parameters, local_folder, resolve
from llmfit.planning.memory import total_parameters
from llmfit.records import ModelSpec


def test_no_name_is_the_embedded_model(embedded: ModelSpec) -> None:
    """Without a model the one inside the package is used, complete and on disk."""
    assert embedded.source == "embedded"
    assert embedded.parameters == total_parameters(embedded)
    assert local_folder(embedded) is embedded


def test_facts_of_a_real_folder(stories260k: ModelSpec) -> None:
    """stories260K's published shape: 260,032 parameters, width 64 and 172, 8 heads over 4."""
    assert stories260k.parameters == 260_032
    assert (stories260k.hidden_size, stories260k.intermediate_size) == (64, 172)
    assert (stories260k.num_attention_heads, stories260k.num_key_value_heads) == (8, 4)
    assert stories260k.tie_word_embeddings


def test_parameter_counts_equal_transformers(shared_data: Path) -> None:
    """Dense models' counts by shape equal what transformers builds, to the last parameter."""
    with (shared_data / "configs" / "param_counts.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    checked = 0
    for row in rows:
        if row["name"].startswith("nvidia"):
            continue  # refused by name, below
        counted = total_parameters(resolve(str(shared_data / "configs" / row["name"])))
        if counted is not None:
            assert counted == int(row["parameters"]), row["name"]
            checked += 1
    assert checked == 8


def test_config_without_a_plain_shape_is_refused(shared_data: Path) -> None:
    """A config whose layers differ names the key that has no single value."""
    folder = shared_data / "configs" / "nvidia--Llama-3_3-Nemotron-Super-49B-v1"
    with pytest.raises(ModelLoadError, match="intermediate_size"):
        resolve(str(folder))


def test_quantised_checkpoints_are_known(shared_data: Path) -> None:
    """The method of a checkpoint's quantization_config is read."""
    spec = resolve(str(shared_data / "configs" / "Qwen--Qwen3-32B-FP8"))
    assert spec.quantization == "fp8"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./no-such-folder", "no folder './no-such-folder'"),
        ("/no/such/folder", "no folder '/no/such/folder'"),
        ("org/name", "hub was not reached"),
    ],
)
def test_absent_models_are_named(name: str, says: str) -> None:
    """A path that is not there and a hub that cannot be reached are told apart."""
    with pytest.raises(ModelNotFound, match=says):
        resolve(name)


def test_folder_without_config(tmp_path: Path) -> None:
    """A folder that is no model says what it lacks."""
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_file_instead_of_folder(tmp_path: Path) -> None:
    """A GGUF given as the model names the flag it belongs to."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="--checkpoint gguf"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "not readable JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps({"num_attention_heads": 0}), "num_attention_heads = 0"),
        (json.dumps({"num_attention_heads": 4, "hidden_size": -8}), "hidden_size = -8"),
        (json.dumps({"num_attention_heads": "4"}), "num_attention_heads = '4'"),
    ],
)
def test_damaged_configs_are_refused(tmp_path: Path, config: str, says: str) -> None:
    """A config that cannot be meant names the value."""
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=says):
        resolve(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, struct.pack("<Q", 1 << 60) + b"{}"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    """A safetensors file whose header cannot be read is named, and nothing is allocated for it."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        count_parameters(tmp_path)
