"""A config that asks for more than there is: refused before anything of that size is made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmfit.deployer import Deployer
from llmfit.device.memory import peak_resident_bytes, resident_bytes, restart_peak
from llmfit.errors import DoesNotFit, ModelLoadError
from llmfit.models import data_path

HUGE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2**14,
    "intermediate_size": 2**16, "num_hidden_layers": 1000, "num_attention_heads": 128,
    "num_key_value_heads": 128, "vocab_size": 300, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip
"""4 · 10¹² parameters."""


@pytest.fixture
def huge(tmp_path: Path) -> str:
    """A folder of that config alone."""
    folder = tmp_path / "huge"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HUGE))
    return str(folder)


@pytest.mark.parametrize("backend", ["sdpa", "nf4", "gptq", "gguf"])
def test_synthetic_weights_are_not_begun(backend: str, huge: str) -> None:
    """From Python too, where no comparison looks at the budget before."""
    deployer = Deployer(huge, backend=backend, device="cpu", weights="synthetic")
    if deployer._backend.missing():
        pytest.skip(deployer._backend.install_hint())
    restart_peak()
    before = resident_bytes()
    with pytest.raises(DoesNotFit, match=r"the weights of huge take [\d.,]+ [GT]B"):
        deployer.load()
    assert (peak_resident_bytes() or 0) - before < 2e9


@pytest.mark.slow
def test_a_comparison_says_that_it_does_not_fit(huge: str, tmp_path: Path) -> None:
    """Each row by its prediction, none of them run, and none of the machine's memory taken."""
    ran = subprocess.run(
        [sys.executable, "-m", "llmfit", "compare", huge, "--weights", "synthetic",
         "--backends", "sdpa,gguf", "--format", "json", "--runs-dir", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    rows = json.loads(ran.stdout)["rows"]
    assert [row["status"] for row in rows] == ["does_not_fit"] * 2 + ["skipped"], ran.stderr
    assert all("of RAM" in row["reason"] for row in rows[:2])


@pytest.mark.slow
def test_files_that_hold_less_than_the_config_tells_are_refused(tmp_path: Path) -> None:
    """transformers would make the missing tensors, here 1.6 GB of them, before it says so."""
    folder = _embedded(tmp_path / "model", num_hidden_layers=1000)
    restart_peak()
    before = resident_bytes()
    deployer = Deployer(folder, backend="sdpa", device="cpu")
    with pytest.raises(ModelLoadError, match=r"its files hold 5\d+ values, config\.json tells of"):
        deployer.load()
    assert (peak_resident_bytes() or 0) - before < 1e9


def _embedded(folder: Path, **changes: Any) -> str:
    """The embedded model in ``folder``, its config with ``changes``."""
    shutil.copytree(data_path("embedded"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


def test_the_converter_refuses_a_config_of_other_heads(tmp_path: Path) -> None:
    """Queries and keys are reordered head by head, which other numbers leave no room for."""
    pytest.importorskip("gguf")
    from llmfit.quantize.gguf_convert import convert

    _embedded(tmp_path / "model", num_key_value_heads=3)
    with pytest.raises(ModelLoadError, match=r"k_proj\.weight has 128 rows, .* 3 heads of 32"):
        convert(tmp_path / "model", tmp_path / "out.gguf", dtype="f16")


@pytest.mark.slow
def test_a_config_cannot_change_what_a_model_returns(tmp_path: Path) -> None:
    """Bare tuples and every layer's states are asked for, and the text is the same."""
    texts = []
    for name, changes in (
        ("plain", {}),
        ("odd", {"return_dict": False, "output_hidden_states": 1}),
    ):
        folder = _embedded(tmp_path / name, **changes)
        with Deployer(folder, backend="sdpa", device="cpu") as deployed:
            texts.append(deployed.generate("Once upon a time", max_new_tokens=8).text)
    assert texts[0] == texts[1] != ""
