"""Fetching from the hub in a process of its own, so that all waiting ends and leaves nothing.

    python -m llmfit.hub_fetch      one JSON job on stdin, one JSON message on stdout

The hub client waits for some answers without end, sleeps for as long as a hub tells it to, and
cannot be interrupted while its threads download. This process ends when nothing has come for a
while, and when its stdin closes; its unfinished files go with it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from llmfit.child import Message, Send, job_and_send
from llmfit.errors import first_line

_CHUNK_BYTES = 2**18
"""Read from the network before the client tells of it; it takes 10 MB, minutes of a slow line."""
_POLL_S = 0.2
_UNFINISHED = ".incomplete"
"""Ending of the client's files that are being written; it never goes on with one."""
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_AGAIN = "the same again: files that came whole are kept"


class Refused(Exception):
    """What could not be fetched and why; ``hint`` is the next thing to try."""

    def __init__(self, message: str, hint: str, *, disk: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.disk = disk
        """True where not the hub refused but the disk."""


class _Unfinished:
    """The client's unfinished files of this process, found out as they are opened."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(_UNFINISHED):
            self._paths.add(str(arguments[0]))

    def remove(self) -> None:
        """Remove those that are still there."""
        for path in tuple(self._paths):
            with suppress(OSError):
                Path(path).unlink(missing_ok=True)


class _Warnings(logging.Handler):
    """What the client warned of last: it says what it waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[str] = deque(maxlen=2)

    def emit(self, record: logging.LogRecord) -> None:
        self.last.append(first_line(Exception(record.getMessage())))


class Watch:
    """Ends this process where nothing has come for the job's ``quiet_s``."""

    def __init__(self, job: Message, send: Send, unfinished: _Unfinished) -> None:
        self._job = job
        self._send = send
        self._unfinished = unfinished
        self._seen = time.monotonic()
        self._over = threading.Event()
        self._warnings = _Warnings()
        self._growing: tuple[Path, ...] = ()
        self._bytes = 0
        threading.Thread(target=self._wait, daemon=True, name="hub watch").start()

    def listen(self) -> None:
        """Take the client's warnings, once it is imported, and have it tell of small pieces."""
        from huggingface_hub import constants

        logger = logging.getLogger("huggingface_hub")
        logger.handlers, logger.propagate = [self._warnings], False
        constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES

    def watch_folders(self, *folders: Path) -> None:
        """Take it as coming that one of these grows, where nobody tells of pieces."""
        self._growing = folders

    def seen(self) -> None:
        """Something came."""
        self._seen = time.monotonic()

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self._over.set()

    def _wait(self) -> None:
        while not self._over.wait(_POLL_S):
            if self._growing and (found := sum(map(_folder_bytes, self._growing))) != self._bytes:
                self._bytes = found
                self.seen()
            if time.monotonic() - self._seen > self._job["quiet_s"]:
                self._send(**self._nothing_came())
                self._unfinished.remove()
                os._exit(1)

    def _nothing_came(self) -> Message:
        last = f" ({' '.join(self._warnings.last)})" if self._warnings.last else ""
        quiet = f"{self._job['quiet_s']:g} s"
        return {
            "failed": f"nothing of {_what(self._job)} came from the hub for {quiet}{last}.",
            "hint": f"{_AGAIN}; HF_HUB_DOWNLOAD_TIMEOUT=SECONDS waits six times as long",
        }


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files below; of one that vanishes meanwhile none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


Task = Callable[[Message, Watch], Message]
"""Does a job and returns what to tell; raises ``Refused``, or whatever libraries do."""


def main() -> None:
    """The child for models."""
    serve({"ask": _ask, "files": _files, "snapshot": _snapshot})


def serve(tasks: Mapping[str, Task]) -> None:
    """A child's side: do the job on stdin by the task that it names, and report on stdout."""
    unfinished = _Unfinished()
    job, send = job_and_send(before_end=lambda _: unfinished.remove())
    watch = Watch(job, send, unfinished)
    try:
        found = _translated(tasks[job["task"]], job, watch)
    except Refused as exc:
        send(failed=str(exc), hint=exc.hint, disk=exc.disk)
    else:
        send(**found)


def _translated(task: Task, job: Message, watch: Watch) -> Message:
    try:
        return task(job, watch)
    except Refused:
        raise
    except Exception as exc:  # the hub client's, httpx's, hf_xet's and the system's
        raise _refused(_what(job), exc) from exc


def _what(job: Message) -> str:
    return str(job.get("model", job.get("endpoint")))


def _ask(job: Message, watch: Watch) -> Message:
    """Does the hub answer a plain request? One that fails by itself gives nothing either."""
    try:
        with urlopen(Request(job["endpoint"], method="HEAD"), timeout=job["quiet_s"]):
            return {"answers": True}
    except HTTPError as exc:
        return {"answers": exc.code < 500 and exc.code != 429}
    except OSError:
        return {"answers": False}


def _files(job: Message, watch: Watch) -> Message:
    """Those of the named files that the model has, the first of which it must have."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    watch.listen()
    model, first = job["model"], job["names"][0]
    # A download retries for half a minute; one plain request says at once whether the hub is
    # there, and which files are.
    info = HfApi().model_info(model, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    there = {file.rfilename for file in info.siblings or ()}
    if first not in there:
        raise Refused(f"{model} has no {first} on the hub.", "another model id")
    bar = _bar(watch)
    before = _blobs(model)
    names = [name for name in job["names"] if name in there]
    paths = {name: hf_hub_download(model, name, tqdm_class=bar) for name in names}
    _verify(model, map(Path, paths.values()), before)
    return {"paths": paths}


def _snapshot(job: Message, watch: Watch) -> Message:
    """The folder with all files of the model that the patterns name, each as the hub lists it."""
    from huggingface_hub import HfApi, constants, snapshot_download

    watch.listen()
    model = job["model"]
    HfApi().model_info(model, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)  # the next has no timeout
    before = _blobs(model)
    watch.watch_folders(_blobs_folder(model))  # another process may be fetching it: one waits
    folder = snapshot_download(
        model,
        allow_patterns=job["patterns"],
        ignore_patterns=job["ignored"],
        tqdm_class=_bar(watch),
    )
    watch.stop()
    _verify(model, (each for each in Path(folder).rglob("*") if each.is_file()), before)
    return {"folder": folder}


def _bar(watch: Watch) -> type[Any]:
    """The client's progress bar, which tells the watch of every piece that came."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, desc: str | None = None, **settings: Any) -> None:
            # A hub's file may be called anything; a terminal would obey it.
            shown = desc if desc is None or desc.isprintable() else ascii(desc)
            super().__init__(*args, desc=shown, **settings)

        def update(self, n: float | None = 1) -> bool | None:
            if n:
                watch.seen()
            return super().update(n)

    return Bar


def _blobs(model: str) -> frozenset[str]:
    """Names of the model's files in the client's cache, which are the hub's hashes of them."""
    return frozenset(path.name for path in _blobs_folder(model).glob("*"))


def _blobs_folder(model: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"


def _verify(model: str, files: Iterable[Path], before: frozenset[str]) -> None:
    """Hold each file that was not here ``before`` against the hub's hash, and remove a wrong one.

    The client itself compares lengths only. Large files have a SHA-256; others git's SHA-1, or a
    mirror's of the plain content.
    """
    for file in sorted(files):
        blob = file.resolve()
        if blob.name in before or not _HASH.fullmatch(blob.name):
            continue
        if blob.name not in (_sha256 if len(blob.name) == 64 else _sha1)(blob):
            file.unlink()
            blob.unlink(missing_ok=True)
            raise Refused(
                f"{file.name} of {model} came damaged: its hash is not the hub's {blob.name}.",
                f"{_AGAIN}, this one was removed",
            )


def _sha256(file: Path) -> tuple[str, ...]:
    with file.open("rb") as stream:
        return (hashlib.file_digest(stream, "sha256").hexdigest(),)


def _sha1(file: Path) -> tuple[str, ...]:
    """SHA-1 of the content as git's blob, and as it is."""
    content = file.read_bytes()
    return tuple(
        hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
        for head in (b"blob %d\0" % len(content), b"")
    )


# ---------------------------------------------------------------- errors


def _refused(model: str, exc: Exception) -> Refused:
    """Whatever was raised, by its kind, in words."""
    import httpx
    from huggingface_hub import errors

    if isinstance(exc, errors.LocalEntryNotFoundError) and isinstance(exc.__cause__, Exception):
        exc = exc.__cause__  # the client found nothing here either; why it had to look is the news
    if isinstance(exc, errors.GatedRepoError):
        hint = "accept its licence there, then `hf auth login`"
        return Refused(f"{model} is gated on the hub.", hint)
    if isinstance(exc, errors.RemoteEntryNotFoundError):
        return Refused(f"what the hub lists of {model} is not there ({_said(exc)}).", _AGAIN)
    if isinstance(exc, errors.RepositoryNotFoundError):
        return Refused(
            f"no model {model!r}: neither a folder here nor a repository on the hub.",
            "check the spelling, or `hf auth login` for a private one",
        )
    if isinstance(exc, errors.HfHubHTTPError):
        status = exc.response.status_code
        if status in (401, 403):
            hint = "`hf auth login` with a token that may read it"
            return Refused(f"the hub refuses {model} ({status}).", hint)
        return Refused(f"{model}: the hub answers {status} {exc.response.reason_phrase}.", _AGAIN)
    if isinstance(exc, httpx.ConnectError | httpx.TimeoutException | errors.OfflineModeIsEnabled):
        return Refused(
            f"{model} is no folder here and the hub was not reached ({type(exc).__name__}).",
            "a local folder with config.json, or `llmfit compare` for the embedded model",
        )
    if isinstance(exc, httpx.HTTPError):
        return Refused(f"the download of {model} broke off ({_said(exc)}).", _AGAIN)
    if isinstance(exc, OSError) and exc.errno is not None:
        hint = "HF_HOME=FOLDER on a disk with room that can be written"
        return Refused(f"{model} cannot be kept: {exc}.", hint, disk=True)
    return Refused(f"the hub's answer for {model} cannot be used ({_said(exc)}).", _AGAIN)


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {first_line(exc)}"


if __name__ == "__main__":
    main()
