"""Everything that llmfit raises on purpose.

    LlmfitError
    ├── UsageError           an argument is wrong                          (exit code 2)
    │   └── RunChanged         an interrupted run's rows are of other settings or versions
    ├── ModelNotFound        no such folder, hub id or config              (exit code 1)
    ├── BackendUnavailable   a package or capability is missing
    ├── ModelLoadError       the files are there and cannot be loaded
    │   └── QuantizationError  the quantised artifact could not be made
    ├── DoesNotFit           the memory budget is smaller than the need
    ├── EvaluationError      a text or task could not be scored
    │   ├── TaskUnavailable  lm-eval or a task's data is not here; speed and memory still count
    │   └── NotFinite        the model's logits are NaN or infinite: nothing it says counts
    ├── StudyError           a study could not be run to its end
    └── StoreError           a record, cache entry or output file could not be written or read

Each message says what failed and with which value; ``hint`` is the next command to try.
"""

from __future__ import annotations


class LlmfitError(Exception):
    """Root of llmfit's own errors.

    ``message`` says what failed and with which value; ``hint`` is the next thing to try
    (a command or a flag), or None where there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} Try: {self.hint}"


class UsageError(LlmfitError):
    """An argument has a value that cannot be meant."""

    exit_code = 2


class RunChanged(UsageError):
    """An interrupted run cannot be gone on with: its rows would not compare with new ones."""


class ModelNotFound(LlmfitError):
    """The model is neither a readable folder nor reachable on the hub."""


class BackendUnavailable(LlmfitError):
    """A backend cannot run here: a package is missing or this model is not of its kind."""


class ModelLoadError(LlmfitError):
    """The model's files were found and could not be loaded."""


class QuantizationError(ModelLoadError):
    """The quantised artifact that a backend loads could not be made."""


class DoesNotFit(LlmfitError):
    """The memory needed is larger than the budget."""


class EvaluationError(LlmfitError):
    """A task or text could not be scored."""


class TaskUnavailable(EvaluationError):
    """lm-eval is not installed, or a task's data is neither here nor on a reachable hub."""


class NotFinite(EvaluationError):
    """The model's logits are no finite numbers, so it has no quality and cannot be picked."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not finite numbers.",
            hint="another format, or the model's files anew: this one overflows or is damaged",
        )


class StudyError(LlmfitError):
    """A study could not be run to its end."""


class StoreError(LlmfitError):
    """A record, cache entry or output file could not be written or read."""


def first_line(error: BaseException) -> str:
    """What a library's error says first; CUDA's go on with advice to developers of kernels."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
