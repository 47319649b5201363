"""A hub on 127.0.0.1, real enough for the hub client, that fails as it is told to.

    Hub(files) ─► port ─► client asks for a model, its list, files ─► fault(request) or the truth

Every name ``org/…`` is a model with the same files; each has a fault of its own, or none. Any other
name is a dataset with files of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "beef"
_LARGE = (".safetensors",)
_PATH = re.compile(
    r"/(?:api/(?:models|datasets)/(?P<listed>[\w-]+/[\w-]+)(?P<what>.*)"
    r"|(?:datasets/)?(?P<given>[\w-]+/[\w-]+)/resolve/\w+/(?P<name>.+))"
)


@dataclass
class Hub:
    """What the hub has, how it fails, and what it was asked for."""

    files: dict[str, bytes]
    """Of every model."""
    data: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of datasets, by id."""
    faults: dict[str, Callable[[Request], bool]] = field(default_factory=dict)
    """By model: answers a request in place of the truth and says True, or leaves it: False."""
    asked: list[str] = field(default_factory=list)
    """``METHOD path`` of every request."""
    closing: Event = field(default_factory=Event)
    """Set when the hub ends: what waits for ever waits for this."""
    port: int = 0

    def count(self, method: str, model: str, name: str = "") -> int:
        """How often a file of a model was asked for, or anything of it."""
        mine = [each for each in self.asked if model in each and each.endswith(name)]
        return sum(each.startswith(f"{method} ") for each in mine)


class Request(BaseHTTPRequestHandler):
    """One request to ``hub``, and ways of answering it."""

    hub: Hub

    @property
    def _parts(self) -> dict[str, str]:
        found = _PATH.fullmatch(unquote(urlsplit(self.path).path))
        return {} if found is None else {key: each or "" for key, each in found.groupdict().items()}

    @property
    def model(self) -> str:
        """The model that is asked about; empty for anything else."""
        return self._parts.get("listed", "") or self._parts.get("given", "")

    @property
    def name(self) -> str:
        """The file that is asked for; empty for anything else."""
        return self._parts.get("name", "")

    @property
    def content(self) -> bytes:
        """The bytes of that file."""
        return self.all_files[self.name]

    @property
    def all_files(self) -> dict[str, bytes]:
        """Everything that the model or dataset has."""
        if self.model.startswith("org/"):
            return self.hub.files
        return self.hub.data.get(self.model, {})

    def do_GET(self) -> None:
        """Answer as the hub does, or fail."""
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        fault = self.hub.faults.get(self.model)
        if fault is not None and fault(self):
            return
        if self.model and not self.all_files:
            self.refuse(404, "RepoNotFound")
        elif "/tree/" in self._parts.get("what", ""):
            below = self._parts["what"].partition("/tree/")[2].partition("/")[2]
            self.tell(_tree(self.all_files, below, deep="recursive=True" in self.path))
        elif self._parts.get("listed"):
            siblings = [{"rfilename": name} for name in self.all_files]
            self.tell({"id": self.model, "sha": COMMIT, "siblings": siblings})
        elif self.name in self.all_files:
            self.give(self.content)
        elif path == "/":
            self.tell({})
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the base class's names

    def tell(self, value: Any) -> None:
        """A JSON answer."""
        body = json.dumps(value).encode()
        self.start(200, {"Content-Length": len(body), "Content-Type": "application/json"})
        if self.command == "GET":
            self.wfile.write(body)

    def give(self, content: bytes, *, length: int | None = None) -> None:
        """A file, from where the client wants it; ``length`` is a lie about its bytes."""
        begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        size = len(content) - begin if length is None else length
        self.start(206 if begin else 200, file_headers(self.name, self.content, size))
        if self.command == "GET":
            self.wfile.write(content[begin:])

    def refuse(self, status: int, code: str = "", **more: str) -> None:
        """An error without a body."""
        headers = {"X-Repo-Commit": COMMIT, "X-Error-Code": code} if code else {}
        self.start(status, {**headers, "Content-Length": 0, **more})

    def start(self, status: int, headers: dict[str, Any]) -> None:
        """Status and headers."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def file_headers(name: str, content: bytes, size: int) -> dict[str, Any]:
    """What the hub says of a file."""
    return {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(name, content)}"', "Content-Length": size}


def _etag(name: str, content: bytes) -> str:
    return sha256(content) if name.endswith(_LARGE) else git_hash(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file", "path": name, "size": len(content), "oid": git_hash(content)
    }  # fmt: skip
    if name.endswith(_LARGE):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _tree(files: dict[str, bytes], below: str, *, deep: bool) -> list[dict[str, Any]]:
    """Files below a folder; without ``deep`` only what lies in it, folders among them."""
    start = f"{below}/" if below else ""
    inside = {name: files[name] for name in files if name.startswith(start)}
    flat = {name for name in inside if deep or "/" not in name[len(start) :]}
    folders = {start + name[len(start) :].partition("/")[0] for name in inside.keys() - flat}
    found: list[dict[str, Any]] = [_entry(name, inside[name]) for name in sorted(flat)]
    return found + [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]


def sha256(content: bytes) -> str:
    """What the hub knows large files by."""
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    """What it knows others by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """A model's folder as a hub has it, with a README that no model needs."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {**found, "README.md": b"# tiny\n"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a port of this machine while the block runs."""
    handler = type("Handler", (Request,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.port = server.server_port
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            server.block_on_close = False


# ---------------------------------------------------------------- faults


Fault = Callable[[Request], bool]


def status(code: int, name: str = "", *, error: str = "", **headers: str) -> Fault:
    """An error for everything, or for one file."""

    def answer(request: Request) -> bool:
        if name and request.name != name:
            return False
        request.refuse(code, error, **headers)
        return True

    return answer


def silent(what: str) -> Fault:
    """No answer ever to paths that have this in them."""

    def answer(request: Request) -> bool:
        if what not in urlsplit(request.path).path:
            return False
        request.hub.closing.wait()
        return True

    return answer


def trickling(name: str, pause_s: float = 0.2) -> Fault:
    """A file that comes byte by byte, faster than any timeout and for hours."""

    def answer(request: Request) -> bool:
        if request.name != name or request.command != "GET":
            return False
        request.start(200, file_headers(name, request.content, len(request.content)))
        for byte in request.content:
            request.wfile.write(bytes([byte]))
            if request.hub.closing.wait(pause_s):
                break
        return True

    return answer


def steady(name: str, pause_s: float, piece: int = 64 * 1024) -> Fault:
    """A file that comes slowly and surely."""

    def answer(request: Request) -> bool:
        if request.name != name or request.command != "GET":
            return False
        request.start(200, file_headers(name, request.content, len(request.content)))
        for start in range(0, len(request.content), piece):
            request.wfile.write(request.content[start : start + piece])
            if request.hub.closing.wait(pause_s):
                break
        return True

    return answer


def cut_off(name: str, after: int, times: int = 1000) -> Fault:
    """A file whose connection closes ``after`` bytes, so many ``times``."""
    left = [times]

    def answer(request: Request) -> bool:
        if request.name != name or request.command != "GET" or not left[0]:
            return False
        left[0] -= 1
        request.give(request.content[:after], length=len(request.content))
        request.close_connection = True
        return True

    return answer


def changed(name: str) -> Fault:
    """A file of the right length with another byte in its middle."""

    def answer(request: Request) -> bool:
        if request.name != name:
            return False
        content = bytearray(request.content)
        content[len(content) // 2] ^= 0xFF
        request.give(bytes(content))
        return True

    return answer


def longer(name: str) -> Fault:
    """A file that comes with more bytes than the hub lists."""

    def answer(request: Request) -> bool:
        if request.name != name or request.command != "GET":
            return False
        request.give(request.content + b"more", length=len(request.content) + 4)
        return True

    return answer


def in_circles(request: Request) -> bool:
    """Every file is elsewhere, which is here."""
    if not request.name:
        return False
    request.refuse(302, Location=request.path)
    return True


def outside(request: Request) -> bool:
    """The list names a file beside the model's folder."""
    names = [*request.hub.files, "../../../planted.json"]
    path = urlsplit(request.path).path
    if "/tree/" in path:
        request.tell([_entry(name, request.hub.files.get(name, b"{}")) for name in names])
        return True
    if path.startswith("/api/models/"):
        siblings = [{"rfilename": name} for name in names]
        request.tell({"id": request.model, "sha": COMMIT, "siblings": siblings})
        return True
    if path.endswith("planted.json"):
        request.start(200, file_headers("planted.json", b"{}", 2))
        if request.command == "GET":
            request.wfile.write(b"{}")
        return True
    return False
