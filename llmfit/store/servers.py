"""Servers that were measured from outside, in the store: added once, read back whole."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, insert, select

from llmfit.serving_records import ServerBenchmark
from llmfit.store.bodies import packed, unpacked
from llmfit.store.place import machine_name
from llmfit.store.schema import servers


def add_server(connection: Connection, found: ServerBenchmark) -> bool:
    """Add it; False where one of that id is there."""
    known = select(servers.c.benchmark_id).where(servers.c.benchmark_id == found.benchmark_id)
    if connection.execute(known).first() is not None:
        return False
    machine = found.machine or machine_name()
    connection.execute(
        insert(servers).values(
            benchmark_id=found.benchmark_id,
            machine=machine,
            model=found.model,
            served_model=found.served_model,
            backend=found.backend,
            started_at=found.started_at,
            tag=found.tag,
            body=packed(replace(found, machine=machine)),
        )
    )
    return True


def read_servers(
    connection: Connection, *, model: str | None, machine: str | None, limit: int | None
) -> tuple[ServerBenchmark, ...]:
    """All of a model, by the name it was told or is served by, or its last part; newest first."""
    chosen = select(servers.c.benchmark_id, servers.c.body)
    if model is not None:
        names = (servers.c.model, servers.c.served_model)
        same = names[0] == model
        for name in names:
            same = same | (name == model) | name.endswith(f"/{model}", autoescape=True)
        chosen = chosen.where(same)
    if machine is not None:
        chosen = chosen.where(servers.c.machine == machine)
    newest_first = servers.c.started_at.desc(), servers.c.benchmark_id.desc()
    found = connection.execute(chosen.order_by(*newest_first).limit(limit)).all()
    return tuple(_unpacked(benchmark_id, body) for benchmark_id, body in found)


def read_server(connection: Connection, benchmark_id: str) -> ServerBenchmark | None:
    """The one of that id; None where there is none."""
    chosen = select(servers.c.body).where(servers.c.benchmark_id == benchmark_id)
    body = connection.execute(chosen).scalar()
    return None if body is None else _unpacked(benchmark_id, body)


def _unpacked(benchmark_id: str, body: bytes) -> ServerBenchmark:
    return unpacked(ServerBenchmark, body, source=f"server {benchmark_id}")
