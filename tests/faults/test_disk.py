"""Disks that are full, read-only or left in disorder: rows are lost to none of it, and all is told.

The disks are real small ones in a mount namespace (``disk_namespace.py``).
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import small_model
from content_rows import compared
from disk_namespace import Namespace
from hub_server import Hub, files_of, serving

from llmfit.errors import StoreError
from llmfit.history import own_records
from llmfit.keeping import Keeping
from llmfit.lookup import find_record
from llmfit.models import data_path
from llmfit.quantize.cache import ArtifactCache
from llmfit.records import Comparison
from llmfit.runner.forkserver import ForkServer
from llmfit.store.heads import RunHead
from llmfit.store.store import Store
from llmfit.testing import make_comparison, make_record

NO_ROOM = "No space left on device"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of all tests here."""
    return small_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Namespace]:
    """A process among small disks."""
    with Namespace(tmp_path_factory.mktemp("disks"), model) as namespace:
        yield namespace


def test_a_full_cache_costs_only_the_rows_that_make_something(inside: Namespace) -> None:
    """Neither NumPy's, Rust's nor C++'s word for a full disk is lost; with room the row runs."""
    for size, backends in (("300k", ["gguf", "awq", "sdpa"]), ("900k", ["gguf"])):
        found = inside.call("cache_full", size=size, backends=backends)
        rows = found["first"]["rows"]
        for backend in set(backends) - {"sdpa"}:
            status, reason = rows[backend]
            assert status == "failed" and NO_ROOM in reason and "--cache-dir" in reason, reason
        assert rows.get("sdpa", ["ok"])[0] == "ok"
        assert not [name for name in found["left"] if ".making" in name or "gguf-" in name[:5]]
        assert found["second"]["rows"] == {"gguf": ["ok", None]} and found["damaged"] == [None]


def test_records_without_room_are_refused_first_or_told_at_the_end(inside: Namespace) -> None:
    """A full folder is an error before any row; one that fills leaves the rows in the store."""
    found = inside.call("records_full")
    assert found["refused"]["error"].startswith("StoreError: cannot write ")
    assert NO_ROOM in found["refused"]["error"] and "--runs-dir" in found["refused"]["hint"]
    assert found["left"] == [], "the refused run left something"
    filled = found["filled"]
    assert filled["rows"] == {"bf16": ["ok", None], "sdpa": ["ok", None]}
    assert NO_ROOM in filled["store_error"]
    assert f"llmfit show {filled['run_id']}" in filled["store_error"]
    assert found["stored"] == ["bf16", "sdpa"] and found["begun"] == 1
    assert found["halves"] == [], "half of a file is there"
    assert found["clean"]["rows"] == {"sdpa": ["ok", None]}
    assert found["clean"]["store_error"] is None


def test_a_store_without_room_is_refused_first_or_told_at_the_end(inside: Namespace) -> None:
    """What it did not take lies in the run's folder, and is added when there is room."""
    found = inside.call("store_full")
    assert found["refused"]["error"].startswith("StoreError: the store ")
    assert found["left"] == [], "the refused run left something"
    filled = found["filled"]
    assert filled["rows"] == {"bf16": ["ok", None], "sdpa": ["ok", None]}
    assert "full" in filled["store_error"] and "llmfit import" in filled["store_error"]
    assert found["added"] == 1 and found["rows"] == ["bf16", "sdpa"]


def test_logits_without_room_cost_the_divergence_alone(inside: Namespace, tmp_path: Path) -> None:
    """Perplexity is there, KL is null with its reason, and no half of the logits is left."""
    text = tmp_path / "text.txt"
    text.write_text(data_path("text.txt").read_text()[:6000])
    found = inside.call("logits_full", text=str(text))
    assert found["rows"] == {"bf16": ["ok", None], "sdpa": ["ok", None]}
    assert found["perplexities"] == [True, True] and found["divergences"] == [None, None]
    assert NO_ROOM in found["notes"]["bf16"][0]
    assert "left no logits" in found["notes"]["sdpa"][0]
    assert not [name for name in found["left"] if "logits" in name]


def test_read_only_places_are_told_and_a_read_only_cache_serves(inside: Namespace) -> None:
    """A cache that cannot be written costs the rows that make something; what it holds is used."""
    found = inside.call("read_only")
    status, reason = found["cache"]["rows"]["gguf"]
    assert status == "failed" and "Read-only file system" in reason
    assert found["cache"]["rows"]["sdpa"] == ["ok", None]
    assert "Read-only file system" in found["runs"]["error"]
    assert found["store"]["error"].startswith("StoreError: the store ")
    assert found["run_folders"] == 1, "a run that could not begin left a folder"
    assert found["made"]["quantized"] == ["gguf"] and found["served"]["quantized"] == []
    assert found["served"]["rows"] == {"gguf": ["ok", None]}


def test_with_every_disk_full_the_result_is_printed(inside: Namespace, model: Path) -> None:
    """The real command: records, store, --out and temporary files have no room; exit code 1.

    What has to compile says so.
    """
    places = inside.call(
        "make", disks={"runs": "2m", "store": "400k", "out": "4k", "tmp": "4k", "elsewhere": "20m"}
    )
    inside.call("fill_all", places=[places["out"], places["tmp"]])
    command = inside.inside(
        "env", f"TMPDIR={places['tmp']}", f"TORCHINDUCTOR_CACHE_DIR={places['tmp']}/code",
        sys.executable, "-m", "llmfit", "compare", str(model),
        "--backends", "sdpa,compiled", "--no-eval", "--prompt-tokens", "8", "--new-tokens", "3",
        "--repeats", "1", "--threads", "1", "--cache-dir", f"{places['elsewhere']}/cache",
        "--runs-dir", places["runs"], "--store", f"{places['store']}/s.db",
        "--format", "json", "--out", f"{places['out']}/result.json",
    )  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("[1/2] "), said + process.stderr.read()
        inside.call("fill_all", places=[places["runs"], places["store"]])
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "★ pick" in out, "what was measured is not on stdout"
    assert "torch.compile cannot make the decode step" in err, err
    assert "cannot write" in err and "result.json" in err and NO_ROOM in err
    runs, result = inside.call("list_all", places=[places["runs"], places["out"]])
    assert result == [] and not [name for name in runs if "/." in name]


def test_a_report_without_room_is_one_error(inside: Namespace, tmp_path: Path) -> None:
    """Its HTML page is not there by half, and the exit code is 1."""
    (place,) = inside.call("make", disks={"report": "100k"}).values()
    with Store(tmp_path / "store.db") as store:
        comparison = make_comparison([make_record("bf16")])
        store.put(_head(comparison), comparison)
    words = ["report", "--store", str(tmp_path / "store.db"), "--out", f"{place}/page"]
    done = subprocess.run(
        inside.inside(sys.executable, "-m", "llmfit", *words),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr and "report.html" in done.stderr and NO_ROOM in done.stderr
    (left,) = inside.call("list_all", places=[place])
    assert left == ["page"]


def test_a_hub_cache_without_room_is_told(inside: Namespace, model: Path) -> None:
    """The download's error is of the disk, names the variable that helps, and leaves no half."""
    (place,) = inside.call("make", disks={"hub": "400k"}).values()
    code = "from llmfit.models import local_folder, resolve; local_folder(resolve('org/tiny'))"
    with serving(Hub(files_of(model))) as hub:
        done = subprocess.run(
            inside.inside(
                "env", f"HF_ENDPOINT=http://127.0.0.1:{hub.port}", f"HF_HOME={place}",
                "HF_HUB_OFFLINE=0", sys.executable, "-c", code,
            ),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "StoreError: org/tiny cannot be kept" in last and NO_ROOM in last, done.stderr[-2000:]
    assert "HF_HOME" in last
    (left,) = inside.call("list_all", places=[place])
    assert not [name for name in left if name.endswith(".incomplete")]


# ---------------------------------------------------------------- what a crash leaves


def test_what_a_crash_left_in_the_cache_is_repaired(
    model: Path, tmp_path: Path, server: ForkServer
) -> None:
    """A truncated artifact, one half made, locks of the dead, half a manifest: made anew, once."""
    cache = ArtifactCache(tmp_path / "cache")
    (made,) = compared(model, tmp_path, "gguf", server=server).rows
    assert made.status == "ok" and made.artifact is not None and made.quantize_s is not None
    artifact = Path(made.artifact)
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[: len(whole) // 2])
    half = cache.root / f".making-{artifact.parent.name}-{'0' * 32}"
    shutil.copytree(artifact.parent, half)
    (cache.root / ".locks" / f"{artifact.parent.name}.lock").touch()
    (repaired,) = compared(model, tmp_path, "gguf", server=server).rows
    assert repaired.status == "ok" and repaired.quantize_s is not None, repaired.reason
    assert artifact.read_bytes() == whole and not half.exists()
    assert "was damaged" in " ".join(repaired.notes)
    manifest = artifact.parent / "artifact.json"
    manifest.write_text(manifest.read_text()[:40])
    (again,) = compared(model, tmp_path, "gguf", server=server).rows
    assert again.status == "ok" and again.quantize_s is not None, again.reason
    assert [entry.damaged for entry in cache.entries()] == [None]
    (served,) = compared(model, tmp_path, "gguf", server=server).rows
    assert served.quantize_s is None


def test_half_a_run_is_passed_over_and_told(tmp_path: Path) -> None:
    """Half of a row's file is neither a prediction's base nor shown as a record."""
    whole = tmp_path / "20260101-000000-tiny-abcdef"
    whole.mkdir()
    text = (tmp_path / "whole.json").name
    (whole / "bf16.json").write_text('{"backend": "bf16", "label": "BF16", "sta')
    (whole / f".{text}-0123").write_text('{"back')
    assert own_records(tmp_path) == ()
    with pytest.raises(StoreError, match=r"bf16\.json"):
        find_record(whole.name, Keeping(runs_dir=str(tmp_path), store=str(tmp_path / "s.db")))


def test_a_store_cut_off_by_a_crash_keeps_what_was_committed(tmp_path: Path) -> None:
    """With its log cut anywhere the store opens, is sound, and takes the next run."""
    place, copy = tmp_path / "store.db", tmp_path / "crashed" / "store.db"
    copy.parent.mkdir()
    with Store(place) as store:
        for number in range(2):
            comparison = make_comparison([make_record("bf16")], run_id=f"run-{number}")
            store.put(_head(comparison), comparison)
        log = Path(f"{place}-wal").read_bytes()
        for share in (0.0, 0.3, 0.7, 0.99):
            shutil.copy(place, copy)
            Path(f"{copy}-wal").write_bytes(log[: int(len(log) * share)])
            Path(f"{copy}-shm").unlink(missing_ok=True)
            with Store(copy) as crashed:
                known = {line.run_id for line in crashed.history()}
                assert known <= {"run-0", "run-1"}
                comparison = make_comparison([make_record("bf16")], run_id="run-2")
                assert crashed.put(_head(comparison), comparison)
            with closing(sqlite3.connect(copy)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _head(comparison: Comparison) -> RunHead:
    """How the run began."""
    return RunHead(
        run_id=comparison.run_id, model=comparison.model, workload=comparison.workload,
        environment=comparison.environment, backends=("bf16",), started_at="2026-01-01T00:00:00",
        budget_bytes=None, ram_budget_bytes=None, command=None, record=None, machine="test",
    )  # fmt: skip
