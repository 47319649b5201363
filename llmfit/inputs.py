"""What a row reads from disk, by content: the model, a checkpoint, texts, task definitions.

A record without these hashes could not tell whether a later run measures the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llmfit.errors import ModelLoadError
from llmfit.evaluate.score import evaluation_files
from llmfit.foreign.files import check_gguf
from llmfit.quantize.cache import ArtifactCache
from llmfit.quantize.fingerprint import FileHashes
from llmfit.quantize.gguf_checkout import Checkout
from llmfit.records import ModelSpec, Plan


def hashed(plan: Plan) -> Plan:
    """``plan`` with the content hashes of its model, which has to be on disk, and its inputs.

    A model of random weights that only the catalogue knows has no files, and so no hash.
    What was hashed before is remembered beside the artifact cache. Raises ModelNotFound,
    ModelLoadError for a file that cannot be read, and UsageError for a llama.cpp checkout without
    a converter.
    """
    with _read_errors():
        return replace(hashed_inputs(plan), model=_hashed_model(plan, _hashes(plan)))


def hashed_inputs(plan: Plan) -> Plan:
    """``plan`` with the hashes of all that is read beside the model. Raises as ``hashed`` does."""
    hashes = _hashes(plan)
    with _read_errors():
        inputs = {str(path): hashes.everything(path) for path in _paths(plan)}
        if plan.llama_cpp_dir is not None:  # its converter is read, not its builds and history
            inputs[plan.llama_cpp_dir] = Checkout.at(plan.llama_cpp_dir).content_hash()
    return replace(plan, inputs=inputs)


@contextmanager
def _read_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ModelLoadError(f"{exc.filename} cannot be read: {exc.strerror}.") from exc


def _hashes(plan: Plan) -> FileHashes:
    return ArtifactCache(Path(plan.cache_dir) if plan.cache_dir else None).hashes


def _hashed_model(plan: Plan, hashes: FileHashes) -> ModelSpec:
    """The model with its content hash; without one where it is made from the catalogue's facts."""
    folder = Path(plan.model.path)
    if plan.weights == "synthetic" and not folder.is_dir():
        return plan.model
    return replace(plan.model, content_hash=hashes.model(folder))


def changed(plan: Plan) -> tuple[str, ...]:
    """One sentence for each input of a recorded plan that is not as it was; empty: all are."""
    now = hashed(plan)
    found = []
    if plan.model.content_hash != now.model.content_hash:
        found.append(
            f"the model at {plan.model.path} has content {now.model.content_hash}, "
            f"the record {plan.model.content_hash}"
        )
    for path in sorted(plan.inputs.keys() | now.inputs.keys()):
        if plan.inputs.get(path) != now.inputs.get(path):
            found.append(f"{path} {_content(now, path)}, in the record it {_content(plan, path)}")
    return tuple(found)


def _content(plan: Plan, path: str) -> str:
    return f"has content {plan.inputs[path]}" if path in plan.inputs else "is not there"


def _paths(plan: Plan) -> Iterator[Path]:
    """Local files and folders that the row reads beside the model; hub ids are left out."""
    given = [plan.checkpoint, plan.calibration_file]
    if plan.evaluation is not None:
        files = evaluation_files(plan.model, plan.evaluation)
        given += [*map(str, filter(None, files)), plan.evaluation.include_path]
    for path in given:
        if path is not None and Path(path).exists():
            yield from check_gguf(Path(path)) if path.endswith(".gguf") else (Path(path),)
