"""A server under load: so many requests at once, level by level.

URL ─► endpoint ─► prompts of the length that is asked for ─► for each concurrency:
    that many clients, each of which sends its next request when the last one is answered
    ─► RequestTrace ─► LoadLevel ─► ServerBenchmark
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmfit.errors import LlmfitError, UsageError
from llmfit.network import is_offline
from llmfit.redaction import known_secrets, without_password
from llmfit.serving.endpoint import Endpoint, address, client, count_tokens, find
from llmfit.serving.judging import level, saturation
from llmfit.serving.prompts import Prompts, fitted
from llmfit.serving.streaming import ask
from llmfit.serving_records import (
    Api,
    LoadLevel,
    RequestTrace,
    ServerBenchmark,
    ServerWorkload,
)
from llmfit.store.place import machine_name, utc_now

if TYPE_CHECKING:
    import httpx


Progress = Callable[[int, int, int], None]
"""Called as ``progress(concurrency, done, requests)``."""
_MOST_AT_ONCE = 4096
_OFF_BY = 0.1
"""Share by which prompts may miss their length before a note says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTarget:
    """The server that is to be measured, and what is known of it."""

    url: str
    served_model: str | None = None
    """The name to ask for; None for the only one that the server lists."""
    api: Api | None = None
    key: str | None = None
    """Never recorded."""
    model: str | None = None
    backend: str | None = None
    """What is served, for those who read the record."""
    tag: str | None = None


def bench_server(
    target: ServerTarget,
    workload: ServerWorkload,
    *,
    command: str | None = None,
    progress: Progress = lambda concurrency, done, requests: None,
) -> ServerBenchmark:
    """Measure a server that speaks OpenAI's API, from outside.

    Each prompt is sent once, after one that does not count. Requests that fail are counted with
    their reasons; levels go on. Raises UsageError for an address or a workload that is none, and
    LlmfitError where the server does not answer at all.
    """
    check_workload(workload)
    base = address(target.url)
    if is_offline() and not _is_local(base):
        raise UsageError(
            f"--offline uses no network, which {without_password(base)} is on.",
            hint="a server of this machine, such as http://127.0.0.1:8000",
        )
    return asyncio.run(_bench(target, base, workload, command, progress))


def check_workload(workload: ServerWorkload) -> None:
    """Raise UsageError for a load that no server can be put under."""
    levels = workload.concurrency
    if not levels or list(levels) != sorted(set(levels)) or levels[0] < 1:
        raise UsageError(
            f"the concurrencies {', '.join(map(str, levels))} are not rising numbers from 1 on.",
            hint="--concurrency 1,4,16",
        )
    if levels[-1] > _MOST_AT_ONCE:
        raise UsageError(f"{levels[-1]} requests at once are more than {_MOST_AT_ONCE}.")
    if workload.requests is not None and workload.requests < levels[-1]:
        raise UsageError(
            f"{workload.requests} requests are fewer than the {levels[-1]} that are to be under "
            "way at once.",
            hint=f"--requests {4 * levels[-1]}",
        )


async def _bench(
    target: ServerTarget,
    base: str,
    workload: ServerWorkload,
    command: str | None,
    progress: Progress,
) -> ServerBenchmark:
    started_at = utc_now()
    async with client(base, key=target.key, timeout_s=workload.timeout_s) as asking:
        endpoint = await find(asking, base, model=target.served_model, api=target.api)
        counting = partial(count_tokens, asking, endpoint)
        prompts = await fitted(workload.seed, workload.prompt_tokens, counting)
        numbers = count()
        await _warm_up(asking, endpoint, prompts, workload, next(numbers))
        levels = [
            await _level(asking, endpoint, prompts, workload, each, numbers, progress)
            for each in workload.concurrency
        ]
    _require_answers(levels, base)
    record = ServerBenchmark(
        benchmark_id=f"{_stamp(started_at)}-server-{uuid.uuid4().hex[:6]}",
        url=without_password(base),
        served_model=endpoint.model,
        server=endpoint.server,
        model=target.model,
        backend=target.backend,
        api=endpoint.api,
        workload=workload,
        levels=tuple(levels),
        saturation=saturation(levels),
        notes=(*endpoint.notes, *_notes(workload, levels, prompts)),
        local=_is_local(base),
        machine=machine_name(),
        tag=target.tag,
        started_at=started_at,
        command=command,
    )
    return known_secrets().hide_in(record)


async def _warm_up(
    asking: httpx.AsyncClient,
    endpoint: Endpoint,
    prompts: Prompts,
    workload: ServerWorkload,
    number: int,
) -> None:
    """One request that does not count: a server's first is slower than those that follow."""
    await ask(
        asking,
        endpoint,
        prompts.text(number),
        workload.new_tokens,
        began=time.perf_counter(),
        timeout_s=workload.timeout_s,
    )


async def _level(
    asking: httpx.AsyncClient,
    endpoint: Endpoint,
    prompts: Prompts,
    workload: ServerWorkload,
    concurrency: int,
    numbers: count[int],
    progress: Progress,
) -> LoadLevel:
    """Requests at one concurrency; ``numbers`` are of the prompts."""
    requests = workload.requests_at(concurrency)
    left = iter(range(requests))
    traces: list[RequestTrace] = []
    progress(concurrency, 0, requests)
    began = time.perf_counter()

    async def one_client() -> None:
        for _ in left:
            trace = await ask(
                asking,
                endpoint,
                prompts.text(next(numbers)),
                workload.new_tokens,
                began=began,
                timeout_s=workload.timeout_s,
            )
            traces.append(trace)
            progress(concurrency, len(traces), requests)

    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return level(concurrency, sorted(traces, key=lambda trace: trace.started_s))


def _require_answers(levels: list[LoadLevel], base: str) -> None:
    """Raise LlmfitError where no request of any level was answered."""
    if any(each.tokens_per_s for each in levels):
        return
    reasons = "; ".join(dict.fromkeys(reason for each in levels for reason in each.errors))
    raise LlmfitError(f"{without_password(base)} answered no request: {reasons}")


def _notes(workload: ServerWorkload, levels: list[LoadLevel], prompts: Prompts) -> tuple[str, ...]:
    """What was measured otherwise than it was asked."""
    notes = []
    sizes = [each.prompt_tokens for each in levels if each.prompt_tokens is not None]
    if not sizes and prompts.counted:
        notes.append("the length of prompts is by the server's count of two others")
    elif not sizes:
        notes.append("the server does not count a prompt's tokens: its length is estimated")
    elif max(abs(each / workload.prompt_tokens - 1) for each in sizes) > _OFF_BY:
        shown = " to ".join(dict.fromkeys(f"{each:.0f}" for each in (min(sizes), max(sizes))))
        notes.append(f"prompts had {shown} tokens on average, not {workload.prompt_tokens}")
    asked = sum((each.requests - sum(each.errors.values())) for each in levels)
    given = sum(each.new_tokens for each in levels)
    if asked and given < (1 - _OFF_BY) * asked * workload.new_tokens:
        notes.append(
            f"answers had {given / asked:.0f} tokens on average, not {workload.new_tokens}: "
            "the model ended them"
        )
    return tuple(notes)


def _stamp(moment: str) -> str:
    """``20260102-030405`` of ``2026-01-02T03:04:05…``."""
    return moment[:19].translate({ord("-"): None, ord(":"): None, ord("T"): "-"})


def _is_local(base: str) -> bool:
    host = urlsplit(base).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
