"""The frozen records of servers under load, and their JSON (``records.to_json``).

    ServerWorkload ─► LoadLevel, one a concurrency ─► ServerBenchmark

As in ``records.py``: units in names, None is "not known", field names are the JSON's keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmfit.records import SCHEMA_VERSION, Device

Api = Literal["completions", "chat"]
"""OpenAI's two: a prompt is continued (``/v1/completions``), or a message answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWorkload:
    """What is asked of a server, the same at every concurrency."""

    concurrency: tuple[int, ...] = (1, 4, 16)
    """Requests under way at once, one level each, rising."""
    prompt_tokens: int = 128
    new_tokens: int = 64
    requests: int | None = None
    """Of each level; None for four times its concurrency, and eight at least."""
    seed: int = 0
    """Of the prompts, of which no two are the same."""
    timeout_s: float = 600.0
    """How long a request may take."""

    def requests_at(self, concurrency: int) -> int:
        """Requests of the level of this concurrency."""
        return max(8, 4 * concurrency) if self.requests is None else self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """A distribution of seconds over the requests, or the gaps between tokens, of a level."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """One request as its client saw it."""

    started_s: float
    """Since the level began."""
    chunks_s: tuple[float, ...] = ()
    """When text came, since the request was sent; the first is the time to the first token."""
    ended_s: float
    """When the answer or the failure was complete, since the request was sent."""
    new_tokens: int | None = None
    """As the server counts them; where it does not say, all that were asked for if it stopped for
    that length, and its chunks of text otherwise."""
    prompt_tokens: int | None = None
    error: str | None = None
    """Why it was not answered to its end; None where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLevel:
    """All requests at one concurrency. Distributions are of those that were answered."""

    concurrency: int
    requests: int
    """All that were sent, failed ones included."""
    duration_s: float
    """From the first request's start to the last one's end."""
    new_tokens: int
    """Of all answers together."""
    tokens_per_s: float | None
    """New tokens of all answers ÷ the duration; None where nothing was answered."""
    requests_per_s: float | None
    ttft: Percentiles | None
    """Time to first token."""
    itl: Percentiles | None
    """Inter-token latency: gaps between pieces of text of one answer, over all gaps."""
    tpot: Percentiles | None
    """Time per output token, by answer: (end − first token) ÷ (new tokens − 1)."""
    latency: Percentiles | None
    """Of whole answers."""
    prompt_tokens: float | None = None
    """Mean, as the server counts them."""
    errors: dict[str, int] = field(default_factory=dict)
    """How many requests failed, by reason."""
    traces: tuple[RequestTrace, ...] = ()
    """Each request in the order of its start."""


# ---------------------------------------------------------------- a bundle

Validation = Literal["started", "checked"]
"""The engine was started on the bundle and answered; or its files were read and are whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """A file of the model in a bundle."""

    path: str
    """From the bundle's folder."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What ``llmfit deploy`` made."""

    schema_version: int = SCHEMA_VERSION
    model: str
    backend: str
    engine: str
    name: str
    """What requests call it."""
    context: int | None
    """Tokens that the engine is bound to; None where it takes no such bound."""
    device: Device
    gpu_share: float | None = None
    command: tuple[str, ...]
    """What starts the engine, from the bundle's folder."""
    files: tuple[BundleFile, ...]
    validation: Validation
    validated_by: str
    """The engine that was started, or what was read."""
    run_id: str | None = None
    """The stored run whose figures its README has; None where none was found."""
    notes: tuple[str, ...] = ()
    made_by: str | None = None
    """The command line."""


# ---------------------------------------------------------------- a server


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBenchmark:
    """A server, measured from outside."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["server benchmark"] = "server benchmark"
    benchmark_id: str
    url: str
    """Without a password."""
    served_model: str
    """The name by which requests ask for it."""
    server: str | None = None
    """What the server calls itself in its answers' headers."""
    model: str | None = None
    backend: str | None = None
    """The model and format that are served, where that is known: by them these figures stand
    beside those of ``llmfit compare``."""
    api: Api
    workload: ServerWorkload
    levels: tuple[LoadLevel, ...]
    saturation: int | None = None
    """The smallest concurrency whose throughput no higher one exceeds by ``SATURATED``; None where
    the highest that was measured still gained."""
    notes: tuple[str, ...] = ()
    local: bool = False
    """The server is on the client's machine."""
    machine: str | None = None
    """Name of the client's machine, as in the store."""
    tag: str | None = None
    started_at: str
    command: str | None = None
