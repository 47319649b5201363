"""Every technique of the table on one small model: memory saved, speed, accuracy lost.

    embedded model ─┬► technique_running: prefill, passes, generation ──┐
                    ├► technique_training: steps, QLoRA ────────────────┼► Found ─► technique_table
                    └► technique_models: formats, distilled, pruned ────┘

Each is held against its own baseline, measured in turns with it, and against the range that is
expected of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from llmfit.device.execution import is_out_of_memory
from llmfit.errors import BackendUnavailable, DoesNotFit, LlmfitError, TaskUnavailable
from llmfit.records import Status
from llmfit.studies import qlora
from llmfit.studies.base import StudyContext
from llmfit.studies.reference import TECHNIQUES, TECHNIQUES_OF, Expected
from llmfit.studies.technique_base import DEFAULT, REFERENCE, Sizes
from llmfit.studies.technique_models import DISTILLATION, FORMATS, PRUNING, formats, shallower
from llmfit.studies.technique_running import (
    CACHE,
    COMPILE,
    FLASH,
    compiled,
    flash_attention,
    kv_cache,
)
from llmfit.studies.technique_table import (
    Found,
    absolute_table,
    details_table,
    findings,
    main_table,
    plots,
)
from llmfit.studies.technique_training import (
    BF16,
    CHECKPOINTING,
    QLORA,
    low_rank,
    training_steps,
)
from llmfit.study_records import StudyResult

TITLE = "Optimisation techniques on a small language model"
QUESTION = "What does each technique save and cost, and is that what is expected of it?"

EXPECTED: dict[str, Expected] = {**TECHNIQUES, QLORA: qlora.EXPECTED}
_NOTES = (
    "mixed precision is a training step in BF16 autocast over float32 weights, which keep their "
    "bytes: only activations shrink.",
    "A tenth of this model's 5.2 M parameters is the embedding, which formats leave in 16 bits "
    "and layers cut off do not touch: savings of a large model's weights are larger.",
    "In a model so small a kernel's launch and Python outweigh its arithmetic: speed-ups that come "
    "from less work or fewer bytes are smaller than a large model's, and a KV cache has little to "
    "save.",
    "Formats: memory is of the weights, speed of decoding against bf16 weights with the same fused "
    "attention, accuracy against the bf16 row of the same comparison.",
)


def run(context: StudyContext) -> StudyResult:
    """See ``Study.run``. Raises UsageError for options of distillation that cannot be meant."""
    import torch

    torch.manual_seed(context.seed)
    sizes = REFERENCE if context.preset == "reference" else DEFAULT
    with ExitStack() as stack:
        folder = context.out or stack.enter_context(TemporaryDirectory(prefix="llmfit-study-"))
        found = measure_all(context, sizes, Path(folder))
    kept = () if context.out is None else tuple(f.artifact for f in found if f.artifact)
    options = context.distilling
    return StudyResult(
        study="techniques",
        title=TITLE,
        question=QUESTION,
        preset=context.preset,
        device=context.device,
        settings={
            **asdict(sizes),
            "temperature": options.temperature,
            "mixing": options.mixing,
            "seed": context.seed,
            "threads": torch.get_num_threads(),
        },
        tables=(main_table(found, EXPECTED), absolute_table(found), details_table(found)),
        plots=plots(found, EXPECTED),
        checks=tuple(check for each in found for check in each.checks),
        findings=findings(found, EXPECTED),
        reference=f"{TECHNIQUES_OF}; {qlora.EXPECTED_OF}",
        notes=(*_NOTES, *(note for each in found for note in each.notes)),
        benchmarks=tuple(result for each in found for result in each.benchmarks),
        artifacts=kept,
    )


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
        return without(status, f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}")
