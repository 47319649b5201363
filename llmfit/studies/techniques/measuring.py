"""Sizes ─► each technique measured in its turn ─► its Found, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from llmfit.device.execution import is_out_of_memory
from llmfit.errors import (
    BackendUnavailable,
    DoesNotFit,
    LlmfitError,
    TaskUnavailable,
    first_line,
)
from llmfit.records import Status
from llmfit.studies.base import StudyContext
from llmfit.studies.reference import TECHNIQUES, Expected
from llmfit.studies.techniques import qlora
from llmfit.studies.techniques.base import Sizes
from llmfit.studies.techniques.found import Found
from llmfit.studies.techniques.models import (
    DISTILLATION,
    FORMATS,
    PRUNING,
    formats,
    shallower,
)
from llmfit.studies.techniques.running import (
    CACHE,
    COMPILE,
    FLASH,
    compiled,
    flash_attention,
    kv_cache,
)
from llmfit.studies.techniques.training import (
    BF16,
    CHECKPOINTING,
    QLORA,
    low_rank,
    training_steps,
)

EXPECTED: dict[str, Expected] = {**TECHNIQUES, QLORA: qlora.EXPECTED}
"""The published range of every technique that is measured, in the table's order."""


def measure_all(context: StudyContext, sizes: Sizes, folder: Path) -> tuple[Found, ...]:
    """Every technique in the table's order; models that are made go into ``folder``."""
    stages: tuple[tuple[tuple[str, ...], Callable[[], tuple[Found, ...]]], ...] = (
        ((BF16, CHECKPOINTING), partial(training_steps, context, sizes)),
        ((FLASH,), partial(flash_attention, context, sizes)),
        ((COMPILE,), partial(compiled, context, sizes)),
        ((CACHE,), partial(kv_cache, context, sizes)),
        ((FLASH, *FORMATS), partial(formats, context, sizes)),
        ((DISTILLATION, PRUNING), partial(shallower, context, sizes, folder)),
        ((QLORA,), partial(low_rank, context, sizes)),
    )
    found: dict[str, Found] = {}
    for place, (names, stage) in enumerate(stages):
        context.progress(names[-1], place, len(stages))
        for each in attempt(names, stage):
            known = found.get(each.technique)
            found[each.technique] = each if known is None else _joined(known, each)
    context.progress("techniques", len(stages), len(stages))
    return tuple(found[name] for name in EXPECTED)


def _joined(time_and_memory: Found, quality: Found) -> Found:
    """Flash attention is timed by itself, and its accuracy is that of a comparison's row."""
    if time_and_memory.status != "ok" or quality.status != "ok":
        return time_and_memory
    notes = (*time_and_memory.notes, *quality.notes)
    return replace(time_and_memory, lost=quality.lost, notes=notes)


def attempt(names: Sequence[str], stage: Callable[[], tuple[Found, ...]]) -> tuple[Found, ...]:
    """What ``stage`` finds; where it cannot run here, all ``names`` with the reason."""

    def without(status: Status, reason: str) -> tuple[Found, ...]:
        return tuple(Found(technique=name, status=status, reason=reason) for name in names)

    try:
        return stage()
    except DoesNotFit as exc:
        return without("does_not_fit", exc.message)
    except (BackendUnavailable, TaskUnavailable, ImportError) as exc:
        return without("unavailable", str(exc))
    except LlmfitError as exc:
        return without("failed", str(exc))
    except (RuntimeError, MemoryError) as exc:  # torch's own, and a kernel that is missing
        status: Status = "does_not_fit" if is_out_of_memory(exc) else "failed"
        return without(status, f"{type(exc).__name__}: {first_line(exc)}")
