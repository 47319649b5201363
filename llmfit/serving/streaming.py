"""One request, and when each piece of its answer came.

body ─► POST, stream ─► server-sent events ─► RequestTrace
                             └► status, silence, cut off, an error event ─► its reason
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from llmfit.serving.endpoint import Endpoint, shown
from llmfit.serving_records import RequestTrace

if TYPE_CHECKING:
    import httpx

_LARGEST_ERROR_BYTES = 100_000


class _Failed(Exception):
    """The server did not answer to the end; why."""


async def ask(
    asking: httpx.AsyncClient,
    endpoint: Endpoint,
    prompt: str,
    new_tokens: int,
    *,
    began: float,
    timeout_s: float,
) -> RequestTrace:
    """Send one request and read its answer; a failure is part of the trace.

    ``began`` is when the level did (``time.perf_counter``).
    """
    import httpx

    answer = _Answer()
    body = endpoint.body(prompt, new_tokens, stream=True)
    started = time.perf_counter()
    error = None
    try:
        async with asyncio.timeout(timeout_s):
            await _read(asking, endpoint.path, body, answer, started)
    except TimeoutError:
        error = f"no end within {timeout_s:g} s"
    except httpx.TimeoutException:
        error = "the server was silent too long"
    except httpx.HTTPError as exc:
        error = f"the connection broke: {shown(str(exc)) or type(exc).__name__}"
    except _Failed as exc:
        error = str(exc)
    ended_s = time.perf_counter() - started
    if error is None and not answer.chunks_s:
        error = "an answer without text"
    return RequestTrace(
        started_s=started - began,
        chunks_s=tuple(answer.chunks_s),
        ended_s=ended_s,
        new_tokens=answer.new_tokens or (new_tokens if answer.full else len(answer.chunks_s)),
        prompt_tokens=answer.prompt_tokens,
        error=error,
    )


class _Answer:
    """What has come so far."""

    def __init__(self) -> None:
        self.chunks_s: list[float] = []
        self.new_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.done = False
        self.full = False
        """It was stopped for its length."""

    def take(self, data: str, at_s: float) -> None:
        """One event's data. Raises _Failed for an error, and for what is no part of an answer."""
        if data.strip() == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise _Failed(f"an event that is no JSON: {shown(data)}") from exc
        if not isinstance(event, dict) or "error" in event:
            raise _Failed(f"an error in the answer: {shown(data)}")
        choices = event.get("choices")
        if isinstance(choices, list) and any(map(_has_text, choices)):
            self.chunks_s.append(at_s)
        for end in map(_end, choices if isinstance(choices, list) else []):
            self.done = self.done or end is not None
            self.full = self.full or end == "length"
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.new_tokens = _count(usage.get("completion_tokens")) or self.new_tokens
            self.prompt_tokens = _count(usage.get("prompt_tokens")) or self.prompt_tokens


async def _read(
    asking: httpx.AsyncClient, path: str, body: dict[str, Any], answer: _Answer, started: float
) -> None:
    from httpx_sse import EventSource, SSEError

    async with asking.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            said = bytearray()
            async for piece in response.aiter_bytes():
                said += piece
                if len(said) > _LARGEST_ERROR_BYTES:
                    break
            raise _Failed(f"status {response.status_code}: {shown(said.decode(errors='replace'))}")
        try:
            async for event in EventSource(response).aiter_sse():
                answer.take(event.data, time.perf_counter() - started)
        except SSEError as exc:
            raise _Failed(f"no stream of events: {shown(str(exc))}") from exc
    if not answer.done:
        raise _Failed("the answer ended in the middle")


def _has_text(choice: Any) -> bool:
    """True for a piece of text, of the answer itself or of a model's reasoning before it."""
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    places = [choice.get("text")]
    if isinstance(delta, dict):
        places += [delta.get("content"), delta.get("reasoning_content"), delta.get("reasoning")]
    return any(isinstance(text, str) and text for text in places)


def _end(choice: Any) -> Any:
    """Why the answer ended; None where it goes on."""
    return choice.get("finish_reason") if isinstance(choice, dict) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
