"""Products with the same inputs as one, in the graph of a compiled decode step on a CPU.

    x ─► linear_bf16(x, query), linear_bf16(x, key), linear_bf16(x, value)
      ─► linears_bf16(x, [query, key, value]) ─► three views

Threads start and wait for each other at every product. A layer's attention has three that read the
same inputs, and its MLP two: one call of ``linears_bf16`` for each costs that once, gives the same
numbers, and copies no weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files


class JoinLinears(CustomGraphPass):  # type: ignore[misc]
    """A pass over inductor's functional graph, in which no node changes another's value."""

    def __call__(self, graph: fx.Graph) -> None:
        """Join, in place, every set of products of one input that agree in having biases or not."""
        if not hasattr(torch.ops.llmfit, "linear_bf16"):
            return  # no kernels were made here, or none are needed
        product = torch.ops.llmfit.linear_bf16.default
        sets: dict[tuple[fx.Node, bool], list[fx.Node]] = defaultdict(list)
        for node in graph.find_nodes(op="call_function", target=product):
            x, weight, bias = node.args
            # What is not computed in the graph is there before the first product.
            if all(each is None or each.op == "placeholder" for each in (weight, bias)):
                sets[x, bias is None].append(node)
        for nodes in sets.values():
            if len(nodes) > 1:
                _join(graph, nodes)

    def uuid(self) -> Any:
        """Part of the key by which inductor keeps what it compiled."""
        return get_hash_for_files((__file__,))


def _join(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Put one product, of which ``nodes`` are slices, where the first of them is."""
    x = nodes[0].args[0]
    weights: list[Any] = [node.args[1] for node in nodes]
    biases = [node.args[2] for node in nodes if node.args[2] is not None]
    with graph.inserting_before(nodes[0]):
        joint = graph.call_function(torch.ops.llmfit.linears_bf16.default, (x, weights, biases))
        start = 0
        for node, weight in zip(nodes, weights, strict=True):
            end = start + weight.meta["val"].shape[0]
            dim = node.meta["val"].dim() - 1
            piece = graph.call_function(torch.ops.aten.slice.Tensor, (joint, dim, start, end))
            node.replace_all_uses_with(piece)
            start = end
    for node in nodes:
        graph.erase_node(node)
