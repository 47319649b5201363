"""Knowledge distillation: a shallower student learns the teacher's whole distribution.

    teacher's evenly spaced layers ─► student ─┐
                   text ─► teacher's logits ───┴► soft and hard loss ─► steps ─► Distilled

Sources: Hinton et al. 2015, arXiv:1503.02531 (the loss); Sanh et al. 2019, arXiv:1910.01108 (the
student begins as layers of the teacher).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfit.errors import UsageError
from llmfit.studies.base import Distilling
from llmfit.studies.tuning import Draws, Training, keep_layers, train

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A student, the teacher's layers that it began as, and the loss of every step."""

    student: Any
    layers: tuple[int, ...]
    losses: tuple[float, ...]


def distillation_loss(student: Tensor, teacher: Tensor, ids: Tensor, options: Distilling) -> Tensor:
    """mixing · T² · KL(teacher ‖ student, at temperature T) + (1 − mixing) · cross entropy.

    ``student, teacher: float[B, T, V]`` are logits, ``ids: int64[B, T]`` the text; both parts are
    means over the predicted tokens, in nats. T² keeps the soft gradients' size whatever T is.
    """
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    own = student[:, :-1].flatten(0, 1).float()
    aim = teacher[:, :-1].flatten(0, 1).float()
    hard = cross_entropy(own, ids[:, 1:].flatten())
    heat = options.temperature
    soft = kl_div(
        log_softmax(own / heat, dim=-1),
        log_softmax(aim / heat, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    return options.mixing * heat**2 * soft + (1 - options.mixing) * hard


def evenly_spaced(count: int, among: int) -> tuple[int, ...]:
    """``count`` of the layers 0 … ``among`` − 1, the first and the last of them among those.

    A single one is the first. Raises UsageError where there are not so many.
    """
    if not 1 <= count <= among:
        raise UsageError(f"a student of {count} layers cannot begin as a teacher of {among}.")
    if count == 1:
        return (0,)
    return tuple(round(place * (among - 1) / (count - 1)) for place in range(count))


def distil(
    teacher: Any,
    draws: Draws,
    training: Training,
    options: Distilling,
    *,
    layers: int,
    progress: Callable[[int, int], None],
) -> Distilled:
    """Train a student of ``layers`` layers on what ``teacher`` says of the text."""
    import torch

    kept = evenly_spaced(layers, teacher.config.num_hidden_layers)
    student = keep_layers(teacher, kept)
    teacher.eval()

    def loss_of(ids: Tensor) -> Tensor:
        with torch.no_grad():
            aim = teacher(input_ids=ids, use_cache=False).logits
        own = student(input_ids=ids, use_cache=False).logits
        return distillation_loss(own, aim, ids, options)

    losses = train(student, loss_of, draws, training, progress)
    return Distilled(student=student, layers=kept, losses=losses)
