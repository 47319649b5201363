"""What comes with a model and can run code: pickled weights, and Python modules of its own.

    folder ─► its pickles, its modules ─► allowed by the user, or a ModelLoadError

Nothing is read but file names and JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfit.errors import ModelLoadError
from llmfit.foreign.json import read_json

PICKLED_WEIGHTS = ("pytorch_model*.bin", "gptq_model*.bin", "*.pt", "*.pth")
"""Names that libraries give to pickled weights, and to nothing else."""
_CONFIGS = ("config.json", "tokenizer_config.json")
_ASKS_FOR_TRUST = "trust_remote_code"
"""In transformers' error where it is not given, and only there."""
_DYNAMIC = "transformers_modules."
"""Package that transformers imports a model's own modules into."""
_CODE_MEANS = (
    "Such code can do whatever you can: read your files and keys, and send them elsewhere."
)


def pickles(folder: Path) -> tuple[Path, ...]:
    """The folder's pickled weights, sorted; none where it has safetensors, which are read then.

    Of the first kind of name that there is: a training's ``optimizer.pt`` stands beside weights.
    """
    if any(folder.glob("*.safetensors")):
        return ()
    kinds = (sorted(folder.glob(name)) for name in PICKLED_WEIGHTS)
    return tuple(next(filter(None, kinds), ()))


def require_no_pickles(folder: Path, *, allowed: bool = False) -> None:
    """Raise ModelLoadError where the weights are pickles, and reading them was not ``allowed``."""
    found = pickles(folder)
    if found and not allowed:
        names = ", ".join(file.name for file in found[:3]) + (", …" if found[3:] else "")
        raise ModelLoadError(
            f"{folder} holds its weights as a pickle ({names}), which can run code of whoever "
            "made it when it is read.",
            hint="the same model as safetensors, or --allow-pickle to take the tensors out in a "
            "process of its own, which refuses all else",
        )


def own_modules(folder: Path) -> tuple[str, ...]:
    """Python modules that a model's configs name as its own, e.g. ``modeling_x``; sorted.

    One of another repository reads ``org/name--modeling_x``. Raises ModelLoadError for a config
    that is no JSON.
    """
    found = set()
    for name in _CONFIGS:
        if (folder / name).is_file():
            found |= set(_modules(read_json(folder / name).get("auto_map")))
    return tuple(sorted(found))


def _modules(auto_map: Any) -> Iterator[str]:
    """The modules of an ``auto_map``, whose classes stand alone, in lists or in a dictionary."""
    if isinstance(auto_map, str):
        yield auto_map.rpartition(".")[0] or auto_map
    elif isinstance(auto_map, dict | list):
        for value in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from _modules(value)


def raise_if_code_was_refused(folder: Path, error: Exception) -> None:
    """Raise ModelLoadError where transformers' ``error`` is that the model needs its own code."""
    if _ASKS_FOR_TRUST not in str(error):
        return
    modules = ", ".join(own_modules(folder)) or "its config says so"
    raise ModelLoadError(
        f"{folder} comes with Python code of its own ({modules}), and transformers has no class "
        f"for it. {_CODE_MEANS} It was not run.",
        hint="read it, and run it with --trust-remote-code, or take a model without",
    ) from error


def modules_run(folder: Path) -> tuple[str, ...]:
    """Those of ``own_modules`` that this process has imported."""
    ran = {name.rpartition(".")[2] for name in sys.modules if name.startswith(_DYNAMIC)}
    return tuple(name for name in own_modules(folder) if name.rpartition("--")[2] in ran)
