"""Products with the same inputs as one, in the graph of a compiled decode step.

    x ─► linear_bf16(x, query), linear_bf16(x, key), linear_bf16(x, value)
      ─► linears_bf16(x, [query, key, value]) ─► three views

On a CPU threads start and wait for each other at every product, and on a GPU a kernel fills and
drains it. A layer's attention has three that read the same inputs, and its MLP two: one call for
each costs that once, gives the same numbers, and copies no weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from llmfit.kernels.gpu_support import MOST_MATRICES


class JoinLinears(CustomGraphPass):  # type: ignore[misc]
    """A pass over inductor's functional graph, in which no node changes another's value."""

    def __call__(self, graph: fx.Graph) -> None:
        """Join, in place, every set of products of one input that agree in all but the weights."""
        same = _numbered(graph)
        sets: dict[Hashable, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            if _name(node) not in (_CPU, _GPU, _GPU_PACKED):
                continue
            x, weights, biases, *rest = _parts(node)
            # What is not computed in the graph is there before the first product.
            if all(each.op == "placeholder" for each in (*weights, *biases)):
                sets[node.target, same[x], bool(biases), _frozen(rest, same)].append(node)
        for nodes in sets.values():
            most = len(nodes) if _name(nodes[0]) == _CPU else MOST_MATRICES
            for start in range(0, len(nodes), most):
                if len(joined := nodes[start : start + most]) > 1:
                    _join(graph, joined)
        graph.eliminate_dead_code()  # the inputs of all but the first, in a form of their own

    def uuid(self) -> Any:
        """Part of the key by which inductor keeps what it compiled."""
        return get_hash_for_files((__file__,))


_CPU, _GPU, _GPU_PACKED = (
    "llmfit::linear_bf16",
    "llmfit_gpu::linears_bf16",
    "llmfit_gpu::linears_packed",
)
"""Products that can be joined."""


def _name(node: fx.Node) -> str | None:
    """The operator that a node calls."""
    return node.target.name() if isinstance(node.target, torch._ops.OpOverload) else None


def _parts(node: fx.Node) -> tuple[Any, ...]:
    """Inputs, all tensors of the matrices, biases, and whatever else a product is given."""
    if _name(node) == _CPU:
        x, weight, bias = node.args
        return x, [weight], [] if bias is None else [bias]
    if _name(node) == _GPU:
        x, weights, biases = node.args
        return x, weights, biases
    x, words, scales, biases, table, *rest = node.args
    # Every layer has a table of its own, of the same values.
    return x, [*words, *scales], biases, table is None, *rest  # type: ignore[misc]


def _numbered(graph: fx.Graph) -> dict[fx.Node, int]:
    """The nodes, those that compute the same from the same under one number."""
    numbers: dict[fx.Node, int] = {}
    seen: dict[Hashable, int] = {}
    for node in graph.nodes:
        key: Hashable = node
        if node.op == "call_function" and torch.Tag.nondeterministic_seeded not in getattr(
            node.target, "tags", ()
        ):
            key = (node.target, _frozen(node.args, numbers), _frozen(node.kwargs, numbers))
        numbers[node] = seen.setdefault(key, len(seen))
    return numbers


def _frozen(value: Any, numbers: dict[fx.Node, int]) -> Hashable:
    """Arguments as a key, in which a node is its number."""
    if isinstance(value, fx.Node):
        return ("node", numbers[value])
    if isinstance(value, dict):
        return tuple((name, _frozen(each, numbers)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each, numbers) for each in value)
    return (type(value), value)


def _join(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Put one product, of which ``nodes`` are slices, where the first of them is."""
    with graph.inserting_before(nodes[0]):
        joint = graph.call_function(*_joint_call(nodes))
        # By these, which only traced nodes have, inductor lays inputs out as an operator wants.
        if all("val" in each.meta for each in joint.all_input_nodes):
            values = fx.map_arg(joint.args, lambda each: each.meta["val"])
            joint.meta["eager_input_vals"] = (values, {})
        start = 0
        for node in nodes:
            value = node.meta["val"]
            end = start + value.shape[-1]
            piece = graph.call_function(
                torch.ops.aten.slice.Tensor, (joint, value.dim() - 1, start, end)
            )
            node.replace_all_uses_with(piece)
            start = end
    for node in nodes:
        graph.erase_node(node)


def _joint_call(nodes: Sequence[fx.Node]) -> tuple[Any, tuple[Any, ...]]:
    """The operator that makes all products, and its arguments."""
    first: tuple[Any, ...] = nodes[0].args
    columns: list[Any] = list(zip(*(node.args for node in nodes), strict=True))
    if _name(nodes[0]) == _CPU:
        _, weights, biases = columns
        given = [bias for bias in biases if bias is not None]
        return torch.ops.llmfit.linears_bf16.default, (first[0], list(weights), given)
    lists = 2 if _name(nodes[0]) == _GPU else 3
    joined = [[each for one in column for each in one] for column in columns[1 : 1 + lists]]
    return nodes[0].target, (first[0], *joined, *first[1 + lists :])
