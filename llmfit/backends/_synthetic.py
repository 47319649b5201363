"""Random weights straight in a format's own layout, for models whose weights are not here.

    config ─► skeleton on the meta device ─► tensors, each made when it is read ─► from_pretrained
              (with the quantiser's layers)  (packed as the format packs them)     (the usual path)

transformers is given a checkpoint that exists nowhere: it asks for one tensor after the other and
puts it where a real one would go, so modules, kernels, bytes and their places are those of a real
load, and no copy in 16 bits exists where the format is smaller.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmfit.backends._several import on_gpus_alone, placement
from llmfit.backends.base import Tokenizer
from llmfit.errors import ModelLoadError, UsageError
from llmfit.foreign.errors import LibraryErrors
from llmfit.quantization import Facts
from llmfit.records import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NOTE = "synthetic weights: random, made in this format's layout; memory and speed are real"
NO_TEXT_HINT = "the same with real weights"

_BLOCK = 1_048_573
"""Elements of a block. A prime, so that rows of usual lengths differ though blocks repeat."""
_STEP = 104_729
"""How much later in the block each tensor begins than the one before; prime too."""
_GAIN = 0.5
"""Spread of a layer's outputs for inputs of spread 1. Small enough that no activation comes near
6.0, beyond which LLM.int8() leaves its int8 kernel."""
_TYPE_NAMES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32",
    "uint8": "U8", "int8": "I8", "int32": "I32",
}  # fmt: skip
"""torch's types in safetensors' words."""


class NoTokenizer(Tokenizer):
    """Stands where a model of synthetic weights has no tokenizer: token ids go in and out alone."""

    bos_id = None
    eos_id = None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Raises UsageError: random weights know no words."""
        raise no_text()

    def decode(self, ids: Sequence[int]) -> str:
        """Raises UsageError: random weights know no words."""
        raise no_text()


def no_text() -> UsageError:
    """The error of whoever asks synthetic weights for text."""
    return UsageError(
        "synthetic weights are random: they read and write no text.", hint=NO_TEXT_HINT
    )


def spread(fan_in: int) -> float:
    """Standard deviation of random weights that ``fan_in`` inputs are multiplied by.

    Activations keep their size through the layers, so logits stay finite at any depth and width.
    """
    return _GAIN / math.sqrt(fan_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeTensor:
    """A tensor of a checkpoint that is made when it is read.

    It answers as a slice of a safetensors file does, which is what transformers reads from.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def get_shape(self) -> list[int]:
        """The shape, as safetensors tells it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The type's name, as safetensors writes it."""
        return _TYPE_NAMES[str(self.dtype).removeprefix("torch.")]

    def __getitem__(self, index: object) -> Tensor:
        """The whole tensor, whatever ``index``: one device holds all of it."""
        return self.make()


class Noise:
    """Makes tensors of random content at the speed of memory.

    A block of random values is drawn once for each kind of content and repeated over a tensor;
    each tensor begins at another place in it. The same ``seed`` makes the same tensors.
    """

    def __init__(self, *, device: str, seed: int) -> None:
        import torch

        self._device = device
        self._random = torch.Generator(device).manual_seed(seed)
        self._blocks: dict[tuple[str, int, int], Tensor] = {}
        self._made = 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype, std: float) -> MadeTensor:
        """Values of a normal distribution around 0."""
        import torch

        block = self._block("normal", 0, 1, lambda: self._drawn(torch.randn))
        return self._tensor(shape, dtype, lambda: (block * std).to(dtype))

    def about(self, shape: Sequence[int], dtype: torch.dtype, value: float) -> MadeTensor:
        """Values from half to one and a half of ``value``: scales of blocks and rows."""
        import torch

        block = self._block("uniform", 0, 1, lambda: self._drawn(torch.rand))
        return self._tensor(shape, dtype, lambda: ((block + 0.5) * value).to(dtype))

    def integers(self, shape: Sequence[int], dtype: torch.dtype, low: int, high: int) -> MadeTensor:
        """Integers of a byte each, in ``low`` … ``high``, both included."""
        block = self._block(str(dtype), low, high, lambda: self._integers(low, high, 1).to(dtype))
        return self._tensor(shape, dtype, lambda: block)

    def nibbles(self, shape: Sequence[int], dtype: torch.dtype, low: int, high: int) -> MadeTensor:
        """Unsigned fields of four bits packed into ``dtype``, each in ``low`` … ``high``."""

        def packed() -> Tensor:
            fields = self._integers(low, high, 2 * dtype.itemsize)
            halves = fields.view(_BLOCK, dtype.itemsize, 2)
            return (halves[..., 0] | halves[..., 1] << 4).view(dtype).view(-1)

        block = self._block(f"nibbles of {dtype}", low, high, packed)
        return self._tensor(shape, dtype, lambda: block)

    def _drawn(self, draw: Callable[..., Tensor]) -> Tensor:
        return draw(_BLOCK, generator=self._random, device=self._device)

    def _integers(self, low: int, high: int, each: int) -> Tensor:
        import torch

        dtype = torch.int8 if low < 0 else torch.uint8
        return torch.randint(
            low, high + 1, (_BLOCK * each,),
            generator=self._random, device=self._device, dtype=dtype,
        )  # fmt: skip

    def _block(self, kind: str, low: int, high: int, draw: Callable[[], Tensor]) -> Tensor:
        """The block of this kind; drawn here and not when read, which several threads do."""
        key = (kind, low, high)
        if key not in self._blocks:
            self._blocks[key] = draw()
        return self._blocks[key]

    def _tensor(
        self, shape: Sequence[int], dtype: torch.dtype, block: Callable[[], Tensor]
    ) -> MadeTensor:
        start = self._made * _STEP % _BLOCK
        self._made += 1
        return MadeTensor(
            shape=tuple(shape), dtype=dtype, make=lambda: _repeated(block(), start, shape)
        )


def _repeated(block: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """A new tensor of ``shape`` filled with ``block`` from ``start`` on, over and over."""
    import torch

    block = torch.roll(block, -start)
    made = torch.empty(tuple(shape), dtype=block.dtype, device=block.device)
    flat = made.view(-1)
    rounds, rest = divmod(flat.numel(), block.numel())
    whole = rounds * block.numel()
    flat[:whole].view(rounds, block.numel()).copy_(block.expand(rounds, -1))
    flat[whole:] = block[:rest]
    return made


def constant(tensor: Tensor) -> MadeTensor:
    """``tensor`` itself, for small parts that a format fixes."""
    return MadeTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, make=tensor.clone)


Packed = Mapping[str, MadeTensor]
"""Tensors of one layer by their names in a checkpoint, the layer's own name left out."""
Pack = Callable[[Any, Noise], Packed]
"""Of a quantised layer without values its tensors; none for a layer that the format leaves."""


def leave_unpacked(layer: nn.Module, noise: Noise) -> Packed:
    """The ``Pack`` of unquantised models."""
    return {}


def random_causal_lm(
    plan: Plan,
    config: Any,
    *,
    attention: str,
    quantization: Facts | None = None,
    pack: Pack = leave_unpacked,
) -> nn.Module:
    """A model of transformers' ``config`` with random weights, on the plan's device, in eval mode.

    ``quantization`` is the ``quantization_config`` of a checkpoint of the wanted format and
    ``pack`` makes its layers' tensors; without them the model is in bf16. Norms, biases and other
    small parts are as the model's own code initialises them. Raises ModelLoadError.
    """
    import torch

    with LibraryErrors(f"transformers cannot build {plan.model.name}"):
        skeleton = _skeleton(config, plan.device, attention, quantization)
        noise = Noise(device=plan.device, seed=plan.seed)
        checkpoint = _checkpoint(skeleton, pack, noise)
        if quantization is not None:
            config.quantization_config = dict(quantization)
        with _quiet_about_missing(), on_gpus_alone(plan):
            model, report = type(skeleton).from_pretrained(
                None,
                config=config,
                state_dict=checkpoint,
                dtype=torch.bfloat16,
                attn_implementation=attention,
                **placement(plan),
                local_files_only=True,
                output_loading_info=True,
            )
    _require_all_taken(checkpoint, report, plan.model.name)
    model.eval()
    return_outputs_alone(model)
    module: nn.Module = model
    return module


def return_outputs_alone(model: Any) -> None:
    """Undo what a config can ask of a model's outputs: bare tuples, every layer's states."""
    for config in (model.config, model.config.get_text_config()):
        config.return_dict = True
        config.output_hidden_states = False


def _skeleton(config: Any, device: str, attention: str, quantization: Facts | None) -> Any:
    """The model without values, its layers replaced by the quantiser's where there is one."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    if quantization is None:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=attention
            )
    quantizer = AutoHfQuantizer.from_config(dict(quantization), pre_quantized=True)
    dtype = quantizer.update_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        quantizer.preprocess_model(model, dtype=dtype, device_map={"": device})
    return model


def _checkpoint(skeleton: Any, pack: Pack, noise: Noise) -> dict[str, MadeTensor]:
    """Every matrix of the model, packed where the format packs it; a tied one once."""
    tied = set(skeleton.all_tied_weights_keys)
    tensors: dict[str, MadeTensor] = {}
    for name, module in skeleton.named_modules():
        packed = pack(module, noise)
        tensors.update({f"{name}.{part}": tensor for part, tensor in packed.items()})
        if packed:
            continue
        for part, parameter in module.named_parameters(name, recurse=False):
            if parameter.dim() > 1 and part not in tied:
                std = spread(_fan_in(parameter.shape))
                tensors[part] = noise.normal(parameter.shape, parameter.dtype, std)
    return tensors


def _fan_in(shape: Sequence[int]) -> int:
    """Inputs of a matrix [out, in]; of a stack of them, which some models transpose, the larger."""
    return shape[-1] if len(shape) == 2 else max(shape[-2:])


def _require_all_taken(tensors: Mapping[str, MadeTensor], report: Any, name: str) -> None:
    """Raise ModelLoadError where transformers filled a matrix itself or left a tensor out."""
    wrong = {key: sorted(map(str, report[key])) for key in ("unexpected_keys", "mismatched_keys")}
    wrong["missing_keys"] = sorted(set(report["missing_keys"]) & set(tensors))
    for kind, keys in wrong.items():
        if keys:
            raise ModelLoadError(
                f"the synthetic checkpoint of {name} does not suit transformers' model: "
                f"{len(keys)} {kind.replace('_', ' ')}, {keys[0]} among them.",
                hint="real weights",
            )


@contextmanager
def _quiet_about_missing() -> Iterator[None]:
    """Without transformers' table of parameters that it initialises itself: those are meant."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
