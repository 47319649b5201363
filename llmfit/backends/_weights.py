"""The tensors that a loaded model holds: their bytes, and the pages that they lie in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llmfit.device.huge_pages import bytes_in_huge_pages, huge_page_bytes, move_to_huge_pages

if TYPE_CHECKING:
    from torch import Tensor, nn


def weights_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, a tied tensor counted once.

    bitsandbytes keeps block statistics beside its parameters (``quant_state``, ``SCB``), HQQ
    scales, zero points and biases (``meta``); they are counted too. A tensor of torchao's is those
    that it is made of.
    """
    return sum({each.data_ptr(): _bytes(each) for each in _held(model)}.values())


def put_into_huge_pages(model: nn.Module) -> int | None:
    """Move what a step of ``model``, on a CPU, reads whole into huge pages, where it lies.

    Returns the bytes of it that are in huge pages then; None where the system gives none. An
    embedding that is no output head too is left alone, as a step reads a row of it.
    """
    if huge_page_bytes() is None:
        return None
    skipped = _looked_up_alone(model) | {0}  # where there are no values
    ranges = {
        (each.data_ptr(), _bytes(each))
        for each in _held(model)
        if each.device.type == "cpu"
        and each.is_contiguous()  # else its bytes may lie elsewhere
        and not each.is_shared()
        and each.data_ptr() not in skipped
    }
    move_to_huge_pages(ranges)
    return bytes_in_huge_pages(ranges)


def _held(model: nn.Module) -> Iterator[Tensor]:
    """All tensors of ``weights_bytes``, tied ones more than once."""
    for tensor in [*model.parameters(), *model.buffers()]:
        yield from _parts(tensor)
        yield from _parts(getattr(tensor, "SCB", None))
        state = getattr(tensor, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code", "offset"):
                yield from _parts(getattr(part, name, None))
    modules: Iterable[Any] = model.modules()
    for module in modules:
        meta = getattr(module, "meta", None)
        for tensor in (*meta.values(), module.bias) if isinstance(meta, dict) else ():
            yield from _parts(tensor)


def _parts(tensor: Any) -> Iterator[Tensor]:
    """A tensor, or those that it is made of; nothing of what is none."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    elif hasattr(tensor, "untyped_storage"):
        yield tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _looked_up_alone(model: Any) -> set[int]:
    """Where the input embedding lies, unless the output head is the same."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    addresses = [
        {each.data_ptr() for each in _parts(getattr(module, "weight", None))}
        for module in (embedding, head)
    ]
    return addresses[0] - addresses[1]
