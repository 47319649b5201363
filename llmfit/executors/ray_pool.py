"""The nodes of a Ray cluster: which ones a comparison's rows may use, and what a row takes of one.

A row on a GPU takes as many of a node's processors as are one GPU's share, one on a CPU takes all
of the node's, so that no row disturbs another's figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmfit.records import Plan

CPU = "cpu"
"""The kind of nodes without a GPU, or of which no GPU is used."""
_ACCELERATOR = "accelerator_type:"
"""Ray's name of the resource that stands for a kind of GPU."""
_TRACE = 0.001
"""Of such a resource, that a task asks for to be placed there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that lives and has processors."""

    node_id: str
    cpus: float
    gpus: float
    memory_bytes: float
    kinds: tuple[str, ...]


def living_nodes() -> tuple[Node, ...]:
    """The nodes that could run something, as Ray tells."""
    import ray

    return tuple(
        _node(each["NodeID"], each["Resources"])
        for each in ray.nodes()
        if each["Alive"] and each["Resources"].get("CPU", 0) >= 1
    )


def _node(node_id: str, has: dict[str, float]) -> Node:
    return Node(
        node_id=node_id,
        cpus=has["CPU"],
        gpus=has.get("GPU", 0.0),
        memory_bytes=has.get("memory", 0.0),
        kinds=tuple(
            name.removeprefix(_ACCELERATOR) for name in has if name.startswith(_ACCELERATOR)
        ),
    )


def kind_resource(kind: str) -> dict[str, float]:
    """What a task asks for to run on nodes of this kind."""
    return {} if kind == CPU else {f"{_ACCELERATOR}{kind}": _TRACE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The nodes that rows of one comparison may run on."""

    kind: str
    gpus: int
    """That a row on a GPU takes; 0 for rows on a CPU alone."""

    def nodes(self) -> list[Node]:
        """Those that live now.

        Of nodes with unlike numbers of processors the largest ones alone: rows on a CPU use all
        processors, and are to be compared.
        """
        able = [
            node
            for node in living_nodes()
            if (self.kind == CPU or self.kind in node.kinds) and node.gpus >= self.gpus
        ]
        most = max((node.cpus for node in able), default=0)
        return [node for node in able if node.cpus == most]

    def resources(self, plan: Plan) -> dict[str, Any] | None:
        """Ray's options for the task of a row; None while there is no node for it."""
        nodes = self.nodes()
        if not nodes:
            return None
        gpus = self.gpus if plan.device == "cuda" else 0
        node = nodes[0]
        options: dict[str, Any] = {
            "num_cpus": max(1, node.cpus * gpus // node.gpus) if gpus else node.cpus,
            "num_gpus": gpus,
            "resources": kind_resource(self.kind),
        }
        if plan.predicted is not None:  # on a GPU, too: the weights pass through RAM
            most = min(each.memory_bytes for each in nodes)
            options["memory"] = min(plan.predicted.total_bytes, most)
        return options
