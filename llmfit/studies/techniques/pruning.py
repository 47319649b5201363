"""Depth pruning: the layers that change their input least are left out, the rest recovers.

    text ─► block influence of each layer ─► the least go ─► short training ─► Pruned

A layer's influence is 1 − the mean cosine similarity of what goes in and what comes out.
Source: Men et al. 2024, ShortGPT, arXiv:2403.03853.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmfit.errors import UsageError
from llmfit.studies.tuning import Draws, Training, keep_layers, text_loss, train

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A model without some layers, why those, and the loss of every step of its recovery."""

    model: Any
    layers: tuple[int, ...]
    """Those that were kept, by their old numbers."""
    influences: tuple[float, ...]
    """Of every layer of the whole model."""
    losses: tuple[float, ...]


def block_influences(model: Any, batches: Sequence[Tensor]) -> tuple[float, ...]:
    """1 − mean cosine similarity of each layer's input and output, over all tokens of ``batches``.

    0: the layer turns nothing; ``batches`` are ``int64[B, T]``.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    layers = model.model.layers
    turned = [0.0] * len(layers)

    def hook(place: int) -> Callable[..., None]:
        def see(_: Any, inputs: Any, output: Any) -> None:
            came = inputs[0].float()
            left = (output[0] if isinstance(output, tuple) else output).float()
            turned[place] += float((1 - cosine_similarity(came, left, dim=-1)).sum())

        return see

    hooks = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(layers)]
    model.eval()
    try:
        with torch.no_grad():
            for ids in batches:
                model(input_ids=ids, use_cache=False)
    finally:
        for each in hooks:
            each.remove()
    tokens = sum(ids.numel() for ids in batches)
    return tuple(total / tokens for total in turned)


def kept_layers(influences: Sequence[float], dropped: int) -> tuple[int, ...]:
    """The layers that remain when the ``dropped`` of least influence go, in their order.

    Raises UsageError where none would remain.
    """
    if not 0 <= dropped < len(influences):
        raise UsageError(f"{dropped} layers cannot be dropped of {len(influences)}.")
    order = sorted(range(len(influences)), key=lambda layer: influences[layer])
    return tuple(sorted(order[dropped:]))


def prune(
    model: Any,
    batches: Sequence[Tensor],
    draws: Draws,
    training: Training,
    *,
    dropped: int,
    progress: Callable[[int, int], None],
) -> Pruned:
    """Drop layers of ``model`` by their influence on ``batches``, and train what is left."""
    influences = block_influences(model, batches)
    kept = kept_layers(influences, dropped)
    shallow = keep_layers(model, kept)
    losses = train(shallow, partial(text_loss, shallow), draws, training, progress)
    return Pruned(model=shallow, layers=kept, influences=influences, losses=losses)
