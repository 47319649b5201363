"""Text ─► a padded batch ─► its parts ─► a loss, and gradients that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfit.device.execution import TorchDevice
from llmfit.studies.tuning import TRAINING_TEXT, sequences

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token that counts for no loss: cross_entropy's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences padded to one length: ``ids`` and ``labels``, both ``int64[B, T]``."""

    ids: Tensor
    labels: Tensor
    """``ids``, and ``IGNORED`` where there is padding."""
    predicted: int
    """Tokens that the loss is a mean over: all but each sequence's first."""


def text_batch(count: int, *, tokens: int, shortest: int, seed: int, device: TorchDevice) -> Batch:
    """``count`` sequences of text, cut to ``shortest`` to ``tokens`` tokens as ``seed`` draws."""
    import torch

    ids = sequences(TRAINING_TEXT, tokens=tokens, seed=seed, most=count)
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, tokens + 1, (len(ids), 1), generator=random)
    labels = ids.masked_fill(torch.arange(tokens) >= lengths, IGNORED)
    return batch_of(ids.to(device), labels.to(device))


def batch_of(ids: Tensor, labels: Tensor) -> Batch:
    """A batch with its tokens counted."""
    return Batch(ids=ids, labels=labels, predicted=int((labels[:, 1:] != IGNORED).sum()))


def parts_of(batch: Batch, micro: int) -> tuple[Batch, ...]:
    """The batch in micro-batches of ``micro`` sequences, the last of what is left."""
    pairs = zip(batch.ids.split(micro), batch.labels.split(micro), strict=True)
    return tuple(batch_of(ids, labels) for ids, labels in pairs)


def summed_loss(model: Any, batch: Batch) -> Tensor:
    """Cross entropy in nats, summed over the predicted tokens."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    return cross_entropy(
        logits.flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def accumulate(model: Any, parts: Sequence[Batch], *, by_tokens: bool = True) -> Tensor:
    """Add up the gradients of ``parts`` and return the loss at its true scale, float32[].

    ``by_tokens`` weights a part by its tokens, which is the loss of the whole batch; without, every
    part's mean weighs the same.
    """
    whole = sum(part.predicted for part in parts)
    reported: Any = 0.0
    for part in parts:
        weight = 1 / whole if by_tokens else 1 / (part.predicted * len(parts))
        loss = summed_loss(model, part) * weight
        loss.backward()
        reported = reported + loss.detach()
    found: Tensor = reported
    return found


def name_of(batch: int, micro: int) -> str:
    """Micro-batches in words: ``4 × 4``, and ``5 × 3 + 1`` with an uneven last one."""
    whole, left = divmod(batch, micro)
    return f"{whole} × {micro}" + (f" + {left}" if left else "")
