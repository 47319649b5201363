"""How a checkpoint says that it is stored quantised: one form for what many tools write.

    config.json        "quantization_config": {"quant_method": "gptq", "bits": 4, …}   today's place
    quantize_config.json    AutoGPTQ, beside a config.json that says nothing
    quant_config.json       AutoAWQ, the same
    hf_quant_config.json    ModelOpt, the same

The outcome has the keys of ``quantization_config`` that transformers reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import read_json, shortened

Facts = dict[str, Any]

_NAME = re.compile(r"[\w.:-]{1,64}")


def stored_quantization(folder: Path) -> Facts | None:
    """What the files of a model's folder say of its quantisation; None for an unquantised model.

    config.json counts before the old tools' files. Raises ModelLoadError for damaged ones.
    """
    said = in_config(read_json(folder / "config.json"))
    if said is not None:
        return said
    for name, read in OLD_FILES.items():
        if (folder / name).is_file():
            return read(read_json(folder / name))
    return None


def in_config(config: Mapping[str, Any]) -> Facts | None:
    """What a config.json itself says of its quantisation, with ``quant_method`` set, or None.

    Raises ModelLoadError for what says nothing.
    """
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    said = config.get("quantization_config") or inner
    if said is None and isinstance(config.get("quantization"), dict):
        said = config["quantization"]  # MLX; its converter writes the usual key beside it today
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ModelLoadError(
            f"config.json has quantization_config = {shortened(said)}, an object is needed."
        )
    facts = dict(said)
    if not facts.get("quant_method"):
        facts["quant_method"] = _guess(config, facts)
    return facts


def method(facts: Mapping[str, Any]) -> str:
    """The method's name; bitsandbytes' two formats are told apart. Raises ModelLoadError."""
    name = facts["quant_method"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ModelLoadError(
            f"config.json has quant_method = {shortened(name)}, a method's name is needed."
        )
    if name == "bitsandbytes":
        return "bitsandbytes_8bit" if facts.get("load_in_8bit") else "bitsandbytes_4bit"
    return name


def _guess(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The method of an entry that does not name it, by the keys that only one tool writes."""
    if "quantization" in config:
        return "mlx"
    if facts.get("load_in_8bit") or facts.get("load_in_4bit"):
        return "bitsandbytes"
    if "desc_act" in facts:
        return "gptq"
    return "awq" if "zero_point" in facts else "unknown"


def _from_autogptq(said: Facts) -> Facts:
    return {"quant_method": "gptq", **said}


def _from_autoawq(said: Facts) -> Facts:
    facts = {"quant_method": "awq", **said}
    for old, new in (("w_bit", "bits"), ("q_group_size", "group_size")):
        if old in facts:
            facts[new] = facts.pop(old)
    return facts


def _from_modelopt(said: Facts) -> Facts:
    details = said.get("quantization")
    return {"quant_method": "modelopt", **(details if isinstance(details, dict) else {})}


OLD_FILES: Mapping[str, Callable[[Facts], Facts]] = {
    "quantize_config.json": _from_autogptq,
    "quant_config.json": _from_autoawq,
    "hf_quant_config.json": _from_modelopt,
}
"""File names of tools that left config.json alone, and how each is read."""
