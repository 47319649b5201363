"""Absurd configs: a typed error that names key and value, or a prediction, in a moment."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmfit.errors import ModelLoadError
from llmfit.foreign.facts import MOST_EXPERTS, MOST_LAYERS, MOST_PARAMETERS, MOST_TOKENS
from llmfit.models import read_spec
from llmfit.planning.architectures import require_shape

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 256,
}  # fmt: skip
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip
NOT_A_SIZE: tuple[Any, ...] = (
    0, -1, 2**31, 2**63, 10**60, 1e300, 3.0, math.nan, math.inf, True, "32000", [], [64], {},
)  # fmt: skip


def spec(folder: Path, **changes: Any) -> Any:
    """What the folder of a config with ``changes`` is read as."""
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return read_spec(folder, name="model", source="local")


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_none_is_refused(key: str, tmp_path: Path) -> None:
    """Each in its turn, with key and value in the message, and the model's name before them."""
    assert spec(tmp_path).parameters
    for value in NOT_A_SIZE:
        with pytest.raises(ModelLoadError, match=f"^model: config.json has {key} = ") as refused:
            spec(tmp_path, **{key: value})
        assert len(str(refused.value)) < 300


ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, f"up to {MOST_LAYERS}"),
    ({"num_hidden_layers": MOST_LAYERS + 1}, f"up to {MOST_LAYERS}"),
    ({"vocab_size": MOST_TOKENS + 1}, f"up to {MOST_TOKENS}"),
    ({"hidden_size": 2**21, "num_hidden_layers": 1024}, "parameters"),
    ({"model_type": "mixtral", "num_local_experts": MOST_EXPERTS, "num_hidden_layers": 1000},
     "matrices in all"),
    ({"model_type": "gemma3n_text", "num_hidden_layers": 400,
      "intermediate_size": list(range(1, 401))}, "400 kinds of layers"),
    ({"hidden_size": 3, "num_attention_heads": 4}, "head_dim"),
    ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"architectures": [1]}, "architectures"),
    ({"architectures": {"a": 1}}, "architectures"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"model_type": "x" * 1000}, "model_type"),
    ({"torch_dtype": "x" * 1000}, "torch_dtype"),
    ({"quantization_config": "int4"}, "quantization_config"),
    ({"quantization_config": {"quant_method": 4}}, "quant_method"),
    ({"quantization_config": {"quant_method": "a\nb"}}, "quant_method"),
    ({"model_type": "gemma2", "layer_types": ["a"] * 10**6}, "1000000 items"),
    ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "1 layer_types for 2 layers"),
    ({"model_type": "gemma2", "layer_types": 7}, "layer_types"),
    ({"model_type": "gpt_neo", "attention_types": [[["global", "local"], 10**9]]}, "1000000000"),
    ({"model_type": "gpt_neo", "attention_types": [3]}, "attention_types"),
    ({"model_type": "gpt_neo", "attention_types": [[["global"]]]}, "attention_types"),
    ({"model_type": "gpt_neo", "attention_types": []}, "num_hidden_layers"),
    ({"model_type": "mixtral", "num_local_experts": 10**12}, f"up to {MOST_EXPERTS}"),
    ({"model_type": "hunyuan_v1_moe", "num_experts": 4, "moe_topk": ["two"]}, "moe_topk"),
    ({"model_type": "hunyuan_v1_moe", "num_experts": 4, "moe_topk": [1] * 7}, "7 MLPs"),
    ({"model_type": "gemma3n_text", "intermediate_size": [64]}, "1 intermediate_size for 2"),
    ({"model_type": "gemma3n_text", "intermediate_size": [64, "x"]}, "intermediate_size"),
    ({"model_type": "smollm3", "use_sliding_window": True, "no_rope_layers": [1]}, "no_rope"),
    ({"model_type": "ernie4_5_moe", "moe_layer_end_index": "end"}, "moe_layer_end_index"),
    ({"model_type": "nemotron_h", "layers_block_type": None,
      "hybrid_override_pattern": 3}, "hybrid_override_pattern"),
    ({"model_type": "nemotron_h", "layers_block_type": [["a"]]}, "layers_block_type"),
    ({"model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_multiple_of": 8,
      "block_ffn_dim_multiplier": 1e300}, "block_ffn_dim_multiplier"),
    ({"model_type": "nemotron-nas", "block_configs": [{"attention": 3, "ffn": {}}]}, "attention"),
    ({"model_type": "nemotron-nas", "block_configs": [
        {"attention": {"no_op": True}, "ffn": {"ffn_mult": math.inf}}]}, "ffn_mult"),
    ({"model_type": "nemotron-nas", "block_configs": [
        {"attention": {"n_heads_in_group": 8}, "ffn": {"no_op": True}}]}, "attn_k"),
    ({"model_type": "bloom", "num_attention_heads": 100}, "100 heads for a hidden size of 64"),
    ({"text_config": {"model_type": "llama", "hidden_size": -1}}, "hidden_size = -1"),
    ({"num_labels": 10**9}, "num_labels = 1000000000"),
    ({"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers = 1000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), ABSURD, ids=range(len(ABSURD)))
def test_an_absurd_config_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    """In a short message that tells what is wrong."""
    with pytest.raises(ModelLoadError) as refused:
        spec(tmp_path, **changes)
    assert said in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": "linear"}, {"rope_scaling": [1]}, {"rope_parameters": {"factor": "four"}},
        {"text_config": 3}, {"text_config": {}}, {"tie_word_embeddings": "yes"},
        {"eos_token_id": [[[]]]}, {"quantization_config": {}}, {"auto_map": 7},
        {"hidden_size": 66}, {"num_key_value_heads": 3}, {"architectures": []},
    ],
    ids=str,
)  # fmt: skip
def test_what_arithmetic_does_not_read_stops_no_prediction(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Libraries that read it say what is wrong; bytes and layers are as told."""
    found = spec(tmp_path, **changes)
    assert found.num_hidden_layers == 2 and found.parameters > 0


def test_the_largest_that_is_read_is_predicted(tmp_path: Path) -> None:
    """10¹³ parameters are arithmetic like any other, 10¹⁵ are refused: see MOST_PARAMETERS."""
    size = {"num_hidden_layers": 1000, "hidden_size": 2**14, "intermediate_size": 2**17}
    found = spec(tmp_path, **size, num_attention_heads=128, num_key_value_heads=128)
    assert 5e12 < found.parameters < MOST_PARAMETERS
    with pytest.raises(ModelLoadError, match=r"\de\+15 parameters; .* 1e\+14"):
        require_shape(LLAMA | size | {"hidden_size": 2**20, "num_attention_heads": 4})


_LIMITED = """
import resource, sys, time
from llmfit.cli.main import main
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)
started = time.monotonic()
code = main(["plan", sys.argv[1]])
print("code", code, "seconds", time.monotonic() - started)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit on addresses is Linux's")
@pytest.mark.parametrize(
    ("changes", "code"),
    [({"num_hidden_layers": MOST_LAYERS}, 0), ({"num_hidden_layers": 10**9}, 1)],
    ids=["most", "absurd"],
)
def test_a_plan_takes_bounded_memory(changes: dict[str, Any], code: int, tmp_path: Path) -> None:
    """The deepest model that is read, all formats, within 2 GB of addresses; a deeper one not."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert f"code {code}" in ran.stdout, ran.stderr
