"""What is compiled: sizes ─► ``Job``, a model and its inputs, and its output in a way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfit.device.execution import TorchDevice
from llmfit.models import data_path
from llmfit.studies.compiling.sizes import CompileSizes
from llmfit.studies.resnet import resnet

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model in evaluation mode, its inputs, and the ways to run it."""

    name: str
    model: torch.nn.Module
    inputs: dict[str, Any]
    ways: tuple[str, ...]
    published: bool = False
    """The published figures are of such a model."""

    @property
    def items(self) -> int:
        """Images or tokens of a call."""
        if "input_ids" in self.inputs:
            return int(self.inputs["input_ids"].numel())
        return len(self.inputs["pixel_values"])


def text_job(sizes: CompileSizes, device: TorchDevice, seed: int) -> Job:
    """The embedded language model on a short prompt, ``input_ids: int64[1, T]``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(data_path("embedded"))
    config.num_hidden_layers = sizes.text_layers
    model = AutoModelForCausalLM.from_pretrained(
        data_path("embedded"), config=config, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (1, sizes.text_tokens), generator=generator)
    return Job(
        name="language model",
        model=model.to(device).eval(),
        inputs={"input_ids": ids.to(device), "use_cache": False},
        ways=sizes.text_ways,
    )


def image_job(sizes: CompileSizes, device: TorchDevice, seed: int) -> Job:
    """A ResNet with random weights, ``pixel_values: float32[B, 3, P, P]``."""
    import torch

    model = resnet(seed, blocks=sizes.image_blocks)
    shape = sizes.image_batch, 3, sizes.image_pixels, sizes.image_pixels
    return Job(
        name=f"ResNet-{2 + 3 * sum(sizes.image_blocks)}",
        model=model.to(device).eval(),
        inputs={"pixel_values": torch.randn(shape).to(device)},
        ways=sizes.image_ways,
        published=True,
    )


def logits(model: Callable[..., Any], inputs: dict[str, Any], way: str) -> Tensor:
    """The model's output, under autocast for a way in BF16."""
    import torch

    device = next(value.device.type for value in inputs.values() if hasattr(value, "device"))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=is_bf16(way)):
        found: Tensor = model(**inputs).logits
    return found


def is_bf16(way: str) -> bool:
    """True for a way that computes in BF16."""
    return way.startswith("BF16")
