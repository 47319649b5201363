"""What a server's address leads to: the models it serves, and what it understands.

    URL, key ─► Endpoint.find ─► models, API, fields of a request that it takes ─► body of a request

Servers differ in what they take: each field beyond OpenAI's core is tried once, and left out where
it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmfit.errors import LlmfitError, UsageError
from llmfit.redaction import known_secrets, without_password
from llmfit.serving_records import Api

if TYPE_CHECKING:
    import httpx

CONNECT_S = 10.0
"""How long a connection may take to be made."""
_SHOWN_CHARACTERS = 300
_LARGEST_ANSWER_BYTES = 10_000_000
"""Of an answer that is no stream: a list of models, an error, one token."""
_OPTIONS: dict[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True}}
"""Fields that some servers refuse: vLLM's and llama-server's for answers of the full length, and
OpenAI's for the number of tokens at a stream's end."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and how it is asked."""

    base: str
    """Address of the API, ``/v1`` left out."""
    api: Api
    model: str
    server: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of ``_OPTIONS`` that it takes."""
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/v1/completions" if self.api == "completions" else "/v1/chat/completions"

    def body(self, prompt: str, new_tokens: int, *, stream: bool) -> dict[str, Any]:
        """The JSON of one request, always for the likeliest tokens."""
        asked: dict[str, Any] = {
            "model": self.model,
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "stream": stream,
        }
        if self.api == "completions":
            asked["prompt"] = prompt
        else:
            asked["messages"] = [{"role": "user", "content": prompt}]
        taken = {k: v for k, v in self.options.items() if stream or k != "stream_options"}
        return asked | taken


def address(url: str) -> str:
    """``url`` without a final ``/v1``. Raises UsageError for what is no http address."""
    parts = urlsplit(url)
    try:
        known = parts.port is None or parts.port > 0
    except ValueError:  # no number, or beyond 65535
        known = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not known:
        raise UsageError(
            f"{without_password(url)!r} is no address of a server.",
            hint="llmfit bench-server http://127.0.0.1:8000",
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def client(base: str, *, key: str | None, timeout_s: float) -> httpx.AsyncClient:
    """A client of the server; ``key`` goes into the header that OpenAI's servers ask for."""
    import httpx

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(
        base_url=base,
        headers=headers,
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=None),
        trust_env=urlsplit(base).hostname not in _LOOPBACK,  # where no proxy stands in between
    )


async def find(
    asking: httpx.AsyncClient, base: str, *, model: str | None, api: Api | None
) -> Endpoint:
    """Ask what the server serves and takes.

    ``model`` of None is the only one that it lists; ``api`` of None is completions where it has
    them, else chat. Raises LlmfitError where it does not answer, or not as OpenAI's API does, and
    UsageError for a model that is to be chosen.
    """
    server, served = await _models(asking, base)
    name = _chosen(served, model, base)
    endpoint = Endpoint(base=base, api=api or "completions", model=name, server=server)
    code, said = await _try(asking, endpoint)
    if code in (404, 405) and api is None:
        endpoint = replace(endpoint, api="chat")
        code, said = await _try(asking, endpoint)
    if code != 200:
        raise _refused(endpoint, code, said)
    for option, value in _OPTIONS.items():
        wider = replace(endpoint, options={**endpoint.options, option: value})
        code, said = await _try(asking, wider)
        if code == 200:
            endpoint = wider
        elif code in (400, 422):
            note = f"the server takes no {option}"
            endpoint = replace(endpoint, notes=(*endpoint.notes, note))
        else:
            raise _refused(wider, code, said)
    return endpoint


async def _try(asking: httpx.AsyncClient, endpoint: Endpoint) -> tuple[int, str]:
    """Status and text of an answer of one token."""
    return await _post(asking, endpoint, endpoint.body("Once", 1, stream=True))


async def count_tokens(asking: httpx.AsyncClient, endpoint: Endpoint, prompt: str) -> int | None:
    """Tokens of ``prompt`` as the server counts them, None where it does not say.

    Raises LlmfitError where it refuses the prompt.
    """
    code, said = await _post(asking, endpoint, endpoint.body(prompt, 1, stream=False))
    if code != 200:
        raise _refused(endpoint, code, said)
    try:
        answer = json.loads(said)
        count = answer["usage"]["prompt_tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return count if isinstance(count, int) and count > 0 else None


def unreachable(base: str, exc: Exception) -> LlmfitError:
    """The error for a server that gives no answer."""
    said = str(exc).strip() or type(exc).__name__
    return LlmfitError(
        f"no answer from {without_password(base)}: {shown(said)}.",
        hint="the address that the server printed when it started",
    )


def shown(text: str) -> str:
    """What a server said: one line, of bounded length, without secrets."""
    words = " ".join(known_secrets().hide(text).split())
    return words if len(words) <= _SHOWN_CHARACTERS else words[:_SHOWN_CHARACTERS] + "…"


async def _models(asking: httpx.AsyncClient, base: str) -> tuple[str | None, tuple[str, ...]]:
    """What the server calls itself, and the models that it lists; none where it has no list."""
    import httpx

    try:
        async with asking.stream("GET", "/v1/models") as response:
            said = await _read(response)
    except httpx.HTTPError as exc:
        raise unreachable(base, exc) from exc
    if response.status_code in (401, 403):
        raise UsageError(
            f"{without_password(base)} refuses without a key ({response.status_code}).",
            hint="OPENAI_API_KEY=… llmfit bench-server URL, or --api-key-variable NAME",
        )
    try:
        listed = [entry["id"] for entry in json.loads(said)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        listed = []
    return response.headers.get("server"), tuple(name for name in listed if isinstance(name, str))


def _chosen(served: tuple[str, ...], model: str | None, base: str) -> str:
    if model is not None:
        return model
    if len(served) == 1:
        return served[0]
    known = f"it lists {', '.join(map(shown, served[:10]))}" if served else "it lists none"
    raise UsageError(
        f"which model of {without_password(base)} is to be measured? {known}.",
        hint=f"--served-model {served[0] if served else 'NAME'}",
    )


async def _post(
    asking: httpx.AsyncClient, endpoint: Endpoint, body: Mapping[str, Any]
) -> tuple[int, str]:
    """Status and text of an answer, within bounds. Raises LlmfitError where there is none."""
    import httpx

    try:
        async with asking.stream("POST", endpoint.path, json=body) as response:
            return response.status_code, await _read(response)
    except httpx.HTTPError as exc:
        raise unreachable(endpoint.base, exc) from exc


async def _read(response: httpx.Response) -> str:
    read = bytearray()
    async for piece in response.aiter_bytes():
        read += piece
        if len(read) > _LARGEST_ANSWER_BYTES:
            break
    return read.decode(errors="replace")


def _refused(endpoint: Endpoint, code: int, said: str) -> LlmfitError:
    return LlmfitError(
        f"{without_password(endpoint.base)}{endpoint.path} answers {code} for {endpoint.model}: "
        f"{shown(said) or 'nothing more'}",
        hint="--served-model, --api chat, or fewer --prompt-tokens",
    )
