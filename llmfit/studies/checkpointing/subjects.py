"""Shapes ─► the models to train, each with its ways of running its layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmfit.device.execution import TorchDevice
from llmfit.studies.tuning import load_model, text_loss

if TYPE_CHECKING:
    from torch import Tensor

    from llmfit.studies.transformer import TransformerShape

OFF, ON, SELECTIVE, EVERY_SECOND = "off", "on", "selective", "every 2nd"
_ITEM = 4
"""Bytes of a float32."""
_PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""Operators of ATen whose results selective checkpointing keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to train, and its ways of running its layers."""

    name: str
    model: Any
    bare: Any
    """The same model without layers: what is kept outside them."""
    loss: Callable[[Any, Tensor], Tensor]
    """Of the model and ``ids``."""
    modes: Mapping[str, Callable[[Any], None]]
    """Each sets the model to a way of running its layers; the first is without checkpointing."""
    layers: int
    width: int
    positions: int
    """Tokens of a batch that the layers see."""
    ids: Tensor
    """int64, a sequence each row."""

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs of all layers, one ``float32[B, T, C]`` each."""
        return self.layers * self.positions * self.width * _ITEM


class Selective:
    """Runs a layer so that its matrix products are kept and the rest is made again."""

    def __init__(self) -> None:
        self.listed: list[Tensor] | None = None
        """Where what is kept is listed, while it is counted."""

    def __call__(self, block: Callable[..., Tensor], x: Tensor, turn: object) -> Tensor:
        from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

        out: Tensor = checkpoint(
            block,
            x,
            turn,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(self._policy),
        )
        return out

    def _policy(self, context: Any, operator: Any, *_: object, **__: object) -> Any:
        from torch import Tensor
        from torch.utils._pytree import tree_leaves
        from torch.utils.checkpoint import CheckpointPolicy

        if operator.namespace != "aten" or operator._schema.name[6:] not in _PRODUCTS:
            return CheckpointPolicy.PREFER_RECOMPUTE
        if self.listed is not None and not context.is_recompute:
            leaves = tree_leaves(context.op_output)
            self.listed += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return CheckpointPolicy.MUST_SAVE


def checkpointed(block: Callable[..., Tensor], x: Tensor, turn: object) -> Tensor:
    """Runs a layer so that of its tensors only ``x`` is kept."""
    from torch.utils.checkpoint import checkpoint

    out: Tensor = checkpoint(block, x, turn, use_reentrant=False)
    return out


def own_subject(
    shape: TransformerShape, *, batch: int, tokens: int, device: TorchDevice
) -> Subject:
    """The studies' own Transformer, on random tokens."""
    import torch

    from llmfit.studies.transformer import Transformer

    def loss(model: Any, ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def runs(run_block: Callable[..., Tensor] | None) -> Callable[[Any], None]:
        return lambda model: setattr(model, "run_block", run_block)

    ids = torch.randint(shape.vocabulary, (batch, tokens + 1))
    return Subject(
        name=f"own Transformer, {shape.layers} layers",
        model=Transformer(shape).to(device),
        bare=Transformer(replace(shape, layers=0)).to(device),
        loss=loss,
        modes={OFF: runs(None), ON: runs(checkpointed), SELECTIVE: runs(Selective())},
        layers=shape.layers,
        width=shape.width,
        positions=batch * tokens,
        ids=ids.to(device),
    )


def library_subject(*, batch: int, tokens: int, device: TorchDevice) -> Subject:
    """The embedded model by transformers, whose own switch is what a user would turn."""
    import torch

    model = load_model(device, in_float32=True).train()
    config = deepcopy(model.config)
    config.num_hidden_layers = 0
    ids = torch.randint(config.vocab_size, (batch, tokens))
    return Subject(
        name=f"embedded model by transformers, {model.config.num_hidden_layers} layers",
        model=model,
        bare=type(model)(config).to(device).train(),
        loss=text_loss,
        modes={
            OFF: _by_transformers(None),
            ON: _by_transformers(1),
            EVERY_SECOND: _by_transformers(2),
        },
        layers=model.config.num_hidden_layers,
        width=config.hidden_size,
        positions=ids.numel(),
        ids=ids.to(device),
    )


def _by_transformers(every: int | None) -> Callable[[Any], None]:
    """Transformers' own switch, on for every so many layers; None turns it off."""

    def switch(model: Any) -> None:
        with warnings.catch_warnings():
            # The names that all releases of today have, and that 5.23 calls outdated.
            warnings.simplefilter("ignore", FutureWarning)
            if every is None:
                model.gradient_checkpointing_disable()
                return
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=every
            )
        # Every call adds a hook, for training with frozen embeddings, that nothing takes away.
        model.disable_input_require_grads()

    return switch
