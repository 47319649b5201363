"""What a row takes of a node, and which nodes a comparison may use; a report's column per kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.errors import BackendUnavailable, StoreError
from llmfit.executors import ray_cluster, ray_pool
from llmfit.executors.local import Local
from llmfit.executors.ray_cluster import RayCluster
from llmfit.executors.ray_pool import CPU, Node, Pool
from llmfit.network import is_offline, offline
from llmfit.nightly.places import Places
from llmfit.planning.memory.prediction import predict_memory
from llmfit.records import Comparison, Environment, ModelSpec, Plan, Status
from llmfit.report.fleet import fleet_columns
from llmfit.report.lines import legend
from llmfit.testing import make_comparison, make_record

GB = 10**9


def node(name: str, cpus: float, gpus: float = 0, kinds: tuple[str, ...] = ()) -> Node:
    """A node with 100 GB."""
    return Node(node_id=name, cpus=cpus, gpus=gpus, memory_bytes=100 * GB, kinds=kinds)


CLUSTER = (
    node("head", 8),
    node("h1", 64, 8, ("H100",)),
    node("h2", 64, 8, ("H100",)),
    node("a1", 32, 2, ("A100",)),
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four nodes of three sorts."""
    monkeypatch.setattr(ray_pool, "living_nodes", lambda: CLUSTER)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("kind", "gpus", "device", "expected"),
    [
        ("H100", 1, "cuda", {"num_cpus": 8, "num_gpus": 1}),
        ("H100", 4, "cuda", {"num_cpus": 32, "num_gpus": 4}),
        ("H100", 1, "cpu", {"num_cpus": 64, "num_gpus": 0}),
        ("A100", 2, "cuda", {"num_cpus": 32, "num_gpus": 2}),
        (CPU, 0, "cpu", {"num_cpus": 64, "num_gpus": 0}),
    ],
)
def test_a_row_takes_its_share_of_a_node(
    embedded: ModelSpec, kind: str, gpus: int, device: str, expected: dict[str, float]
) -> None:
    """A GPU's share of the processors, or all of them, so that no row disturbs another."""
    plan = Plan(backend="sdpa", model=embedded, device="cuda" if device == "cuda" else "cpu")
    plan = replace(plan, predicted=predict_memory(embedded, "sdpa", plan.workload, plan.device))
    options = Pool(kind=kind, gpus=gpus).resources(plan)
    assert options is not None and plan.predicted is not None
    assert {name: options[name] for name in expected} == expected
    assert options["memory"] == plan.predicted.total_bytes
    assert options["resources"] == ({} if kind == CPU else {f"accelerator_type:{kind}": 0.001})


@pytest.mark.usefixtures("cluster")
def test_a_pool_has_like_nodes_alone() -> None:
    """Of a kind, with enough GPUs, and of those with the most processors."""

    def names(kind: str, gpus: int) -> list[str]:
        return [each.node_id for each in Pool(kind=kind, gpus=gpus).nodes()]

    assert names("H100", 1) == ["h1", "h2"]
    assert names("A100", 4) == []
    assert names(CPU, 0) == ["h1", "h2"]


@pytest.mark.usefixtures("cluster")
def test_more_memory_than_a_node_has_is_not_asked_for(embedded: ModelSpec) -> None:
    """Ray would wait for ever; the node itself says that the row does not fit."""
    plan = Plan(backend="sdpa", model=embedded, device="cpu")
    need = predict_memory(embedded, "sdpa", plan.workload, "cpu")
    assert need is not None
    plan = replace(plan, predicted=replace(need, total_bytes=500 * GB))
    options = Pool(kind=CPU, gpus=0).resources(plan)
    assert options is not None and options["memory"] == 100 * GB


def test_without_ray_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="not installed") as told:
        RayCluster("auto")
    assert told.value.hint == "pip install 'llmfit[ray]'"


def test_what_holds_here_holds_for_every_kind_s_comparisons() -> None:
    """They run in threads of their own, which know that no network is to be used."""
    with offline():
        there = Places(executors={"A100": Local(), "H100": Local()}, interrupt=lambda: None)
        assert there.each(lambda kind: (kind, is_offline())) == {
            "A100": ("A100", True),
            "H100": ("H100", True),
        }


def test_what_one_kind_s_comparisons_raise_is_raised() -> None:
    """Once those of the others have ended."""
    ended = []

    def work(kind: str | None) -> None:
        if kind == "A100":
            raise StoreError("the disk is full.")
        ended.append(kind)

    there = Places(executors={"A100": Local(), "H100": Local()}, interrupt=lambda: None)
    with pytest.raises(StoreError, match="disk is full"):
        there.each(work)
    assert ended == ["H100"]


def on(kind: str | None, *statuses: Status) -> Comparison:
    """A comparison of the rows nf4 and awq on nodes of a kind."""
    rows = [
        replace(make_record(backend), status=status)
        for backend, status in zip(("nf4", "awq"), statuses, strict=True)
    ]
    made = make_comparison(rows)
    environment = replace(made.environment, kind=kind)
    assert isinstance(environment, Environment)
    return replace(made, environment=environment)


def test_a_report_has_a_column_for_each_kind() -> None:
    """The newest of each kind; a row that does not run says why in a word."""
    columns = fleet_columns(
        [on("H100", "ok", "ok"), on("A100", "ok", "does_not_fit"), on("H100", "failed", "ok")]
    )
    assert [column.head for column in columns] == ["model", "tokens", "format", "H100", "A100"]
    assert columns[2].cells == ("nf4", "awq")
    hopper, ampere = columns[3:]
    assert all(key is not None for key in hopper.keys)
    assert ampere.keys[1] is None and ampere.cells[1] == "does not fit"


def test_the_time_of_rows_side_by_side_is_no_share_of_the_whole() -> None:
    """Their sum may exceed it, so there is no rest to tell."""
    made = on("H100", "ok", "ok")
    rows = tuple(replace(row, measure_s=60.0) for row in made.rows)
    told = legend(replace(made, rows=rows, total_s=70.0))
    assert "took 70.0 s; rows, side by side: loading 6.40 s, measuring 120 s" in told


def test_a_report_of_machines_has_no_such_columns() -> None:
    """Kinds are a fleet's."""
    assert fleet_columns([on(None, "ok", "ok")]) == ()
