"""Checkpoints that are quantised already: whose they are, and how transformers is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError, UsageError
from llmfit.foreign.code import require_no_pickles
from llmfit.foreign.errors import LibraryErrors
from llmfit.models import local_folder, resolve
from llmfit.quantization import Facts
from llmfit.quantize.pickles import with_safetensors
from llmfit.records import ModelSpec, Plan

_SHAPE = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip
_USUAL_FILES = ("model.safetensors", "model.safetensors.index.json")


def given_checkpoint(
    row: str, loads: frozenset[str], plan: Plan
) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec of the plan's ``--checkpoint row=…``, on disk, of a method in ``loads``; notes.

    Raises UsageError for a checkpoint of another method, ModelLoadError for one of another model
    than the plan's or a pickle that is not allowed, ModelNotFound.
    """
    checkpoint, wanted = str(plan.checkpoint), plan.model
    spec = local_folder(
        resolve(checkpoint),
        allow_pickle=plan.allow_pickle,
        trust_remote_code=plan.trust_remote_code,
    )
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
    return with_safetensors(spec, plan)


def quantized_config(folder: Path, facts: Facts, plan: Plan) -> Any:
    """transformers' config of a folder with ``facts`` as its quantization_config.

    Also names the file of weights where that is not called as usual (AutoGPTQ's
    ``gptq_model-4bit-128g.safetensors``). Nothing is written. Raises ModelLoadError.
    """
    from transformers import AutoConfig

    with LibraryErrors(f"transformers cannot read {folder}/config.json", folder=str(folder)):
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=plan.trust_remote_code
        )
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
    require_no_pickles(folder)
    raise ModelLoadError(
        f"{folder} holds no *.safetensors weights.", hint="a folder with the weights"
    )
