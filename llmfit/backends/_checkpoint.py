"""Checkpoints that are quantised already: whose they are, and how transformers is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError, UsageError
from llmfit.models import local_folder, resolve
from llmfit.quantization import Facts
from llmfit.records import ModelSpec

_SHAPE = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip
_USUAL_FILES = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth")


def given_checkpoint(
    row: str, loads: frozenset[str], checkpoint: str, wanted: ModelSpec
) -> ModelSpec:
    """The spec of ``--checkpoint row=checkpoint``, on disk, of a method in ``loads``.

    Raises UsageError for a checkpoint of another method, ModelLoadError for one of another model
    than ``wanted``, ModelNotFound.
    """
    spec = local_folder(resolve(checkpoint))
    if spec.quantization not in loads:
        raise UsageError(
            f"--checkpoint {row}={checkpoint}: its quantization_config says "
            f"{spec.quantization or 'nothing'}, this row loads {', '.join(sorted(loads))} only.",
            hint=f"a {row} checkpoint, or leave it out",
        )
    for fact in _SHAPE:
        theirs, ours = getattr(spec, fact), getattr(wanted, fact)
        if theirs != ours:
            raise ModelLoadError(
                f"--checkpoint {row}={checkpoint} is of another model: its {fact} is "
                f"{theirs}, {wanted.name} has {ours}.",
                hint=f"a {row} checkpoint of {wanted.name}",
            )
    return spec


def quantized_config(folder: Path, facts: Facts) -> Any:
    """transformers' config of a folder with ``facts`` as its quantization_config.

    Also names the file of weights where that is not called as usual (AutoGPTQ's
    ``gptq_model-4bit-128g.safetensors``). Nothing is written. Raises ModelLoadError.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise ModelLoadError(f"transformers cannot read {folder}/config.json: {exc}") from exc
    config.quantization_config = facts
    name = _weights_file(folder)
    if name not in _USUAL_FILES:
        config.transformers_weights = name
    return config


def _weights_file(folder: Path) -> str:
    """The file that holds all weights, or the index of several. Raises ModelLoadError."""
    for usual in _USUAL_FILES:
        if (folder / usual).is_file():
            return usual
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(path.name for path in folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelLoadError(
                f"{folder} holds several checkpoints: {', '.join(found)}.",
                hint="a folder with one of them beside config.json and the tokenizer",
            )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(
            f"{folder} holds its weights as a pickle ({', '.join(pickles)}), which can run any "
            "code when it is read; only safetensors are.",
            hint="the same checkpoint as safetensors, or the unquantised model",
        )
    raise ModelLoadError(
        f"{folder} holds no *.safetensors weights.", hint="a folder with the weights"
    )
