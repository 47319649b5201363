"""Every run's record, added row by row, and read back as records and as series over time.

    RunHead ─► begin ─► add(RunRecord), a row as it ends ─► conclude(Comparison)
    store ─► history, row, comparison, trends

What is added is there, whole, when the call returns. Nothing is changed later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Select, insert, select

from llmfit.errors import UsageError
from llmfit.planning.trends.figures import figures_of
from llmfit.planning.verdict.constraints import Constraints
from llmfit.planning.verdict.judge import Judge
from llmfit.records import Comparison, RunRecord
from llmfit.serving_records import ServerBenchmark
from llmfit.store.bodies import packed, unpacked
from llmfit.store.database import connect, reading, shown, url_of, writing
from llmfit.store.heads import Conclusion, RowLine, RunHead, RunLine
from llmfit.store.place import default_place, machine_name, utc_now
from llmfit.store.schema import (
    conclusions,
    figures,
    is_model,
    rows,
    runs,
    session_ends,
    sessions,
)
from llmfit.store.servers import add_server, read_server, read_servers
from llmfit.store.settings import settings_key
from llmfit.store.trends import Trends, read_trends
from llmfit.trend_records import NightHead, NightResult


class Store:
    """A results store: a SQLite file, or a PostgreSQL database that machines share."""

    def __init__(self, place: str | Path | None = None, *, to_read: bool = False) -> None:
        """Open ``place``, and make its tables where they are missing.

        None is the default place. A store that is only ``to_read`` makes no file, and is empty
        where there is none. Raises UsageError for an address that is none, and StoreError where the
        database cannot be opened.
        """
        where = default_place() if place is None else place
        self._name = shown(url_of(where))
        self._engine = connect(where, to_read=to_read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    @property
    def name(self) -> str:
        """The place for people, without a password."""
        return self._name

    # ------------------------------------------------------------ adding

    def begin(self, head: RunHead) -> None:
        """Add a run before its first row. Raises StoreError."""
        with writing(self._engine) as connection:
            connection.execute(insert(runs).values(**_run_values(head)))

    def add(self, run_id: str, position: int, record: RunRecord) -> None:
        """Add a row of a run that was begun, with its figures. Raises StoreError."""
        with writing(self._engine) as connection:
            _add_row(connection, run_id, position, record)

    def conclude(self, comparison: Comparison) -> None:
        """Add how a run ended, and those of its rows that are not there yet. Raises StoreError."""
        with writing(self._engine) as connection:
            names = tuple(row.backend for row in comparison.rows)
            _add_missing_rows(connection, comparison, names)
            connection.execute(insert(conclusions).values(**_conclusion_values(comparison)))

    def put(self, head: RunHead, comparison: Comparison, *, ended: bool = True) -> bool:
        """Add a whole run at once; False where one of that id is there and nothing of it missing.

        Of a run that was begun and not ended what is missing is added. A night that this store does
        not know stays named in the run's head alone. Raises StoreError.
        """
        begun = select(runs.c.run_id).where(runs.c.run_id == head.run_id)
        over = select(conclusions.c.run_id).where(conclusions.c.run_id == head.run_id)
        with writing(self._engine) as connection:
            known = connection.execute(begun).first() is not None
            if connection.execute(over).first() is not None:
                return False
            if not known:
                night = select(sessions.c.session_id).where(
                    sessions.c.session_id == head.session_id
                )
                there = connection.execute(night).scalar()
                connection.execute(insert(runs).values(**_run_values(head) | {"session_id": there}))
            added = _add_missing_rows(connection, comparison, head.backends)
            if ended:
                connection.execute(insert(conclusions).values(**_conclusion_values(comparison)))
        return ended or added or not known

    def begin_session(self, head: NightHead) -> None:
        """Add a night before its first run. Raises StoreError."""
        with writing(self._engine) as connection:
            connection.execute(
                insert(sessions).values(
                    session_id=head.session_id,
                    config_hash=head.config_hash,
                    machine=head.machine,
                    started_at=head.started_at,
                    tag=head.tag,
                    body=packed(head),
                )
            )

    def end_session(self, result: NightResult) -> None:
        """Add how a night ended. Raises StoreError."""
        with writing(self._engine) as connection:
            connection.execute(
                insert(session_ends).values(
                    session_id=result.session_id, ended_at=result.ended_at, body=packed(result)
                )
            )

    def add_server(self, found: ServerBenchmark) -> bool:
        """Add a server's figures; False where they are there. Raises StoreError."""
        with writing(self._engine) as connection:
            return add_server(connection, found)

    # ------------------------------------------------------------ reading

    def unended_session(self, machine: str, config_hash: str, *, since: str) -> NightHead | None:
        """The newest night of that machine and settings that began after ``since`` and has not
        ended. Raises StoreError.
        """
        chosen = (
            select(sessions.c.session_id, sessions.c.body)
            .outerjoin(session_ends)
            .where(
                sessions.c.machine == machine,
                sessions.c.config_hash == config_hash,
                sessions.c.started_at >= since,
                session_ends.c.session_id.is_(None),
            )
            .order_by(sessions.c.started_at.desc())
        )
        with reading(self._engine) as connection:
            found = connection.execute(chosen.limit(1)).first()
        if found is None:
            return None
        return unpacked(NightHead, found.body, source=f"session {found.session_id}")

    def runs_of(self, session_id: str) -> tuple[RunHead, ...]:
        """The runs of a night, in their order. Raises StoreError."""
        chosen = select(runs.c.run_id, runs.c.body).where(runs.c.session_id == session_id)
        with reading(self._engine) as connection:
            found = connection.execute(chosen.order_by(runs.c.started_at)).all()
        return tuple(unpacked(RunHead, each.body, source=f"run {each.run_id}") for each in found)

    def head(self, run_id: str) -> RunHead:
        """How a run began. Raises UsageError for an unknown id, and StoreError."""
        with reading(self._engine) as connection:
            body = connection.execute(select(runs.c.body).where(runs.c.run_id == run_id)).scalar()
        if body is None:
            raise UsageError(f"there is no run {run_id!r} in {self.name}.", hint="llmfit history")
        return unpacked(RunHead, body, source=f"run {run_id}")

    def row(self, run_id: str, backend: str) -> RunRecord | None:
        """The whole record of a row; None where it is not there. Raises StoreError."""
        chosen = select(rows.c.body).where(rows.c.run_id == run_id, rows.c.backend == backend)
        with reading(self._engine) as connection:
            body = connection.execute(chosen).scalar()
        if body is None:
            return None
        return unpacked(RunRecord, body, source=f"row {backend} of {run_id}")

    def comparison(self, run_id: str) -> Comparison:
        """A whole run; one that came to no end with the rows that it has, and their verdict.

        Raises UsageError for an unknown id, and StoreError.
        """
        head = self.head(run_id)
        chosen = (
            select(rows.c.backend, rows.c.body)
            .where(rows.c.run_id == run_id)
            .order_by(rows.c.position, rows.c.row_id)
        )
        ending = select(conclusions.c.body).where(conclusions.c.run_id == run_id)
        with reading(self._engine) as connection:
            bodies = connection.execute(chosen).all()
            end = connection.execute(ending).scalar()
        records = tuple(
            unpacked(RunRecord, body, source=f"row {backend} of {run_id}")
            for backend, body in bodies
        )
        if end is None:
            return _unfinished(head, records)
        conclusion = unpacked(Conclusion, end, source=f"end of run {run_id}")
        judged = (replace(r, difference=conclusion.differences.get(r.backend)) for r in records)
        return replace(conclusion.comparison, rows=tuple(judged))

    def history(
        self, model: str | None = None, *, limit: int | None = None, run_ids: Iterable[str] = ()
    ) -> tuple[RunLine, ...]:
        """Runs, the newest first: all, or those of ``model``, or those of ``run_ids``.

        ``model`` is a name as it was given, or the last part of one. Raises StoreError.
        """
        picked = select(runs.c.run_id)
        if model is not None:
            picked = picked.where(is_model(model))
        wanted = tuple(run_ids)
        if wanted:
            picked = picked.where(runs.c.run_id.in_(wanted))
        newest_first = runs.c.started_at.desc(), runs.c.run_id.desc()
        picked = picked.order_by(*newest_first).limit(limit)
        columns = runs, conclusions.c.ended_at, conclusions.c.pick
        chosen = select(*columns).outerjoin(conclusions).where(runs.c.run_id.in_(picked))
        with reading(self._engine) as connection:
            found = connection.execute(chosen.order_by(*newest_first)).all()
            lines = connection.execute(_rows_of(picked)).all()
            values = connection.execute(_figures_of(picked)).all()
        by_row: dict[int, dict[str, float]] = {}
        for row_id, metric, value in values:
            by_row.setdefault(row_id, {})[metric] = value
        by_run: dict[str, list[RowLine]] = {}
        for each in lines:
            by_run.setdefault(each.run_id, []).append(
                RowLine(
                    backend=each.backend,
                    label=each.label,
                    status=each.status,
                    reason=each.reason,
                    figures=by_row.get(each.row_id, {}),
                )
            )
        return tuple(
            RunLine(
                run_id=each.run_id,
                started_at=each.started_at,
                machine=each.machine,
                model=each.model,
                tag=each.tag,
                session_id=each.session_id,
                ended=each.ended_at is not None,
                pick=each.pick,
                rows=tuple(by_run.get(each.run_id, ())),
            )
            for each in found
        )

    def line(self, run_id: str) -> RunLine:
        """One run. Raises UsageError for an unknown id, and StoreError."""
        found = self.history(run_ids=(run_id,))
        if not found:
            raise _no_run(run_id, self.name)
        return found[0]

    def tagged(self, name: str) -> frozenset[str]:
        """Ids of the runs with that tag, or of that id or night. Raises StoreError."""
        of = (runs.c.tag == name) | (runs.c.run_id == name) | (runs.c.session_id == name)
        with reading(self._engine) as connection:
            return frozenset(connection.execute(select(runs.c.run_id).where(of)).scalars())

    def unfinished(self, machine: str, model: str) -> RunLine | None:
        """The newest run of that model there that has not ended. Raises StoreError.

        Others may have ended since, or seem to, where a clock was put right meanwhile.
        """
        newest = (
            select(runs.c.run_id)
            .outerjoin(conclusions)
            .where(
                runs.c.machine == machine,
                runs.c.model == model,
                conclusions.c.run_id.is_(None),
            )
            .order_by(runs.c.started_at.desc(), runs.c.run_id.desc())
        )
        with reading(self._engine) as connection:
            run_id = connection.execute(newest.limit(1)).scalar()
        return None if run_id is None else self.line(run_id)

    def servers(
        self, model: str | None = None, *, machine: str | None = None, limit: int | None = None
    ) -> tuple[ServerBenchmark, ...]:
        """Servers that were measured, the newest first: all, or those of ``model``.

        Raises StoreError.
        """
        with reading(self._engine) as connection:
            return read_servers(connection, model=model, machine=machine, limit=limit)

    def server(self, benchmark_id: str) -> ServerBenchmark | None:
        """The server's figures of that id; None where there are none. Raises StoreError."""
        with reading(self._engine) as connection:
            return read_server(connection, benchmark_id)

    def trends(self, *, machine: str | None = None, model: str | None = None) -> Trends:
        """How all rows and their figures went over time. Raises StoreError."""
        with reading(self._engine) as connection:
            return read_trends(connection, machine=machine, model=model)


# ---------------------------------------------------------------- values and statements


def _no_run(run_id: str, store: str) -> UsageError:
    return UsageError(f"there is no run {run_id!r} in {store}.", hint="llmfit history")


def _run_values(head: RunHead) -> dict[str, Any]:
    machine = head.machine or machine_name()
    return {
        "run_id": head.run_id,
        "session_id": head.session_id,
        "machine": machine,
        "model": head.model.name,
        "started_at": head.started_at,
        "tag": head.tag,
        "body": packed(replace(head, machine=machine)),
    }


def _add_missing_rows(connection: Connection, comparison: Comparison, names: Sequence[str]) -> bool:
    """Rows that are there stay as they are; True where any was added.

    ``names`` are the run's rows in the table's order; one that was added to them comes last.
    """
    known = select(rows.c.backend).where(rows.c.run_id == comparison.run_id)
    there = set(connection.execute(known).scalars())
    missing = [record for record in comparison.rows if record.backend not in there]
    for record in missing:
        place = names.index(record.backend) if record.backend in names else len(names)
        _add_row(connection, comparison.run_id, place, record)
    return bool(missing)


def _add_row(connection: Connection, run_id: str, position: int, record: RunRecord) -> None:
    made = connection.execute(
        insert(rows).values(
            run_id=run_id,
            position=position,
            backend=record.backend,
            label=record.label,
            settings=settings_key(record.plan),
            status=record.status,
            reason=record.reason,
            started_at=record.started_at or utc_now(),
            # The difference is known at the end, and stored there.
            body=packed(replace(record, difference=None)),
        )
    )
    assert made.inserted_primary_key is not None  # of a table with a primary key it is there
    row_id = made.inserted_primary_key[0]
    found = [{"row_id": row_id, **asdict(each)} for each in figures_of(record)]
    if found:
        connection.execute(insert(figures), found)


def _conclusion_values(comparison: Comparison) -> dict[str, Any]:
    differences = {r.backend: r.difference for r in comparison.rows if r.difference is not None}
    conclusion = Conclusion(comparison=replace(comparison, rows=()), differences=differences)
    return {
        "run_id": comparison.run_id,
        "ended_at": utc_now(),
        "pick": comparison.verdict.backend,
        "body": packed(conclusion),
    }


def _unfinished(head: RunHead, records: tuple[RunRecord, ...]) -> Comparison:
    within = Constraints(memory_bytes=head.budget_bytes, ram_bytes=head.ram_budget_bytes)
    judged, verdict = (head.judge or Judge(constraints=within)).judged(records)
    return Comparison(
        run_id=head.run_id,
        model=head.model,
        workload=head.workload,
        budget_bytes=head.budget_bytes,
        ram_budget_bytes=head.ram_budget_bytes,
        rows=judged,
        verdict=verdict,
        environment=head.environment,
        command=head.command,
        record=head.record,
    )


def _rows_of(run_ids: Select[Any]) -> Select[Any]:
    columns = (
        rows.c.row_id,
        rows.c.run_id,
        rows.c.backend,
        rows.c.label,
        rows.c.status,
        rows.c.reason,
    )
    order = rows.c.run_id, rows.c.position, rows.c.row_id
    return select(*columns).where(rows.c.run_id.in_(run_ids)).order_by(*order)


def _figures_of(run_ids: Select[Any]) -> Select[Any]:
    columns = figures.c.row_id, figures.c.metric, figures.c.value
    return select(*columns).select_from(figures.join(rows)).where(rows.c.run_id.in_(run_ids))
