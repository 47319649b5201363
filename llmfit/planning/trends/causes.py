"""What else changed between two runs of the same row: the likely cause of a step."""

from __future__ import annotations

from collections.abc import Iterator

from llmfit.planning.comparing.comparable import environment_differences
from llmfit.records import Environment, RunRecord
from llmfit.units import GB

_BANDWIDTH_CHANGE = 0.1
"""Share by which the machine's bandwidth has to change to be told. A choice: on a virtual machine
it varies by some percent from run to run."""
NOTHING = "nothing that is recorded changed: look at the machine, or run again"


def likely_causes(before: RunRecord, after: RunRecord) -> tuple[str, ...]:
    """Each change in words, the likeliest first; never empty.

    The model's files come first, then what runs it, hardware, versions, and the machine's state.
    """
    return tuple(_causes(before, after)) or (NOTHING,)


def _causes(before: RunRecord, after: RunRecord) -> Iterator[str]:
    yield from _files(before, after)
    yield from _kernels(before, after)
    yield from _machine(before.environment, after.environment)
    known = {warning.code for warning in before.warnings}
    for warning in after.warnings:
        if warning.code not in known:
            yield f"{warning.code}: {warning.message}"


def _files(before: RunRecord, after: RunRecord) -> Iterator[str]:
    if before.plan is None or after.plan is None:
        return
    old, new = before.plan.model.content_hash, after.plan.model.content_hash
    if old is not None and new is not None and old != new:
        yield f"the model's files changed ({old[:8]} → {new[:8]})"
    # By name: paths differ from machine to machine, and are nobody else's business.
    if sorted(before.plan.inputs.values()) != sorted(after.plan.inputs.values()):
        yield "other input files changed"


def _kernels(before: RunRecord, after: RunRecord) -> Iterator[str]:
    for name in ("linear", "attention", "step"):
        old, new = (getattr(row.kernel, name, None) for row in (before, after))
        if old != new:
            yield f"{name} kernel {old or 'none'} → {new or 'none'}"
    if before.dtype != after.dtype:
        yield f"dtype {before.dtype} → {after.dtype}"


def _machine(before: Environment | None, after: Environment | None) -> Iterator[str]:
    if before is None or after is None:
        return
    for each in environment_differences(before, after):
        yield f"{each.name} {each.first or 'none'} → {each.second or 'none'}"
    for name, old, new in (
        ("RAM's", before.cpu_bandwidth, after.cpu_bandwidth),
        ("GPU memory's", before.gpu_bandwidth, after.gpu_bandwidth),
    ):
        if old and new and abs(new / old - 1) > _BANDWIDTH_CHANGE:
            yield (
                f"the {name} read bandwidth, measured before the rows, {old / GB:.1f} → "
                f"{new / GB:.1f} GB/s"
            )
    if before.platform != after.platform:
        yield f"platform {before.platform} → {after.platform}"
