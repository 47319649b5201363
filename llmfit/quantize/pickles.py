"""Pickled weights as safetensors, made once and cached, so that every format reads safetensors.

    folder with pytorch_model*.bin ─► a process of its own ─► folder with the tensors as safetensors

    python -m llmfit.quantize.pickles      one JSON job on stdin, JSON messages on stdout

A pickle is a program. It is run by PyTorch's unpickler that builds tensors and refuses all else
(``torch.load(weights_only=True)``), and apart from whatever this process holds.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmfit.child import Message, converse, ending, job_and_send
from llmfit.device.limits import limit_private_memory
from llmfit.errors import ModelLoadError
from llmfit.foreign.code import pickles, require_no_pickles
from llmfit.foreign.files import check_index
from llmfit.foreign.json import read_json
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import ModelSpec, Plan

_BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")
_CALLED = re.compile(r"GLOBAL ([\w.]+)")
"""How PyTorch's unpickler names what it refuses to call."""
_SYSTEM = re.compile(r"os error (\d+)")
"""How safetensors tells what the system refused."""
_INDEX = "model.safetensors.index.json"


def as_safetensors(folder: Path, cache: ArtifactCache) -> tuple[Path, str | None]:
    """The model ``folder`` with its weights in safetensors, and a note where they were pickled.

    A folder without pickled weights is returned as it is. Raises ModelLoadError for a pickle that
    holds anything but tensors, StoreError where the cache cannot be written.
    """
    found = pickles(folder)
    if not found:
        return folder, None
    for index in folder.glob("*.bin.index.json"):
        check_index(index, read_json(index), ending=".bin")

    def make(target: Path) -> None:
        _convert_apart([str(file) for file in found], target)
        for pattern in _BESIDE:
            for file in folder.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, target / file.name)

    made = cache.get_or_make("safetensors", folder, {}, make)
    names = ", ".join(file.name for file in found)
    taken = f"weights taken out of a pickle (--allow-pickle): {names}"
    return made.path, "; ".join((taken, *made.notes))


def with_safetensors(spec: ModelSpec, plan: Plan) -> tuple[ModelSpec, tuple[str, ...]]:
    """``spec``, whose files are on disk, as every format can read it, and a note where it was not.

    Raises ModelLoadError for pickles that the plan does not allow, and as ``as_safetensors``.
    """
    folder = Path(spec.path)
    require_no_pickles(folder, allowed=plan.allow_pickle)
    cache = ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None)
    made, note = as_safetensors(folder, cache)
    return replace(spec, path=str(made)), () if note is None else (note,)


def _convert_apart(files: list[str], target: Path) -> None:
    """Convert in a child process and wait for it. Raises ModelLoadError, or OSError of a disk."""
    done = False

    def receive(message: Message) -> None:
        nonlocal done
        if "failed" in message:
            raise ModelLoadError(message["failed"], hint="the same model as safetensors")
        if "refused" in message:
            raise OSError(*message["refused"])
        done = done or "done" in message

    code = converse("llmfit.quantize.pickles", {"files": files, "folder": str(target)}, receive)
    if not done:
        raise ModelLoadError(
            f"reading {files[0]} ended with {ending(code)}.",
            hint="a machine with more memory, or the same model as safetensors",
        )


def main() -> None:
    """The child: convert each file and report on stdout."""
    job, send = job_and_send()
    limit_private_memory(None)  # the row's budget is for running the model
    try:
        _convert([Path(file) for file in job["files"]], Path(job["folder"]))
    except ModelLoadError as exc:
        send(failed=exc.message)
    except OSError as exc:
        send(refused=[exc.errno, exc.strerror or str(exc), exc.filename])
    else:
        send(done=True)


def _convert(files: list[Path], folder: Path) -> None:
    """Each pickle as a file of safetensors, with an index where there are several."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        if len(files) == 1:
            name = "model.safetensors"
        tensors = _apart(_tensors(file))
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as exc:
            refused = _SYSTEM.search(str(exc))
            if refused is None:
                raise ModelLoadError(f"{file} cannot be stored as safetensors: {exc}") from exc
            code = int(refused.group(1))
            raise OSError(code, os.strerror(code), str(folder / name)) from exc
        places |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / _INDEX).write_text(json.dumps(index), "utf-8")


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """``tensors``, of which those that share another's storage, such as a tied head, are copied."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        if not whole or storage.data_ptr() in seen:
            tensor = tensor.contiguous().clone()
        seen.add(storage.data_ptr())
        found[name] = tensor
    return found


def _tensors(file: Path) -> dict[str, Any]:
    """Name and tensor of all that a file holds. Raises ModelLoadError for anything else."""
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError,
        AttributeError, IndexError,
    ) as exc:  # fmt: skip  # a damaged program of an unpickler fails in all these ways
        called = _CALLED.search(str(exc))  # the rest is advice to run it all the same
        what = f"it calls {called.group(1)}" if called else f"{type(exc).__name__} within it"
        raise ModelLoadError(f"{file} is no pickle of tensors alone: {what}.") from exc
    if not isinstance(found, dict) or not found:
        raise ModelLoadError(f"{file} holds no dictionary of tensors, but {type(found).__name__}.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.is_sparse:
            raise ModelLoadError(f"{file} holds {name!r}, which is no tensor with a name.")
    return found


if __name__ == "__main__":
    main()
