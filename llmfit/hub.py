"""The Hugging Face hub from the parent's side: what it has, and files fetched from it, in time.

    hub id ─► cache of the hub client, or hub_fetch in a process of its own ─► files on disk

An answer is waited for 10 s, and a fetch ends where nothing has come for six times as long. The
hub client's own variable ``HF_HUB_DOWNLOAD_TIMEOUT`` sets these 10 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmfit.child import Message, converse, ending
from llmfit.errors import ModelLoadError, ModelNotFound, StoreError
from llmfit.foreign.files import weight_files
from llmfit.network import is_offline

_IGNORED = ("[!.]*/*", "consolidated*")
"""Files that are no part of a model as transformers reads it: in folders, or by Mistral's names.
A list that leads out of the model's folder is left for the hub's client to refuse."""
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
"""Of files that hold weights."""
_QUIET = 6
"""Fetches end after this many of the client's timeouts in which nothing came: it retries by itself,
and one that trickles would otherwise go on for days. Files are told of in pieces of 256 KiB."""
_ENDING_S = 5.0


def hub_reachable() -> bool:
    """True where the hub answers a plain request, and not with an error of its own."""
    if is_offline():
        return False
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    found = fetched({"task": "ask", "endpoint": constants.ENDPOINT}, quiet=1)
    return bool(found.get("answers", False))


def hub_files(model: str, names: Sequence[str]) -> dict[str, Path]:
    """Those of the files ``names`` that a model has, by name; from the client's cache if there.

    The first one it must have. Raises ModelNotFound, and StoreError where the disk refuses.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = {name: try_to_load_from_cache(model, name) for name in names}
    except HFValidationError as exc:
        raise ModelNotFound(
            f"{model!r} is neither a folder here nor a hub id: {exc}.", hint="org/name"
        ) from exc
    if isinstance(cached[names[0]], str):
        return {name: Path(path) for name, path in cached.items() if isinstance(path, str)}
    found = _required({"task": "files", "model": model, "names": [*names]})
    return {name: Path(path) for name, path in found["paths"].items()}


def hub_folder(model: str, patterns: Sequence[str]) -> Path:
    """The folder with a model's files of these ``patterns``, downloaded where they are not here.

    The hub's newest are taken, and those that are here where it is not reached. Its client draws
    progress bars on stderr. Raises ModelNotFound, and StoreError where the disk refuses.
    """
    job = {"task": "snapshot", "model": model, "patterns": [*patterns], "ignored": [*_IGNORED]}
    try:
        return Path(_required(job)["folder"])
    except ModelNotFound:
        here = cached_folder(model, patterns)
        if here is None:
            raise
        return here


def cached_folder(model: str, patterns: Sequence[str]) -> Path | None:
    """The folder in the client's cache with all of a model's files of these ``patterns``.

    None where any is missing, or there are no weights among them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(model, allow_patterns=[*patterns], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    try:
        weight_files(folder)
    except ModelLoadError:  # a shard is missing
        return None
    whole = any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir())
    return folder if whole else None


def _required(job: Message) -> Message:
    found = fetched(job)
    if "failed" in found:
        raise (StoreError if found.get("disk") else ModelNotFound)(
            found["failed"], hint=found["hint"]
        )
    return found


def fetched(job: Message, *, module: str = "llmfit.hub_fetch", quiet: int = _QUIET) -> Message:
    """What a child that runs ``module`` tells of ``job``: its finds, or ``failed`` and ``hint``.

    It ends after ``quiet`` of the hub client's timeouts in which nothing came.
    """
    if is_offline():
        said = f"{job['model']} is not downloaded, and --offline keeps from asking the hub."
        return {"failed": said, "hint": "the same without --offline, or a model's folder"}
    from huggingface_hub import constants

    found: Message = {}
    limit_s = quiet * constants.HF_HUB_DOWNLOAD_TIMEOUT
    code = converse(
        module,
        {**job, "quiet_s": limit_s},
        found.update,
        own_session=True,
        ending_s=_ENDING_S,
    )
    what = job.get("model", "the hub")
    return found or {"failed": f"fetching {what} ended with {ending(code)}.", "hint": "the same"}
