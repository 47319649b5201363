"""A hub on 127.0.0.1 with one model, real enough for the hub client, that fails as it is told to.

Hub(files) ─► port ─► client asks for the model, its list, files ─► fault(request) or the truth
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

MODEL = "org/tiny"
COMMIT = "c0ffee" * 6 + "beef"
_LARGE = (".safetensors",)


@dataclass
class Hub:
    """What the hub has, how it fails, and what it was asked for."""

    files: dict[str, bytes]
    fault: Callable[[Request], bool] | None = None
    """Answers a request in place of the truth and says True, or leaves it and says False."""
    asked: list[str] = field(default_factory=list)
    """``METHOD path`` of every request."""
    closing: Event = field(default_factory=Event)
    """Set when the hub ends: what waits for ever waits for this."""
    port: int = 0

    def count(self, method: str, name: str) -> int:
        """How often a file was asked for."""
        return sum(each.startswith(method) and each.endswith(name) for each in self.asked)


class Request(BaseHTTPRequestHandler):
    """One request to ``hub``, and ways of answering it."""

    hub: Hub

    @property
    def name(self) -> str:
        """The file that is asked for; empty for anything else."""
        _, found, rest = unquote(urlsplit(self.path).path).partition(f"/{MODEL}/resolve/")
        return rest.partition("/")[2] if found else ""

    @property
    def content(self) -> bytes:
        """The bytes of that file."""
        return self.hub.files[self.name]

    def do_GET(self) -> None:
        """Answer as the hub does, or fail."""
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.fault is not None and self.hub.fault(self):
            return
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            self.tell([_entry(name, content) for name, content in self.hub.files.items()])
        elif path.startswith(f"/api/models/{MODEL}"):
            siblings = [{"rfilename": name} for name in self.hub.files]
            self.tell({"id": MODEL, "sha": COMMIT, "siblings": siblings})
        elif self.name in self.hub.files:
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
    """No answer ever to paths that end so."""

    def answer(request: Request) -> bool:
        if not urlsplit(request.path).path.endswith(what):
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
        request.tell({"id": MODEL, "sha": COMMIT, "siblings": siblings})
        return True
    if path.endswith("planted.json"):
        request.start(200, file_headers("planted.json", b"{}", 2))
        if request.command == "GET":
            request.wfile.write(b"{}")
        return True
    return False
