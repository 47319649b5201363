"""A real HTTP server that answers as OpenAI's API does, at times that are known, or goes wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True)
class Behaviour:
    """How it answers, and what it was asked."""

    first_s: float = 0.0
    gap_s: float = 0.0
    pieces: int = 4
    finish: str = "stop"
    models: tuple[str, ...] = ("the-model",)
    at_once: int = 1000
    """Requests that it works on at a time; the others wait."""
    refuses: tuple[str, ...] = ()
    """Fields that it answers 400 for."""
    missing: tuple[str, ...] = ()
    """Paths that it has not."""
    usage: bool = True
    key: str | None = None
    instead: Callable[[BaseHTTPRequestHandler], None] | None = None
    """What a streamed answer is, in place of a proper one."""
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def speaking(behaviour: Behaviour) -> Iterator[str]:
    """A server that behaves so; its address."""
    turns = threading.Semaphore(behaviour.at_once)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if behaviour.key is not None:
                told = self.headers.get("Authorization")
                if told != f"Bearer {behaviour.key}":
                    return answer(self, 401, {"error": f"wrong key {told}"})
            data = [{"id": name, "object": "model"} for name in behaviour.models]
            return answer(self, 200, {"object": "list", "data": data})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour.asked.append(body)
            if self.path in behaviour.missing:
                return answer(self, 404, {"error": "no such path"})
            for name in behaviour.refuses:
                if name in body:
                    return answer(self, 400, {"error": f"unexpected field {name}"})
            text = body.get("prompt") or body["messages"][0]["content"]
            counts = {"prompt_tokens": 1 + 2 * len(text.split()), "completion_tokens": 1}
            if not body["stream"]:
                choices = [{"index": 0, "text": "a", "finish_reason": "length"}]
                usage = {"usage": counts} if behaviour.usage else {}
                return answer(self, 200, {"choices": choices, **usage})
            with turns:
                if behaviour.instead is not None and body["max_tokens"] > 1:
                    return behaviour.instead(self)
                pieces = min(behaviour.pieces, body["max_tokens"])
                begin(self)
                for number in range(pieces):
                    time.sleep(behaviour.gap_s if number else behaviour.first_s)
                    event(self, {"choices": [piece(self.path, f" w{number}")]})
                end = {**piece(self.path, ""), "finish_reason": behaviour.finish}
                usage = {}
                if behaviour.usage and body.get("stream_options"):
                    usage = {"usage": counts | {"completion_tokens": pieces}}
                event(self, {"choices": [end], **usage})
                self.wfile.write(b"data: [DONE]\n\n")
                return None

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def piece(path: str, text: str) -> dict[str, Any]:
    """A choice of a stream: chat's differ from completions'."""
    if path.endswith("/chat/completions"):
        return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": None}
    return {"index": 0, "text": text, "finish_reason": None}


def answer(handler: BaseHTTPRequestHandler, status: int, content: object) -> None:
    """A whole JSON answer."""
    body = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def begin(handler: BaseHTTPRequestHandler, kind: str = "text/event-stream") -> None:
    """The head of a stream, which ends with the connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True


def event(handler: BaseHTTPRequestHandler, content: object) -> None:
    """One event of a stream."""
    handler.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
    handler.wfile.flush()
