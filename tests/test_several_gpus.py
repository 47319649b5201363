"""A comparison over several GPUs, as far as a machine without one shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmfit.backends._several import on_gpus_alone
from llmfit.comparison import _device, compare
from llmfit.errors import DoesNotFit, UsageError
from llmfit.models import resolve
from llmfit.planning.memory.split import fullest, predict_plan, predict_split
from llmfit.planning.speed.roofline import attach_roofline
from llmfit.records import Environment, ModelSpec, Plan, Split, Workload
from llmfit.row import ruled_out
from llmfit.testing import make_record

GB = 10**9
MACHINE = Environment(
    platform="Linux", python="3.11", cpu="CPU", cpu_cores=8, ram_bytes=512 * GB, gpu="RTX 4090",
    gpu_memory_bytes=24 * GB, gpu_count=2, gpu_bandwidth=1.0e12,
)  # fmt: skip


@pytest.fixture(scope="module")
def large() -> ModelSpec:
    """26 GB in bf16."""
    return resolve("llama-2-13b", weights=False)


def plan_over(spec: ModelSpec, gpus: int, split: Split = "balanced", backend: str = "sdpa") -> Plan:
    """A row over so many GPUs, with its prediction."""
    plan = Plan(
        backend=backend, model=spec, device="cuda", gpus=gpus, split=split,
        workload=Workload(prompt_tokens=512, new_tokens=128),
    )  # fmt: skip
    return replace(plan, predicted=predict_plan(plan))


def test_more_gpus_than_there_are_is_refused_before_anything_runs() -> None:
    """The number, what is here, and the command that plans without them."""
    with pytest.raises(UsageError, match="3 GPUs are asked for, 2 are used here") as told:
        _device(None, MACHINE, 3)
    assert "llmfit plan MODEL --gpus 3" in str(told.value.hint)
    with pytest.raises(UsageError, match="2 GPUs are asked for, none is used here"):
        _device("cpu", MACHINE, 2)
    assert _device(None, MACHINE, 2) == "cuda"
    with pytest.raises(UsageError, match="1 to 64 GPUs, not 65"):
        compare(gpus=65)


def test_what_one_gpu_lacks_two_hold(large: ModelSpec) -> None:
    """13 B in bf16 do not fit into 24 GB, and do into twice as much, by either split."""
    alone = ruled_out(plan_over(large, 1), MACHINE)
    assert alone is not None and alone[0] == "does_not_fit"
    for split in ("balanced", "tensor"):
        assert ruled_out(plan_over(large, 2, split), MACHINE) is None
    small = replace(MACHINE, gpu_memory_bytes=8 * GB)
    status, reason = ruled_out(plan_over(large, 2), small) or ("", "")
    assert status == "does_not_fit"
    assert "on each of 2 GPUs, this machine has 8.00 GB" in reason
    assert f"llmfit plan {large.name} --gpus 64" in reason


@pytest.mark.parametrize("split", ["balanced", "tensor"])
def test_a_row_s_prediction_is_the_fullest_gpu_s(large: ModelSpec, split: Split) -> None:
    """What decides whether it fits."""
    plan = plan_over(large, 2, split)
    each = predict_split(large, "sdpa", plan.workload, 2, split)
    assert each is not None and plan.predicted == fullest(each)
    whole = predict_plan(replace(plan, gpus=1))
    assert whole is not None and plan.predicted is not None
    assert plan.predicted.weights_bytes < 0.6 * whole.weights_bytes


@pytest.mark.parametrize(("split", "times"), [("balanced", 1), ("tensor", 2)])
def test_the_limit_counts_gpus_that_read_at_once(
    large: ModelSpec, split: Split, times: int
) -> None:
    """Layers one after the other read as fast as one GPU; parts of a matrix are read at once."""

    def limit(plan: Plan) -> float:
        row = replace(make_record("sdpa"), plan=plan, device="cuda")
        found = attach_roofline(row, MACHINE).roofline
        assert found is not None and found.limit_tokens_per_s is not None
        return found.limit_tokens_per_s

    assert limit(plan_over(large, 2, split)) == pytest.approx(
        times * limit(plan_over(large, 1, split))
    )


def test_a_format_of_one_gpu_says_so(large: ModelSpec) -> None:
    """Skipped, with the reason; never run on the first GPU alone."""
    status, reason = ruled_out(plan_over(large, 2, backend="compiled"), MACHINE) or ("", "")
    assert status == "skipped" and "GPU" in reason, reason


@pytest.mark.parametrize(
    "said",
    [
        "Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM",
        "The current `device_map` had weights offloaded to the disk, which needed to be re-saved.",
    ],
)
def test_what_a_library_says_of_too_few_gpus_is_no_failure(large: ModelSpec, said: str) -> None:
    """The model does not fit; another ValueError, or one of a single GPU, stays what it is."""
    with (
        pytest.raises(DoesNotFit, match="more than 2 GPUs hold"),
        on_gpus_alone(plan_over(large, 2)),
    ):
        raise ValueError(said)
    for plan, text in ((plan_over(large, 2), "another"), (plan_over(large, 1), said)):
        with pytest.raises(ValueError, match=text[:20]), on_gpus_alone(plan):
            raise ValueError(text)
