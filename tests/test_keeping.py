"""Records of a run: a store that fails costs no row, and what is missing can be added."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmfit.errors import RunChanged, StoreError, UsageError
from llmfit.keeping import LAST, REFERENCE_FILE, Keeping, keep
from llmfit.lookup import find_record
from llmfit.planning.verdict.constraints import Constraints
from llmfit.planning.verdict.judge import Judge
from llmfit.records import (
    NOT_FINISHED,
    Comparison,
    Environment,
    EvaluationSettings,
    Plan,
    RunRecord,
    Verdict,
)
from llmfit.store.exchange import Imported, import_runs
from llmfit.store.store import Store
from llmfit.testing import make_model, make_record

MACHINE = Environment(platform="Linux", python="3.11", cpu="CPU", cpu_cores=2, ram_bytes=2**34)
PLANS = [Plan(backend=name, model=make_model(), device="cpu") for name in ("bf16", "nf4")]


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    """Folder and store of the test."""
    return Keeping(runs_dir=str(tmp_path / "runs"), store=str(tmp_path / "store.db"), machine="lab")


def ended(run_id: str, rows: tuple[RunRecord, ...]) -> Comparison:
    """How the run ended."""
    return Comparison(
        run_id=run_id,
        model=PLANS[0].model,
        workload=PLANS[0].workload,
        budget_bytes=None,
        rows=rows,
        verdict=Verdict(backend="nf4", reasons=()),
        environment=MACHINE,
    )


def test_a_store_that_fails_costs_no_row(keeping: Keeping, tmp_path: Path) -> None:
    """The database refuses rows from the second on: both are in the folder, which is imported."""
    keeper = keep(PLANS, MACHINE, keeping, command=None)
    rows = (make_record("bf16"), make_record("nf4"))
    keeper.add(0, rows[0])
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON rows BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    keeper.add(1, rows[1])
    kept = keeper.conclude(ended(keeper.run_id, rows))
    keeper.close()
    assert "disk full" in str(kept.store_error)
    assert f"llmfit import {keeper.folder}" in str(kept.store_error)
    assert {path.name for path in keeper.folder.iterdir()} == {
        "bf16.json", "nf4.json", "comparison.json",
    }  # fmt: skip
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("DROP TRIGGER full")
    with Store(keeping.store) as store:
        assert import_runs(store, [keeper.folder]) == Imported(added=1, known=0)
        assert store.comparison(keeper.run_id) == replace(kept, store_error=None)


def test_an_interrupted_run_tells_what_the_store_refused(keeping: Keeping, tmp_path: Path) -> None:
    """Else a row that ran would be neither stored nor told of."""
    keeper = keep(PLANS, MACHINE, keeping, command=None)
    row = make_record("bf16")
    assert keeper.interrupt(ended(keeper.run_id, (row,))).store_error is None
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON rows BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    keeper.add(0, row)
    assert "disk full" in str(keeper.interrupt(ended(keeper.run_id, (row,))).store_error)
    keeper.close()


def test_an_interrupted_folder_is_imported_as_what_it_is(keeping: Keeping) -> None:
    """Not as a run that has ended, which could not be gone on with; its order stays."""
    keeper = keep(PLANS, MACHINE, keeping, command=None)
    bf16, nf4 = make_record("bf16"), make_record("nf4")
    keeper.add(1, nf4)
    unfinished = replace(bf16, status="skipped", reason=NOT_FINISHED)
    keeper.interrupt(ended(keeper.run_id, (unfinished, nf4)))
    keeper.close()
    for place, added in ((keeping.store, 0), (f"{keeping.store}.other", 1)):
        with Store(place) as store:
            assert import_runs(store, [keeper.folder], machine="lab").added == added
            line = store.line(keeper.run_id)
            assert not line.ended and [row.backend for row in line.rows] == ["nf4"]
    for place in (keeping.store, f"{keeping.store}.other"):
        again = keep(PLANS, MACHINE, replace(keeping, store=place, resume=LAST), command=None)
        again.add(0, bf16)
        again.conclude(ended(again.run_id, (bf16, nf4)))
        again.close()
        with Store(place) as store:
            line = store.line(keeper.run_id)
            assert line.ended and [row.backend for row in line.rows] == ["bf16", "nf4"]


def test_a_store_that_cannot_be_opened_ends_it_before_a_row_runs(keeping: Keeping) -> None:
    """Hours of work would have nowhere to go."""
    with pytest.raises(StoreError, match="cannot make the store's folder"):
        keep(PLANS, MACHINE, replace(keeping, store="/proc/none/s.db"), command=None)


def test_an_interrupted_run_is_gone_on_with(keeping: Keeping) -> None:
    """With its rows, its folder and its name; by ``last`` too."""
    first = keep(PLANS, MACHINE, keeping, command=None)
    first.add(0, make_record("bf16"))
    first.close()
    for name in (first.run_id, LAST):
        again = keep(PLANS, MACHINE, replace(keeping, resume=name), command=None)
        assert again.folder == first.folder and again.record == first.record
        assert list(again.done) == ["bf16"]
        again.close()


def test_only_the_same_can_be_gone_on_with(keeping: Keeping) -> None:
    """Neither other rows, nor a run that has ended, nor one that is not there."""
    first = keep(PLANS, MACHINE, keeping, command="llmfit compare x")
    resumed = replace(keeping, resume=LAST)
    with pytest.raises(UsageError, match="of other rows") as refused:
        keep(PLANS[:1], MACHINE, resumed, command=None)
    assert refused.value.hint == "llmfit compare x"
    first.conclude(ended(first.run_id, (make_record("bf16"),)))
    first.close()
    with pytest.raises(UsageError, match="no interrupted run"):
        keep(PLANS, MACHINE, resumed, command=None)
    with pytest.raises(UsageError, match="has ended"):
        keep(PLANS, MACHINE, replace(keeping, resume=first.run_id), command=None)
    with pytest.raises(UsageError, match="there is no run 'x'"):
        keep(PLANS, MACHINE, replace(keeping, resume="x"), command=None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kv_cache_dtype": "q8_0"}, "kv_cache_dtype is None in one and 'q8_0' in the other"),
        ({"weights": "synthetic"}, "weights is 'real'"),
        ({"seed": 1}, "seed is 0"),
        ({"threads": 1}, "threads is None"),
        ({"ram_budget_bytes": 10**9}, "ram_budget_bytes is None"),
        ({"gpus": 2}, "gpus is 1"),
        ({"checkpoint": "/other"}, "checkpoint is None"),
        ({"evaluation": None}, "evaluation is EvaluationSettings"),
        ({"evaluation": EvaluationSettings(limit=5)}, "evaluation.limit is None"),
    ],
)
def test_rows_of_other_settings_are_not_mixed(
    keeping: Keeping, changes: dict[str, object], named: str
) -> None:
    """Half of a table with another KV cache, say, and nothing to tell it by."""
    first = keep(PLANS, MACHINE, keeping, command="llmfit compare x")
    first.add(0, make_record("bf16", plan=PLANS[0], environment=MACHINE))
    first.close()
    changed = [replace(plan, **changes) for plan in PLANS]  # type: ignore[arg-type]
    resumed = replace(keeping, resume=LAST)
    with pytest.raises(RunChanged, match=named) as refused:
        keep(changed, MACHINE, resumed, command=None)
    assert refused.value.hint == "llmfit compare x"
    again = keep(PLANS, MACHINE, resumed, command=None)  # the folder was given back
    assert list(again.done) == ["bf16"]
    again.close()


def test_a_row_that_an_upgrade_parts_from_new_ones_is_told_at_once(keeping: Keeping) -> None:
    """Not after hours, when the rows cannot be held against each other; a failed one can stay."""
    upgraded = replace(MACHINE, packages={"torch": "2.14.0"})
    first = keep(PLANS, MACHINE, keeping, command=None)
    failed = make_record("nf4", plan=PLANS[1], environment=MACHINE)
    first.add(1, replace(failed, status="failed", reason="killed"))
    resumed = replace(keeping, resume=first.run_id)
    first.close()
    keep(PLANS, upgraded, resumed, command=None).close()
    again = keep(PLANS, MACHINE, resumed, command=None)
    again.add(0, make_record("bf16", plan=PLANS[0], environment=MACHINE))
    again.close()
    with pytest.raises(RunChanged, match=r"torch is None in one and '2\.14\.0'"):
        keep(PLANS, upgraded, resumed, command=None)


def test_an_interrupted_run_is_judged_by_what_was_asked(keeping: Keeping) -> None:
    """By the objective and the bounds that it was begun with, though it has no end."""
    asked = Judge(objective="memory", constraints=Constraints(min_tokens_per_s=10))
    keeper = keep(PLANS, MACHINE, keeping, command=None, judge=asked)
    keeper.add(0, make_record("bf16", peak_gb=16, tokens_per_s=60))
    keeper.add(1, make_record("nf4", peak_gb=5, tokens_per_s=30))
    keeper.close()
    with Store(keeping.store) as store:
        assert store.head(keeper.run_id).judge == asked
        assert store.comparison(keeper.run_id).verdict.backend == "nf4"


def test_a_record_is_found_by_its_id_in_the_store_alone(keeping: Keeping) -> None:
    """Where the folder is gone, as on another machine."""
    keeper = keep(PLANS, MACHINE, keeping, command=None)
    rows = (make_record("bf16"), make_record("nf4"))
    for position, row in enumerate(rows):
        keeper.add(position, row)
    keeper.conclude(ended(keeper.run_id, rows))
    keeper.close()
    elsewhere = replace(keeping, runs_dir="/nowhere")
    whole = find_record(keeper.run_id, elsewhere)
    assert whole.comparison is not None and [r.backend for r in whole.rows] == ["bf16", "nf4"]
    assert whole.rows[0].environment == MACHINE
    (row,) = find_record(f"{keeper.run_id}/nf4", elsewhere).rows
    assert row.backend == "nf4"
    with pytest.raises(UsageError, match="no row 'gguf'; it has bf16, nf4"):
        find_record(f"{keeper.run_id}/gguf", elsewhere)
    with pytest.raises(UsageError, match="there is no record 'x'"):
        find_record("x", elsewhere)


def test_logits_of_an_old_run_are_swept(keeping: Keeping) -> None:
    """A week after it was interrupted, half-written ones too; its records stay, and so do logits of
    a newer one.
    """
    folders = []
    for days in (1, 8):
        keeper = keep(PLANS, MACHINE, keeping, command=None)
        keeper.add(0, make_record("bf16"))
        long_ago = time.time() - days * 24 * 3600
        for name in (REFERENCE_FILE, f".{REFERENCE_FILE}-5f1c"):  # as ReferenceWriter names them
            logits = keeper.folder / name
            logits.write_bytes(b"x")
            os.utime(logits, (long_ago, long_ago))
        keeper.close()
        folders.append(keeper.folder)
    keep(PLANS, MACHINE, keeping, command=None).close()
    assert (folders[0] / REFERENCE_FILE).exists()
    assert [path.name for path in folders[1].iterdir()] == ["bf16.json"]
