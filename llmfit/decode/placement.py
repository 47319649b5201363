"""Where a PyTorch model computes, also one whose weights accelerate keeps elsewhere."""

from __future__ import annotations

import re

import torch
from torch import nn

_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+$")
"""A decoder layer's name. Source: transformers 5.23, ModuleLists of the decoder-only models."""


def execution_device(model: nn.Module) -> torch.device:
    """The device that takes a model's ids, and on which its cache lies.

    It is the parameters' own; where accelerate dispatched the model, they may be on a ``meta``
    device until a layer runs, and the first GPU of its device map computes, else the CPU.
    """
    places = _places(model)
    if not places:
        return next(model.parameters()).device
    gpus = [place for place in places.values() if str(place) not in ("cpu", "disk")]
    return torch.device(gpus[0] if gpus else "cpu")


def is_spread(model: nn.Module) -> bool:
    """Whether its layers are on several devices, or several processes share them.

    No graph of a step is made then, and no kernel but the library's tried.
    """
    return (
        len(set(map(str, _places(model).values()))) > 1 or (getattr(model, "_tp_size", 1) or 1) > 1
    )


def layers_by_place(model: nn.Module) -> dict[str, int]:
    """Decoder layers on each device that accelerate's map names, in the map's order.

    Of a device that has other parts alone, 0.
    """
    found: dict[str, int] = {}
    names = [name for name, _ in model.named_modules() if _LAYER.search(name)]
    for part, place in _places(model).items():
        inside = (
            sum(name == part or name.startswith(f"{part}.") for name in names)
            if part
            else len(names)
        )
        found[str(place)] = found.get(str(place), 0) + inside
    return found


def _places(model: nn.Module) -> dict[str, int | str | torch.device]:
    """accelerate's device map; empty for a model that it has not placed."""
    places = getattr(model, "hf_device_map", None)
    return places if isinstance(places, dict) else {}
