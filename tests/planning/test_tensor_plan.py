"""What each rank of a tensor split holds, against transformers' own plans on real models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from meta_models import LLAMA, SHAPES, on_meta, shape_of
from small_configs import draw

from llmfit.planning.memory import tensor_plan
from llmfit.planning.memory.split import predict_split
from llmfit.records import Workload
from llmfit.shape import ModelShape
from llmfit.testing import make_model

_VECTORS = re.compile(r"norm\.|correction_bias")
"""Some models hold vectors in two dimensions."""


@contextmanager
def rank_of(rank: int, size: int) -> Iterator[Any]:
    """A device mesh whose other processes are not there: what is sharded is all that is asked."""
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield torch.distributed.init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    finally:
        torch.distributed.destroy_process_group()


def sharded_values(config: dict[str, Any], rank: int, size: int) -> int:
    """Values that transformers' own tensor plan gives to one rank, vectors left out."""
    import torch
    from transformers.distributed import DistributedConfig
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    model = on_meta(config)
    for name in model.all_tied_weights_keys:  # they are tied after they were sharded
        module, _, own = name.rpartition(".")
        whole = torch.empty_like(model.get_parameter(name))
        setattr(model.get_submodule(module), own, torch.nn.Parameter(whole))
    with rank_of(rank, size) as mesh:
        plan, _, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=size, tp_plan="auto"))
        apply_tensor_parallelism(model, mesh, plan)
        tied = set(model.all_tied_weights_keys)
        return sum(
            (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and name not in tied and not _VECTORS.search(name)
        )


def values_here(shape: ModelShape, size: int, rank: int) -> int:
    held = tensor_plan.share(shape, size, rank)
    layers = sum(m.parameters for layer in held.of_layers() for m in layer.matrices)
    outside = held.embedding.parameters * (1 if held.tied else 2)
    return layers + outside + sum(matrix.parameters for matrix in held.extra)


@pytest.mark.parametrize("family", tensor_plan.FAMILIES)
def test_each_rank_holds_what_the_models_own_plan_gives_it(family: str) -> None:
    """Every matrix of a small model of the family, on the first and on the last of two ranks."""
    config = draw(family, 0) | {"num_attention_heads": 4, "num_key_value_heads": 2}
    if family == "helium":  # its output's matrix is square, whatever the heads' size
        config["head_dim"] = config["hidden_size"] // 4
    shape = shape_of(config)
    assert shape.basis == "architecture" and tensor_plan.why_not(shape, 2) is None
    for rank in (0, 1):
        assert values_here(shape, 2, rank) == sharded_values(config, rank, 2)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("kind", ["llama", "tied", "experts"])
def test_sizes_that_do_not_divide_are_cut_as_torch_cuts_them(kind: str, size: int) -> None:
    """A vocabulary of 1,001 and an odd MLP, on every rank."""
    config = SHAPES[kind] if kind == "experts" else SHAPES[kind] | {"intermediate_size": 701}
    for rank in range(size):
        assert values_here(shape_of(config), size, rank) == sharded_values(config, rank, size)


def test_heads_that_do_not_divide_are_refused() -> None:
    """Eight key heads are not shared out over three or sixteen GPUs; a family without a plan is
    not either."""
    shape = shape_of(LLAMA)
    assert tensor_plan.why_not(shape, 8) is None
    assert "16 query heads cannot be shared out over 3 GPUs" in str(tensor_plan.why_not(shape, 3))
    assert "8 key heads" in str(tensor_plan.why_not(shape, 16))
    gpt2 = shape_of(SHAPES["gpt2"])
    assert "none is known here for a gpt2" in str(tensor_plan.why_not(gpt2, 2))
    assert predict_split(make_model(), "sdpa", Workload(), 3, "tensor") is None
