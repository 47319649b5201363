"""Products of one input joined in a graph: the same numbers, and only where that is allowed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import fx

from llmfit.decode.joint_linears import JoinLinears
from llmfit.deployer import Deployer
from llmfit.kernels.build import find_compiler, why_no_kernels

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")

WIDTHS = (64, 16, 17)


@pytest.fixture(autouse=True)
def loaded() -> None:
    """The kernels, which must be there where a compiler is."""
    assert why_no_kernels() is None


def traced(graph: fx.Graph) -> Counter[str]:
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


def of_one_input(
    inputs: list[torch.Tensor], weights: list[torch.Tensor], biases: list[torch.Tensor | None]
) -> fx.GraphModule:
    """A functional graph of a product for each weight, as inductor sees it."""
    graph = fx.Graph()
    product = torch.ops.llmfit.linear_bf16.default
    rows = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
    layers = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        matrix = graph.placeholder(f"w{i}")
        matrix.meta["val"] = weight
        layers.append((matrix, None if bias is None else graph.placeholder(f"b{i}")))
    outs = []
    for i, (matrix, added) in enumerate(layers):
        node = graph.call_function(product, (rows[i % len(rows)], matrix, added))
        node.meta["val"] = torch.empty(1, 1, weights[i].shape[0])
        outs.append(node)
    graph.output(tuple(outs))
    return fx.GraphModule(torch.nn.Module(), graph)


def run(
    module: fx.GraphModule,
    inputs: list[torch.Tensor],
    weights: list[torch.Tensor],
    biases: list[torch.Tensor | None],
) -> tuple[torch.Tensor, ...]:
    given = [*inputs]
    for weight, bias in zip(weights, biases, strict=True):
        given += [weight] if bias is None else [weight, bias]
    found: tuple[torch.Tensor, ...] = module(*given)
    return found


ONE = "llmfit.linear_bf16.default"
JOINT = "llmfit.linears_bf16.default"


@pytest.mark.parametrize(
    ("inputs", "biased", "left"),
    [
        (1, (False, False, False), {JOINT: 1}),
        (1, (True, True, True), {JOINT: 1}),
        (1, (True, False, True), {JOINT: 1, ONE: 1}),
        (3, (False, False, False), {ONE: 3}),
    ],
)
def test_joined_products_are_the_very_same(
    inputs: int, biased: tuple[bool, ...], left: dict[str, int]
) -> None:
    """Bit by bit, in their order; those of other inputs, or with a bias beside none, stay alone."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    rows = [random(1, 1, 96) for _ in range(inputs)]
    weights = [random(width, 96) for width in WIDTHS]
    biases = [random(width) if has else None for width, has in zip(WIDTHS, biased, strict=True)]
    module = of_one_input(rows, weights, biases)
    before = run(module, rows, weights, biases)
    JoinLinears()(module.graph)
    module.graph.lint()
    module.recompile()
    after = run(module, rows, weights, biases)
    assert [out.shape[-1] for out in after] == list(WIDTHS)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    found = traced(module.graph)
    assert {name: found[name] for name in found if name.startswith("llmfit")} == left


@pytest.mark.slow
def test_a_compiled_step_has_four_products_a_layer() -> None:
    """Query, key and value; output; gate and up; down; and the head once."""
    with Deployer(backend="compiled", device="cpu", threads=1).load() as deployed:
        if deployed.info.kernel.step != "llmfit bf16":
            pytest.skip("PyTorch's own products are faster here")
        layers = deployed.model.model.config.num_hidden_layers  # type: ignore[attr-defined]
        decoder = deployed.model.decoder(batch=1, capacity=16)
        decoder.prefill([[1, 2, 3]])
        decoder.step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            decoder.step()
    called = Counter(event.name for event in profile.events() if "linear" in event.name)
    assert called == {"llmfit::linears_bf16": 2 * layers, "llmfit::linear_bf16": 2 * layers + 1}
