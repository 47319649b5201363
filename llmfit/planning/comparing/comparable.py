"""May two records be held against each other? Only from the same machine, versions and task.

A difference between rows is taken for the formats' own, so nothing else may differ: a driver or a
library of another version moves tokens/s and the last digits of a log-probability alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from llmfit.errors import UsageError
from llmfit.records import Environment, EvaluationSettings, Plan, RunRecord

MEMORY_TOLERANCE = 0.01
"""Sizes of memory count as equal within this share: a kernel or driver keeps a varying part of the
same chips for itself. A choice; the next smaller machine has far less."""

_WITHOUT_EFFECT = frozenset({"batch_tokens"})
"""Evaluation settings that bound memory and change no result."""

_ASKED = (
    "device",
    "weights",
    "kv_cache_dtype",
    "checkpoint",
    "calibration_file",
    "budget_bytes",
    "ram_budget_bytes",
    "gpus",
    "split",
    "threads",
    "seed",
)
"""Settings in which rows of one run may differ from each other, and no row from itself."""


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A field that two records tell differently."""

    name: str
    first: object
    second: object

    def __str__(self) -> str:
        return f"{self.name} is {self.first!r} in one and {self.second!r} in the other"


def difference_in(a: Environment, b: Environment) -> str | None:
    """The first field in which machine or versions differ, with both values; None for the same.

    Hardware first, then driver, Python's minor version and the packages by name. What a machine
    did not tell (RAM, driver) is no difference.
    """
    found = next(environment_differences(a, b), None)
    return None if found is None else str(found)


def require_comparable(a: RunRecord, b: RunRecord) -> None:
    """Raise UsageError, naming the first field that differs, where two rows are not comparable.

    Machine and versions, model content, workload and evaluation settings have to be equal as far
    as both records tell them.
    """
    found = next(_record_differences(a, b), None)
    if found is not None:
        raise UsageError(
            f"records of {a.backend} and {b.backend} are not compared: {found}.",
            hint="run both in one `llmfit compare`",
        )


def _record_differences(a: RunRecord, b: RunRecord) -> Iterator[FieldDifference | str]:
    if a.environment is not None and b.environment is not None:
        yield from environment_differences(a.environment, b.environment)
    elif a.environment is not b.environment:
        yield "the environment is recorded in only one of them"
    if a.plan is not None and b.plan is not None:
        yield from _plan_differences(a.plan, b.plan)


def difference_in_what_was_asked(a: Plan, b: Plan) -> str | None:
    """The first setting in which two plans of one row differ, with both values; None for none.

    Beside what makes rows incomparable: what a run that is gone on with has to be asked again.
    """
    found = next(_asked_differences(a, b), None)
    return None if found is None else str(found)


def _asked_differences(a: Plan, b: Plan) -> Iterator[FieldDifference]:
    for name in _ASKED:
        yield from _unequal(name, getattr(a, name), getattr(b, name))
    if (a.evaluation is None) != (b.evaluation is None):
        yield FieldDifference("evaluation", a.evaluation, b.evaluation)
    yield from _plan_differences(a, b)


def environment_differences(a: Environment, b: Environment) -> Iterator[FieldDifference]:
    """All fields in which machine or versions differ; the order and exceptions of the above."""
    yield from _unequal("cpu", a.cpu, b.cpu)
    yield from _unequal("cpu_cores", a.cpu_cores, b.cpu_cores)
    if a.ram_bytes is not None and b.ram_bytes is not None:
        yield from _unequal_size("ram_bytes", a.ram_bytes, b.ram_bytes)
    yield from _unequal("gpu", a.gpu, b.gpu)
    if a.gpu_memory_bytes is not None and b.gpu_memory_bytes is not None:
        yield from _unequal_size("gpu_memory_bytes", a.gpu_memory_bytes, b.gpu_memory_bytes)
    yield from _unequal("cuda", a.cuda, b.cuda)
    if a.driver is not None and b.driver is not None:
        yield from _unequal("driver", a.driver, b.driver)
    yield from _unequal("python", _minor(a.python), _minor(b.python))
    for name in sorted(a.packages.keys() | b.packages.keys()):
        yield from _unequal(name, a.packages.get(name), b.packages.get(name))


def _plan_differences(a: Plan, b: Plan) -> Iterator[FieldDifference]:
    if a.model.content_hash is not None and b.model.content_hash is not None:
        yield from _unequal("model.content_hash", a.model.content_hash, b.model.content_hash)
    else:
        yield from _unequal("model.name", a.model.name, b.model.name)
    for name in (field.name for field in fields(a.workload)):
        yield from _unequal(
            f"workload.{name}", getattr(a.workload, name), getattr(b.workload, name)
        )
    if a.evaluation is not None and b.evaluation is not None:
        for field in fields(EvaluationSettings):
            if field.name not in _WITHOUT_EFFECT:
                x, y = getattr(a.evaluation, field.name), getattr(b.evaluation, field.name)
                yield from _unequal(f"evaluation.{field.name}", x, y)


def _unequal(name: str, a: object, b: object) -> Iterator[FieldDifference]:
    if a != b:
        yield FieldDifference(name, a, b)


def _unequal_size(name: str, a: int, b: int) -> Iterator[FieldDifference]:
    if abs(a - b) > MEMORY_TOLERANCE * max(a, b):
        yield from _unequal(name, a, b)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
