"""What is stored comes back, in a SQLite file and in PostgreSQL alike, and is never changed."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from stored_runs import head_of, rows_of, write_runs, write_until_killed

from llmfit.errors import StoreError, UsageError
from llmfit.records import Plan, Workload
from llmfit.store import database, schema
from llmfit.store.database import VERSION, connect, url_of
from llmfit.store.settings import settings_key
from llmfit.store.store import Store
from llmfit.testing import make_comparison, make_model, make_server

pytestmark = pytest.mark.filterwarnings("error")


def test_a_run_comes_back_as_it_was(store: Store) -> None:
    """Head, every row with its samples, differences and verdict."""
    comparison = make_comparison(rows_of(), run_id="a", budget_bytes=10**10)
    store.begin(head_of("a"))
    for position, row in enumerate(comparison.rows):
        store.add("a", position, row)
    assert not store.line("a").ended
    store.conclude(comparison)
    assert store.comparison("a") == comparison
    assert store.head("a") == head_of("a")
    assert store.row("a", "nf4") == replace(comparison.rows[1], difference=None)
    line = store.line("a")
    assert line.ended and line.pick == comparison.verdict.backend
    assert line.rows[1].figures["decode.tokens_per_s"] == 80.0


def test_an_interrupted_run_keeps_its_rows(store: Store) -> None:
    """It has a verdict on what there is, and is found as the one to go on with."""
    store.begin(head_of("a"))
    store.add("a", 0, rows_of()[0])
    found = store.comparison("a")
    assert [row.backend for row in found.rows] == ["bf16"] and found.verdict.backend == "bf16"
    line = store.unfinished("lab", "meta-llama/Llama-3.1-8B")
    assert line is not None and line.run_id == "a" and not line.ended
    assert store.unfinished("elsewhere", "meta-llama/Llama-3.1-8B") is None


def test_the_end_adds_rows_that_are_missing(store: Store) -> None:
    """As where the store could not be reached while they ran."""
    comparison = make_comparison(rows_of(), run_id="a")
    store.begin(head_of("a"))
    store.add("a", 1, comparison.rows[1])
    store.conclude(comparison)
    assert store.comparison("a") == comparison


def test_nothing_can_be_changed_or_removed(store: Store, place: str) -> None:
    """Not by us, nor by another program that opens the database."""
    store.put(head_of("a"), make_comparison(rows_of(), run_id="a"))
    engine = connect(place)
    for table in (schema.runs, schema.rows, schema.figures, schema.conclusions):
        column = next(iter(table.columns))
        for statement in (delete(table), update(table).values({column.name: column})):
            with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
                connection.execute(statement)
    engine.dispose()
    with pytest.raises(StoreError):
        store.begin(head_of("a"))
    assert not store.put(head_of("a"), make_comparison(rows_of(99), run_id="a"))
    assert store.line("a").rows[0].figures["decode.tokens_per_s"] == 40.0


def test_a_row_is_there_as_a_whole_or_not_at_all(store: Store) -> None:
    """A second row of the same format is refused, and leaves no figures behind."""
    store.begin(head_of("a"))
    store.add("a", 0, rows_of()[0])
    with pytest.raises(StoreError):
        store.add("a", 1, rows_of(50)[0])
    (series,) = [s for s in store.trends().series if s.key.metric == "decode.tokens_per_s"]
    assert [point.value for point in series.points] == [40.0]


def test_runs_are_listed_newest_first(store: Store) -> None:
    """All, of a model by its whole name or the last part, and so many at most."""
    for night in (1, 2, 3):
        store.put(head_of(f"r{night}", night=night), make_comparison(rows_of(), run_id=f"r{night}"))
    assert [line.run_id for line in store.history()] == ["r3", "r2", "r1"]
    assert [line.run_id for line in store.history("Llama-3.1-8B", limit=2)] == ["r3", "r2"]
    assert store.history("ama-3.1-8B") == store.history("%") == ()
    with pytest.raises(UsageError, match="no run 'x'"):
        store.line("x")


def test_series_keep_machines_models_and_settings_apart(store: Store) -> None:
    """In the order of time, whatever the order of adding."""
    for night, machine in ((3, "lab"), (1, "lab"), (2, "other"), (2, "lab")):
        run_id = f"{machine}{night}"
        rows = rows_of(40.0 + night, night=night)
        head = head_of(run_id, night=night, machine=machine)
        store.put(head, make_comparison(rows, run_id=run_id))
    found = {
        (s.key.machine, s.key.backend): [point.value for point in s.points]
        for s in store.trends().series
        if s.key.metric == "decode.tokens_per_s"
    }
    assert found[("lab", "bf16")] == [41.0, 42.0, 43.0]
    assert found[("lab", "nf4")] == [82.0, 84.0, 86.0]
    assert found[("other", "bf16")] == [42.0]
    assert {s.key.machine for s in store.trends(machine="other").series} == {"other"}
    assert store.trends(model="none").rows == store.trends(model="ama-3.1-8B").rows == ()
    assert store.trends(model="Llama-3.1-8B") == store.trends()
    rows = {(r.key.machine, r.key.backend): len(r.outcomes) for r in store.trends().rows}
    assert rows[("lab", "nf4")] == 3


def test_a_series_is_of_equal_settings() -> None:
    """Workload, budget and tasks are; the model's files, paths and versions are not."""
    plan = Plan(backend="nf4", model=make_model(), device="cuda")
    same = replace(
        plan, model=make_model(content_hash="x"), cache_dir="/elsewhere", command="another"
    )
    assert settings_key(plan) == settings_key(same)
    others = [
        replace(plan, workload=Workload(batch=2)),
        replace(plan, budget_bytes=10**9),
        replace(plan, evaluation=None),
        replace(plan, kv_cache_dtype="q8_0"),
        replace(plan, device="cpu"),
    ]
    assert len({settings_key(each) for each in (plan, *others)}) == 6


def test_files_count_by_content_and_not_by_place() -> None:
    """The same text in another folder is the same setting."""
    plan = Plan(backend="nf4", model=make_model(), device="cuda")
    assert plan.evaluation is not None

    def with_text(path: str, digest: str) -> str:
        asked = replace(plan.evaluation, text_file=path)
        return settings_key(replace(plan, evaluation=asked, inputs={path: digest}))

    assert with_text("/a/text", "1") == with_text("/b/text", "1") != with_text("/a/text", "2")


# ---------------------------------------------------------------- several processes, faults


@pytest.mark.slow
def test_writers_at_once_lose_nothing(place: str) -> None:
    """Four processes, ten runs each, into a store that none has opened before."""
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_runs, args=(place, f"w{n}", 10)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    with Store(place) as store:
        lines = store.history()
        assert len(lines) == 40 and all(line.ended and len(line.rows) == 2 for line in lines)
        assert sum(len(s.points) for s in store.trends().series) == 40 * sum(
            len(row.figures) for row in lines[0].rows
        )


@pytest.mark.slow
def test_a_writer_that_is_killed_loses_nothing_stored(place: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: every run that was told of is there, whole."""
    told = tmp_path / "told"
    spawn = multiprocessing.get_context("spawn")
    writer = spawn.Process(target=write_until_killed, args=(place, told))
    writer.start()
    while not told.exists() or len(told.read_text().splitlines()) < 5:
        assert writer.is_alive()
    writer.kill()
    writer.join()
    last = int(told.read_text().splitlines()[-1])
    with Store(place) as store:
        lines = {line.run_id: line for line in store.history()}
        for number in range(last + 1):
            assert lines[f"k-{number}"].ended
            assert len(store.comparison(f"k-{number}").rows) == 2
        assert len(lines) in (last + 1, last + 2)
        assert all(len(line.rows) == 2 and line.ended for line in lines.values())


# ---------------------------------------------------------------- servers


def test_servers_come_back_as_they_were(store: Store) -> None:
    """The newest first; of a model by what it was told, or is served by."""
    first = make_server("a", model="org/m", backend="awq")
    second = make_server("b", started_at="2026-01-03", served_model="org/m")
    other = make_server("c", started_at="2026-01-04", model="org/n", served_model="n")
    for each in (second, first, other):
        assert store.add_server(each)
    assert not store.add_server(replace(first, model="changed"))
    assert store.servers() == (other, second, first)
    assert store.servers("m") == store.servers("org/m") == (second, first)
    assert store.servers(limit=1) == (other,) and store.servers(machine="elsewhere") == ()
    assert store.server("a") == first and store.server("x") is None


def test_what_is_stored_of_servers_is_never_changed(store: Store, place: str) -> None:
    store.add_server(make_server("a"))
    engine = connect(place)
    for statement in (delete(schema.servers), update(schema.servers).values(tag="x")):
        with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
            connection.execute(statement)
    engine.dispose()


# ---------------------------------------------------------------- versions and addresses


def test_a_store_of_the_first_version_is_brought_to_this_one(place: str) -> None:
    """What it holds stays, and what is new is there."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = Path(database.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    engine = create_engine(url_of(place))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        kept = {"session_id": "s", "config_hash": "h", "machine": "lab", "started_at": "2026"}
        connection.execute(insert(schema.sessions).values(**kept, body=b""))
    engine.dispose()
    with Store(place) as opened:
        opened.add_server(make_server("a"))
        assert opened.servers() == (make_server("a"),)
    engine = connect(place)
    with engine.connect() as connection:
        assert connection.execute(select(schema.sessions.c.session_id)).scalars().all() == ["s"]
    engine.dispose()


def test_the_tables_are_those_of_the_code(place: str) -> None:
    """What the migrations make is what the queries are written for."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = connect(place)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
        assert context.get_current_revision() == VERSION
    engine.dispose()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(place: str) -> None:
    """With the way out."""
    engine = connect(place)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="version 9999") as refused:
        Store(place)
    assert "--upgrade" in str(refused.value)


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("mysql://root@host/x", UsageError, "not mysql"),
        ("postgresql://host:port/x", UsageError, "cannot be read"),
        ("/proc/none/store.db", StoreError, "cannot make the store's folder"),
        ("/proc", StoreError, "unable to open database file"),
    ],
)
def test_a_place_that_is_none(place: str, error: type[Exception], said: str) -> None:
    """One error, that names it."""
    with pytest.raises(error, match=said):
        Store(place)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """It is not written over."""
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and longer than a hundred bytes " * 10)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a database"):
        Store(path)
    assert path.read_bytes() == before


def test_a_password_is_in_no_message() -> None:
    """Of a server that is not there."""
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as refused:
        Store("postgresql://me:hunter2secret@127.0.0.1:1/x")
    assert "hunter2secret" not in str(refused.value) and "127.0.0.1" in str(refused.value)
    assert "hunter2secret" not in repr(url_of("postgresql://me:hunter2secret@h/x"))


def test_sqlite_keeps_a_log_so_that_readers_do_not_wait(tmp_path: Path) -> None:
    """The write-ahead log, and commits that are on disk when they return."""
    with Store(tmp_path / "s.db"):
        pass
    engine = create_engine(f"sqlite:///{tmp_path / 's.db'}")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    engine.dispose()


def test_a_store_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    """A slip in ``history --store`` leaves no folders and databases behind."""
    place = tmp_path / "no" / "such" / "store.db"
    with Store(place, to_read=True) as store:
        assert store.history() == () and store.trends().rows == ()
        assert store.name == str(place)
    assert not (tmp_path / "no").exists()


def test_a_store_that_cannot_be_written_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk: as it is, without its log; and nothing can be added."""
    place = tmp_path / "a store?.db"
    with Store(place) as store:
        store.put(head_of("a"), make_comparison(rows_of(), run_id="a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(database, "_writable", lambda file: False)
    with Store(place, to_read=True) as store:
        assert [line.run_id for line in store.history()] == ["a"]
        with pytest.raises(StoreError, match="readonly"):
            store.begin(head_of("b"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
