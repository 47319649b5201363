"""``llmfit history``, ``show``, ``export``, ``import`` and ``report`` as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmfit.cli.main import main
from llmfit.store.heads import RunHead
from llmfit.store.store import Store
from llmfit.testing import make_comparison, make_record

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
NAME = "meta-llama/Llama-3.1-8B"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six nights of two rows, the last three slower; a seventh that was interrupted."""
    place = tmp_path_factory.mktemp("store") / "store.db"
    with Store(place) as opened:
        for night in range(1, 8):
            at = f"2026-01-{night:02d}T03:00:00+00:00"
            rate = 40.0 if night < 4 else 30.0
            rows = [
                make_record(name, tokens_per_s=rate, started_at=at, spread=0.001)
                for name in ("bf16", "nf4")
            ]
            comparison = make_comparison(rows, run_id=f"night{night}")
            head = RunHead(
                run_id=f"night{night}",
                model=comparison.model,
                workload=comparison.workload,
                environment=comparison.environment,
                backends=("bf16", "nf4"),
                started_at=at,
                machine="lab",
                tag="v1" if night == 2 else None,
            )
            if night < 7:
                opened.put(head, comparison)
            else:
                opened.begin(head)
                opened.add("night7", 0, comparison.rows[0])
    return place


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(filled, tmp_path))


WRONG = [
    (["history", "--last", "0"], "'0'"),
    (["history", "--format", "csv"], "'csv'"),
    (["history", "--store", "mysql://x/y"], "mysql"),
    (["show"], "RECORD"),
    (["show", "not-there"], "'not-there'"),
    (["show", "night1/gguf"], "'gguf'"),
    (["show", "night1/nf4", "--format", "md"], "md"),
    (["export"], "--out"),
    (["export", "--out", "."], "'.'"),
    (["export", "nobody", "--out", "x.json"], "nobody"),
    (["export", "--out", "x", "--format", "xml"], "'xml'"),
    (["import"], "FILE"),
    (["import", "not-there.json"], "'not-there.json'"),
    (["import", "store.db", "--machine", " "], "' '"),
    (["report", "nobody"], "nobody"),
    (["report", "--baseline", "v9"], "'v9'"),
    (["report", "--last", "0"], "'0'"),
    (["report", "--config", "none.toml"], "'none.toml'"),
    (["report", "--tag", "x"], "--tag"),
    (["report", "--webhook"], "LLMFIT_WEBHOOK_URL"),
    (["report", "--out", "store.db"], "'store.db'"),
    (["compare", "--tag", ""], "''"),
]


@pytest.mark.parametrize(
    ("words", "named"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_a_wrong_argument_is_one_message(
    store: Path,
    words: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, nothing on stdout, one message that names it and the next command."""
    monkeypatch.chdir(store.parent)
    monkeypatch.setenv("LLMFIT_STORE", str(store))
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    first, *hint = told.err.splitlines()
    assert first.startswith("llmfit: error: ") and named in first and len(hint) <= 1


@pytest.mark.parametrize("verb", ["history", "show", "export", "import", "report"])
def test_help_fits_80_columns_and_has_an_example(llmfit: Run, verb: str) -> None:
    """Of every verb of the store."""
    done = llmfit(verb, "--help", COLUMNS="80")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert "examples:" in done.stdout and f"llmfit {verb}" in done.stdout


@pytest.mark.slow
def test_history_lists_the_newest_first(llmfit: Run, store: Path) -> None:
    """On 80 columns and as JSON; what did not end says so."""
    done = llmfit("history", "--last", "3", COLUMNS="80", LLMFIT_STORE=str(store))
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert [w for w in done.stdout.split() if w.startswith("night")] == [
        "night7",
        "night6",
        "night5",
    ]
    assert "not ended" in done.stdout and "30.0 tokens/s" in done.stdout
    told = json.loads(llmfit("history", "--format", "json", LLMFIT_STORE=str(store)).stdout)
    assert [line["run_id"] for line in told] == [f"night{n}" for n in range(7, 0, -1)]
    assert told[-1]["rows"][0]["figures"]["decode.tokens_per_s"] == 40.0
    assert "No run of x" in llmfit("history", "x", LLMFIT_STORE=str(store)).stdout


@pytest.mark.slow
def test_show_prints_a_run_and_a_row(llmfit: Run, store: Path) -> None:
    """As ``compare`` does, by the id alone."""
    done = llmfit("show", "night1", "--store", str(store), COLUMNS="80")
    assert done.returncode == 0 and "★ pick" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    row = json.loads(llmfit("show", "night1/nf4", "--store", str(store)).stdout)
    assert row["backend"] == "nf4" and row["decode"]["tokens_per_s"]["median"] == 40.0
    whole = json.loads(llmfit("show", "night1", "--store", str(store), "--format", "json").stdout)
    assert whole["run_id"] == "night1" and len(whole["rows"]) == 2


@pytest.mark.slow
def test_runs_go_from_store_to_store(llmfit: Run, store: Path, tmp_path: Path) -> None:
    """By JSON; CSV is for spreadsheets."""
    out = tmp_path / "runs.json"
    done = llmfit("export", NAME, "--out", str(out), LLMFIT_STORE=str(store))
    assert done.returncode == 0 and done.stdout.startswith("7 runs of ")
    other = tmp_path / "other.db"
    for said in ("7 runs added", "0 runs added"):
        done = llmfit("import", str(out), "--store", str(other))
        assert done.returncode == 0 and done.stdout.startswith(said)
    figures = tmp_path / "figures.csv"
    llmfit("export", "--format", "csv", "--out", str(figures), "--store", str(other))
    with figures.open() as stream:
        assert len(list(csv.DictReader(stream))) == 13


@pytest.mark.slow
def test_a_report_names_what_became_worse(llmfit: Run, store: Path, tmp_path: Path) -> None:
    """Exit code 3; on stdout and in each of the four files: metric, size, record and cause."""
    out = tmp_path / "report"
    done = llmfit("report", "--out", str(out), LLMFIT_STORE=str(store), COLUMNS="80")
    assert done.returncode == 3, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = " ".join(done.stdout.split())
    assert "since night4: likely cause: nothing that is recorded changed" in told
    assert "decode tokens/s, nf4: 40.0 → 30.0 (−25.0 %)" in told
    markdown = (out / "report.md").read_text()
    assert "night4 (good: night3)" in markdown
    data = json.loads((out / "report.json").read_text())
    assert {r["since_run"] for r in data["regressions"]} == {"night4"}
    suites = ElementTree.parse(out / "junit.xml").getroot()
    assert "decode tokens/s" in str(ElementTree.tostring(suites))
    assert "night4" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_baseline_can_be_named(llmfit: Run, store: Path, tmp_path: Path) -> None:
    """Against the last night nothing became worse; against the tag it did."""
    words = ("report", NAME, "--machine", "lab", "--out", str(tmp_path / "r"))
    last = llmfit(*words, "--baseline", "last", LLMFIT_STORE=str(store))
    assert last.returncode == 0 and "Nothing became worse." in last.stdout
    assert llmfit(*words, "--baseline", "v1", LLMFIT_STORE=str(store)).returncode == 3
    assert llmfit(*words, "--baseline", "night5", LLMFIT_STORE=str(store)).returncode == 0


def test_a_report_of_nothing_says_so(llmfit: Run, tmp_path: Path) -> None:
    """And makes no page."""
    done = llmfit("report", cwd=tmp_path, LLMFIT_STORE=str(tmp_path / "new.db"))
    assert done.returncode == 2 and "there is no run in" in done.stderr
    assert not (tmp_path / "llmfit-report").exists()


def test_a_password_gets_into_no_record(llmfit: Run, tmp_path: Path) -> None:
    """Neither into the message nor into what is printed."""
    address = "postgresql://me:hunter2secret@127.0.0.1:1/x"
    done = llmfit("history", "--store", address)
    assert done.returncode == 1 and "hunter2secret" not in done.stderr
    assert "me:***@127.0.0.1" in done.stderr or "psycopg" in done.stderr


@pytest.mark.slow
def test_a_comparison_is_stored_and_goes_on(llmfit: Run, tmp_path: Path) -> None:
    """``compare`` stores its run under its tag; an interrupted one is gone on with by --resume."""
    kept = ("--store", str(tmp_path / "s.db"), "--runs-dir", str(tmp_path / "runs"))
    words = ("--backends", "sdpa", "--no-eval", "--prompt-tokens", "16", "--new-tokens", "8")
    done = llmfit("compare", *words, *kept, "--tag", "v1", "--quiet", timeout_s=300)
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(llmfit("history", *kept[:2], "--format", "json").stdout)
    assert line["tag"] == "v1" and line["ended"] and line["rows"][0]["status"] == "ok"
    done = llmfit("compare", *words, *kept, "--resume", "last", timeout_s=300)
    assert done.returncode == 2 and "no interrupted run" in done.stderr
    done = llmfit("compare", *words, *kept, "--resume", line["run_id"], timeout_s=300)
    assert done.returncode == 2 and "has ended" in done.stderr


@pytest.mark.slow
def test_the_nightly_script_finds_a_planted_slowdown(tmp_path: Path) -> None:
    """Two nights of a backend that sleeps: exit 0, then, with a version that sleeps longer, 3."""
    sys.path.insert(0, str(ROOT / "tests" / "nightly"))
    try:
        from sleeping_backend import install
    finally:
        sys.path.pop(0)
    config = tmp_path / "night.toml"
    config.write_text(
        'title = "planted"\nmachine = "lab"\nstore = "s.db"\n'
        '[defaults]\nbackends = ["slowpoke"]\ntasks = []\n'
        "[workloads.short]\nprompt_tokens = 8\nnew_tokens = 8\n"
        '[[models]]\nmodel = "embedded"\n'
    )

    def night(version: str, seconds: str) -> subprocess.CompletedProcess[str]:
        folder = install(tmp_path / "plugin", version=version)
        return subprocess.run(
            [
                ROOT / "scripts" / "nightly_report",
                *("--config", config, "--out", tmp_path / "report"),
                *("--runs-dir", tmp_path / "runs", "--quiet"),
            ],
            env={
                **os.environ,
                "LLMFIT_VENV": sys.prefix,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
                "SLOWPOKE_S": seconds,
                "COLUMNS": "500",
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    first = night("1.0", "0.02")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Nothing became worse." in first.stdout
    second = night("1.1", "0.08")
    assert second.returncode == 3, second.stdout + second.stderr
    (line,) = [line for line in second.stdout.splitlines() if "decode tokens/s" in line]
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    run_id = data["night"]["cells"][0]["run_id"]
    assert "decode tokens/s, Slowpoke: " in line and "(−7" in line
    (head,) = [line for line in second.stdout.splitlines() if line.startswith("✗")]
    # On a shared machine a measured bandwidth may have changed too, and is named after the version.
    cause = head.split(";")[0]
    assert cause == f"✗ llmfit-embedded since {run_id}: likely cause: slowpoke 1.0 → 1.1"
