"""``Found`` ─► what must hold of it, and what it says in sentences."""

from __future__ import annotations

from llmfit.benchmark import speedup
from llmfit.studies.onnx_export.comparing import Apart, Likeness, Validity
from llmfit.studies.onnx_export.measuring import Found, NotRun
from llmfit.studies.words import takes
from llmfit.study_records import StudyCheck
from llmfit.units import format_bytes, format_ratio, format_seconds

_LOGIT_TOLERANCE = 1e-4
"""Of the largest logit: some hundred times the rounding of float32 in another order."""
_THEIRS = "eager PyTorch's"
_TOKENS, _LOGITS, _WHOLE_PASS, _OTHER_SIZES, _VALID = _NAMES = (
    "the same tokens, greedily",
    "the same logits, prompt and every step",
    "the graph's cache gives what one whole pass gives",
    "one graph for other batches, lengths and caches",
    "the graph is valid ONNX",
)


def checks(found: Found | NotRun) -> tuple[StudyCheck, ...]:
    """The graph answers as the model does, in its steps, at once, and at other sizes."""
    if isinstance(found, NotRun):
        return tuple(StudyCheck(name=name, holds=None, detail=found.reason) for name in _NAMES)
    return (
        *likeness_checks(found.generated),
        whole_pass_check(found.whole_pass),
        other_sizes_check(found.other_sizes),
        valid_check(found.validity),
    )


def likeness_checks(generated: Likeness) -> tuple[StudyCheck, StudyCheck]:
    """The same tokens, and the same logits as far as the tokens before them are the same."""
    return (
        StudyCheck(
            name=_TOKENS,
            holds=generated.alike == generated.tokens,
            detail=f"{generated.alike} of {generated.tokens} tokens",
        ),
        _close(_LOGITS, generated.logits),
    )


def whole_pass_check(apart: Apart) -> StudyCheck:
    """Logits by the cache are those of a pass over all tokens at once."""
    return _close(_WHOLE_PASS, apart)


def other_sizes_check(apart: Apart) -> StudyCheck:
    """Logits are the model's at sizes that were no example of the export."""
    return _close(_OTHER_SIZES, apart)


def valid_check(validity: Validity) -> StudyCheck:
    """onnx's own checker finds no fault."""
    return StudyCheck(
        name=_VALID,
        holds=validity.fault is None,
        detail=validity.fault or f"onnx.checker finds nothing, opset {validity.opset}",
    )


def _close(name: str, apart: Apart) -> StudyCheck:
    return StudyCheck(
        name=name,
        holds=apart.error <= _LOGIT_TOLERANCE * apart.largest,
        detail=(
            f"at most {apart.error:.1e} apart over {apart.over}, logits are up to "
            f"{apart.largest:.1f}; {_LOGIT_TOLERANCE:.0e} of that is allowed"
        ),
    )


def findings(found: Found) -> tuple[str, ...]:
    """Speed of the prompt and of a step against eager PyTorch, and what the export costs."""
    eager, there, exported = found.eager, found.runtime, found.exported
    prompt, step = speedup(eager.prompt, there.prompt), speedup(eager.step, there.step)
    return (
        f"The prompt under onnxruntime {takes(prompt, _THEIRS)}.",
        f"A decode step under onnxruntime {takes(step, _THEIRS)}.",
        f"The export takes {format_seconds(exported.seconds)}; its file of "
        f"{format_bytes(exported.file_bytes)} is "
        f"{format_ratio(exported.file_bytes / found.weights_bytes)} the float32 weights.",
    )
