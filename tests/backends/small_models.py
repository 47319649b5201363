"""Small random models as folders, for checkpoints that are packed in the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packing import fp8_tensors
from safetensors.torch import save_file

VOCABULARY = 512
IDS = torch.arange(1, 100).remainder(VOCABULARY).unsqueeze(0)  # [1, 99]


def llama(seed: int = 0) -> Any:
    """Two layers of width 256 and 512, so that groups of 128 and int4 kernels fit; float32."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval()


def block_linears(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers of the decoder blocks, by their full name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"
    }


def write(
    folder: Path,
    model: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    tokenizer_from: Path,
    quantization: dict[str, Any] | None,
    name: str = "model.safetensors",
) -> Path:
    """A checkpoint folder: config, tokenizer, and ``tensors`` in one file called ``name``."""
    folder.mkdir(parents=True)
    config = {**model.config.to_dict(), "dtype": "bfloat16"}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / name, metadata={"format": "pt"})
    for file in tokenizer_from.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def write_fp8(folder: Path, model: Any, *, tokenizer_from: Path) -> Path:
    """``model`` as a checkpoint like Qwen3-32B-FP8's; it gets the weights that this stands for."""
    tensors = halves(model)
    for name, layer in block_linears(model).items():
        stored, layer.weight.data = fp8_tensors(layer.weight.data)
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.items()}
    said = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }  # fmt: skip
    return write(folder, model, tensors, tokenizer_from=tokenizer_from, quantization=said)


def halves(model: Any) -> dict[str, torch.Tensor]:
    """All weights in bfloat16."""
    return {key: tensor.to(torch.bfloat16) for key, tensor in model.state_dict().items()}


def logits(model: Any) -> torch.Tensor:
    """Logits of ``IDS`` in float32, [99, V]."""
    with torch.inference_mode():
        return model(IDS).logits[0].float()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square of the difference, in units of the wanted logits' spread."""
    return float((found - wanted).square().mean().sqrt() / wanted.std())
