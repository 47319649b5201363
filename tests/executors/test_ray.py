"""Rows on a real Ray cluster: two nodes as one machine, nodes that die, or share no disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ray_nodes import AUTH, RayNodes

from llmfit.comparison import compare
from llmfit.errors import UsageError
from llmfit.executors import ray_site
from llmfit.executors.ray_cluster import Fleet, RayCluster
from llmfit.job import Observer
from llmfit.keeping import Keeping
from llmfit.nightly.config import read_config
from llmfit.nightly.session import run_night
from llmfit.nightly.stored import report_of_night
from llmfit.records import Comparison, EvaluationSettings, ModelSpec, RunRecord, Workload
from llmfit.report.fleet import fleet_columns
from llmfit.report.night import render_report_markdown
from llmfit.store.store import Store

pytestmark = pytest.mark.slow

QUICK = Workload(prompt_tokens=8, new_tokens=4, repeats=1, warmup=0)
LONG = replace(QUICK, new_tokens=100)
SCORED = EvaluationSettings(limit=8)


@pytest.fixture
def cluster(nodes: RayNodes, slowpoke: None) -> Iterator[RayCluster]:
    """A connection to the cluster."""
    with RayCluster(nodes.address) as joined:
        yield joined


@pytest.fixture
def quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of this process last no time; a node has its own environment."""
    monkeypatch.setenv("SLOWPOKE_S", "0")


def run(
    place: Path,
    executor: Fleet | None,
    *backends: str,
    model: str | None = None,
    workload: Workload = QUICK,
    scored: EvaluationSettings | None = None,
    observer: Observer | None = None,
    cache: Path | None = None,
) -> Comparison:
    """A comparison whose records are kept in ``place``."""
    return compare(
        model, backends=backends, workload=workload, evaluation=scored, device="cpu",
        keeping=Keeping(runs_dir=str(place / "runs"), store=str(place / "store.db")),
        cache_dir=None if cache is None else str(cache), observer=observer, executor=executor,
        last_resort=False,
    )  # fmt: skip


def rows_of(comparison: Comparison) -> dict[str, RunRecord]:
    """Rows by backend, all of which ran."""
    for row in comparison.rows:
        assert row.status == "ok", (row.backend, row.reason)
    return {row.backend: row for row in comparison.rows}


class Killer(Observer):
    """Does something when a row begins, so many times."""

    def __init__(self, *deeds: object) -> None:
        self.deeds = list(deeds)
        self.started: list[str] = []

    def row_started(self, backend: str, label: str, index: int, total: int) -> None:
        """See ``Observer``."""
        self.started.append(backend)

    def progress(self, backend: str, stage: str, done: int, total: int) -> None:
        """See ``Observer``."""
        if self.deeds and stage == "measure":
            deed = self.deeds.pop(0)
            assert callable(deed)
            deed()


def test_two_nodes_give_what_one_machine_gives(
    nodes: RayNodes, cluster: RayCluster, tmp_path: Path
) -> None:
    """Equal quality, each row from the node it ran on, with its log and its place in the store."""
    nodes.add("a")
    nodes.add("b")
    cache = tmp_path / "cache"
    there = run(tmp_path, Fleet(cluster), "gguf", "bf16", "sdpa", scored=SCORED, cache=cache)
    here = run(tmp_path, None, "gguf", "bf16", "sdpa", scored=SCORED, cache=cache)
    remote, local = rows_of(there), rows_of(here)
    assert list(remote) == ["gguf", "bf16", "sdpa"]
    for backend, row in remote.items():
        twin = local[backend]
        assert row.hellaswag == twin.hellaswag
        assert row.perplexity == twin.perplexity
        assert row.kl_divergence == twin.kl_divergence
        assert row.environment is not None and row.environment.kind == "cpu"
        assert row.plan is not None and twin.plan is not None
        assert row.plan.model == twin.plan.model
        assert (tmp_path / "runs" / there.run_id / f"{backend}.log").exists()
    # Two rows at once, each of which takes all processors of its node.
    assert len({row.environment.node for row in remote.values() if row.environment}) == 2
    assert remote["gguf"].quantize_s is not None
    assert local["gguf"].quantize_s is None
    nodes.kill("a")
    nodes.kill("b")


def test_a_killed_node_costs_a_try(nodes: RayNodes, cluster: RayCluster, tmp_path: Path) -> None:
    """The row runs again on the node that is left, and says so; the others are not touched."""
    nodes.add("first", environment={"SLOWPOKE_S": "0.3"})
    watch = Killer(lambda: (nodes.add("second"), nodes.kill("first")))
    made = rows_of(
        run(tmp_path, Fleet(cluster), "slowpoke", "slowpoke2", workload=LONG, observer=watch)
    )
    again = [note for row in made.values() for note in row.notes if "run again" in note]
    assert len(again) == 1 and "lost" in again[0]
    assert sorted(watch.started) in (
        ["slowpoke", "slowpoke", "slowpoke2"], ["slowpoke", "slowpoke2", "slowpoke2"]
    )  # fmt: skip
    nodes.kill("second")


def test_a_row_that_loses_every_node_fails_with_the_reason(
    nodes: RayNodes, cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice it is not tried a third time; where no node is left, the rest is not run."""
    monkeypatch.setattr(ray_site, "_NO_NODE_S", 2.0)
    slow = {"SLOWPOKE_S": "0.3"}
    nodes.add("first", environment=slow)
    watch = Killer(  # the first row, the second one, which was next in the queue, the first again
        lambda: (nodes.add("second", environment=slow), nodes.kill("first")),
        lambda: (nodes.add("third", environment=slow), nodes.kill("second")),
        lambda: nodes.kill("third"),
    )
    made = run(tmp_path, Fleet(cluster), "slowpoke", "slowpoke2", workload=LONG, observer=watch)
    reasons = {row.backend: row.reason for row in made.rows}
    assert all(row.status == "failed" for row in made.rows), reasons
    told = sorted(str(reason) for reason in reasons.values())
    assert told[0].startswith("lost 2 times: "), told
    assert told[1] == "no node of kind cpu is left in the Ray cluster", told


def test_nodes_without_a_common_disk_get_files_and_artifacts(
    nodes: RayNodes, cluster: RayCluster, tmp_path: Path, embedded: ModelSpec
) -> None:
    """A node that sees neither model, records nor cache: the model and the logits come to it.

    An artifact that another node has made is not made again. A kind that is not there is refused.
    """
    with pytest.raises(UsageError, match="the Ray cluster has no node"):
        run(tmp_path, Fleet(cluster), "sdpa")
    seen = tmp_path / "seen"
    model = seen / "model"
    shutil.copytree(embedded.path, model)
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {seen} && exec "$@"', "sh"]
    tried = subprocess.run([*hide, "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("mounting takes root")
    caches = {name: {"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("one", "two")}
    nodes.add("one", kind="A100", environment=caches["one"])
    with pytest.raises(UsageError, match="no node of kind H100; its kinds are: A100"):
        run(tmp_path, Fleet(cluster, "H100"), "sdpa")
    first = rows_of(run(seen, Fleet(cluster, "A100"), "gguf", model=str(model)))
    assert first["gguf"].quantize_s is not None
    nodes.add("two", kind="H100", environment=caches["two"], inside=hide)
    texts = EvaluationSettings(
        limit=8,
        hellaswag_file=str(_copied("hellaswag.jsonl", seen)),
        text_file=str(_copied("text.txt", seen)),
    )
    second = rows_of(
        run(seen, Fleet(cluster, "h100"), "bf16", "gguf", model=str(model), scored=texts)
    )
    assert second["gguf"].quantize_s is None
    assert not any("made again" in note for note in second["gguf"].notes)
    assert second["gguf"].kl_divergence is not None and second["gguf"].kl_divergence > 0
    assert second["bf16"].plan is not None and second["bf16"].plan.model.path == str(model)
    assert {str(row.environment and row.environment.kind) for row in second.values()} == {"H100"}
    here = rows_of(run(tmp_path, None, "bf16", model=str(model), scored=texts))
    assert here["bf16"].perplexity == second["bf16"].perplexity
    carried = list((tmp_path / "two" / "llmfit" / "artifacts").glob("carried-*"))
    assert carried, "nothing was brought to the node"
    nodes.kill("one")
    nodes.kill("two")


def _copied(name: str, place: Path) -> Path:
    """A file of the embedded data, where not every node sees it."""
    from llmfit.models import data_path

    found = next(Path(data_path("embedded")).parent.rglob(name))
    return Path(shutil.copy(found, place / name))


def test_ctrl_c_cancels_what_runs_and_what_waits(
    nodes: RayNodes, slowpoke: None, tmp_path: Path
) -> None:
    """The finished rows are kept, no row's process is left on the node, and the node is free."""
    nodes.add("a", environment={"SLOWPOKE_S": "1"})
    command = [
        sys.executable, "-m", "llmfit", "compare", "--executor", "ray", "--ray-address",
        nodes.address, "--backends", "bf16,slowpoke,slowpoke2", "--no-eval", "--new-tokens", "100",
        "--prompt-tokens", "8", "--repeats", "1", "--warmup", "0", "--device", "cpu",
        "--runs-dir", str(tmp_path / "runs"), "--store", str(tmp_path / "store.db"),
    ]  # fmt: skip
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ)
        )
        _until(lambda: "Slowpoke" in (tmp_path / "errors").read_text(), 120)
        _until(lambda: bool(_rows_running()), 60)
        time.sleep(3)  # it has loaded, and steps
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    said = (tmp_path / "errors").read_text()
    assert process.returncode == 130, said
    assert "1 of 3 rows were finished" in said, said
    assert "interrupted" in printed
    _until(lambda: not _rows_running(), 20)
    with RayCluster(nodes.address) as cluster:  # which has nothing to do any more
        rows_of(run(tmp_path, Fleet(cluster), "sdpa"))
    nodes.kill("a")


def _rows_running() -> list[str]:
    """Rows' processes, forked or not, of the node whose steps last a second."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        words = each.info["cmdline"] or []
        if any(word.startswith("llmfit.runner.") for word in words):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if each.environ().get("SLOWPOKE_S") == "1":
                    found.append(" ".join(words))
    return found


def _until(true: object, limit_s: float) -> None:
    assert callable(true)
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def test_without_an_address_a_ray_of_its_own_runs_the_rows(tmp_path: Path) -> None:
    """On this machine, with a secret that is written nowhere; nothing of it is left."""
    environment = {name: value for name, value in os.environ.items() if name not in AUTH}
    done = subprocess.run(
        [sys.executable, "-m", "llmfit", "compare", "--executor", "ray", "--backends", "sdpa,bf16",
         "--no-eval", "--new-tokens", "4", "--prompt-tokens", "8", "--repeats", "1", "--device",
         "cpu", "--format", "json", "--runs-dir", str(tmp_path), "--store", str(tmp_path / "s.db"),
         "--cache-dir", str(tmp_path / "cache")],
        capture_output=True, text=True, check=False, env=environment | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["status"] for row in told["rows"]] == ["ok", "ok"]
    assert told["environment"]["kind"] == "cpu"
    assert not (tmp_path / ".ray").exists()
    assert "[1/2] BF16 + SDPA: ok" in done.stderr or "[2/2] BF16 eager" in done.stderr


def test_a_wrong_address_is_refused(slowpoke: None) -> None:
    """A client's address, and the wrong secret."""
    with pytest.raises(UsageError, match="Ray client's address"):
        RayCluster("ray://127.0.0.1:10001")
    assert AUTH["RAY_AUTH_MODE"] == "token"


NIGHT = """
title = "A fleet's night"
machine = "lab"
store = "store.db"
executor = "ray"
ray_address = "{address}"
gpu_kinds = ["A100", "H100"]

[defaults]
backends = ["slowpoke", "slowpoke2"]
tasks = []
device = "cpu"

[workloads.short]
prompt_tokens = 8
new_tokens = 8
repeats = 1
warmup = 0

[[models]]
model = "embedded"
"""


def test_a_night_measures_every_kind_at_once(
    nodes: RayNodes, slowpoke: None, tmp_path: Path
) -> None:
    """A comparison of each kind, a series of each kind, and a column of each in the report."""
    nodes.add("a", kind="A100", environment={"SLOWPOKE_S": "0.02"})
    nodes.add("h", kind="H100", environment={"SLOWPOKE_S": "0.01"})
    settings = tmp_path / "night.toml"
    settings.write_text(NIGHT.format(address=nodes.address))
    config = read_config(settings)
    done = run_night(config, runs_dir=str(tmp_path / "runs"))
    assert [cell.name for cell in done.cells] == ["embedded, short, A100", "embedded, short, H100"]
    assert [cell.status for cell in done.cells] == ["done", "done"], done.cells
    assert done.machines == ("lab/A100", "lab/H100")
    with Store(config.store) as store:
        report = report_of_night(store, done)
    model, tokens, row, *kinds = fleet_columns(report.comparisons)
    assert (model.cells, tokens.cells) == (("llmfit-embedded",) * 2, ("8 + 8",) * 2)
    assert row.cells == ("slowpoke", "slowpoke2")
    rates = {kind.head: kind.keys[0] for kind in kinds}
    assert rates.keys() == {"A100", "H100"}
    assert rates["H100"] is not None and rates["A100"] is not None
    assert 1.3 < rates["H100"] / rates["A100"] < 2.7  # as their steps last, 10 and 20 ms
    page = render_report_markdown(report)
    assert "| model | tokens, prompt + new | format |" in page
    assert "## llmfit-embedded, A100" in page and "## llmfit-embedded, H100" in page
    assert {series.key.machine for series in report.series} == {"lab/A100", "lab/H100"}
    nodes.kill("a")
    nodes.kill("h")
