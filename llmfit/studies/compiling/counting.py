"""Counting what torch compiles: code that runs ─► graphs, breaks, recompiles.

Cases whose counts are known show that the counters count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfit.device.execution import TorchDevice

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileCounts:
    """What torch's own counters say of what ran."""

    graphs: int
    breaks: int
    recompiles: int
    """Compilations of code that had been compiled before."""
    seconds: float
    """Inside torch's compiler, by its own clock."""


class Counted:
    """Filled when ``counted`` ends."""

    def __init__(self) -> None:
        self.counts: CompileCounts | None = None


@contextmanager
def counted() -> Iterator[Counted]:
    """Count graphs, graph breaks and recompiles of what runs within.

    Compilations that failed, as those beyond torch's limit of recompiles, are not counted.
    """
    from torch._dynamo.utils import (
        clear_compilation_metrics,
        counters,
        get_compilation_metrics,
    )

    counters.clear()
    clear_compilation_metrics()
    found = Counted()
    yield found
    # ``0/2`` is the third compilation of the first frame; one without operations has no graph.
    made = [each for each in get_compilation_metrics() if each.fail_type is None]
    again = _again(str(each.compile_id) for each in made)
    graphs = int(counters["stats"]["unique_graphs"])
    graphs_again = _again(str(each.compile_id) for each in made if each.graph_op_count)
    found.counts = CompileCounts(
        graphs=graphs,
        # torch's counter passes over a branch on a tensor's value, which makes one more graph.
        breaks=max(sum(counters["graph_break"].values()), graphs - graphs_again - 1),
        recompiles=again,
        seconds=sum(each.entire_frame_compile_time_s or 0.0 for each in made),
    )


def _again(compile_ids: Iterable[str]) -> int:
    """Of compilations ``frame/number``, those of a frame that was compiled before."""
    frames = Counter(each.partition("/")[0] for each in compile_ids)
    return sum(count - 1 for count in frames.values())


# ---------------------------------------------------------------- known cases


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCase:
    """A function whose graphs, breaks and recompiles are known before it is compiled."""

    name: str
    expected: tuple[int, int, int]
    """Graphs, breaks, recompiles."""
    found: CompileCounts
    explained: int
    """Graph breaks by ``torch._dynamo.explain`` for the first call."""


def whole(x: Tensor) -> Tensor:
    """Nothing in it ends a graph."""
    return x.sin().cos()


def broken(x: Tensor) -> Tensor:
    """A graph break between two operations."""
    import torch

    y = x.sin()
    torch._dynamo.graph_break()
    return y.cos()


def count_known_cases(device: TorchDevice) -> tuple[KnownCase, ...]:
    """Count what must be 1 graph; a break, so 2; 3 shapes, so 2 recompiles; and 3 with 1 graph."""
    import torch

    same = [torch.ones(4, device=device) for _ in range(3)]
    shapes = [torch.ones(size, device=device) for size in (4, 5, 6)]
    return (
        known_case("one shape", whole, same, dynamic=False, expected=(1, 0, 0)),
        known_case("a break on purpose", broken, same, dynamic=False, expected=(2, 1, 0)),
        known_case("three shapes", whole, shapes, dynamic=False, expected=(3, 0, 2)),
        known_case("three, dynamic", whole, shapes, dynamic=True, expected=(1, 0, 0)),
    )


def known_case(
    name: str,
    function: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor],
    *,
    dynamic: bool,
    expected: tuple[int, int, int],
) -> KnownCase:
    """Call the compiled function on ``inputs``. Graphs are run by torch, not by inductor."""
    import torch

    explained = torch._dynamo.explain(function)(inputs[0])
    torch.compiler.reset()
    try:
        with counted() as found:
            compiled = torch.compile(function, backend="eager", dynamic=dynamic)
            for each in inputs:
                compiled(each)
    finally:
        torch.compiler.reset()
    assert found.counts is not None  # the context has ended
    return KnownCase(
        name=name,
        expected=expected,
        found=found.counts,
        explained=explained.graph_break_count,
    )
