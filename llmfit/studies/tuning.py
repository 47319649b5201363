"""A small model and its text, for studies that train: loading, drawing, steps, cutting, saving.

calibration.txt ─► sequences int64[N, T] ─► Draws int64[B, T] ─► train ─► losses
            model ─► keep_layers ─► a shallower model ─► save_model ─► folder ─► llmfit compare
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.benchmark import Case
from llmfit.device.execution import TorchDevice
from llmfit.errors import UsageError
from llmfit.models import data_path, resolve
from llmfit.quantize.calibration import load_calibration
from llmfit.records import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODEL_FOLDER = data_path("embedded")
TRAINING_TEXT = data_path("calibration.txt")
HELD_OUT_TEXT = data_path("text.txt")
QUESTIONS = data_path("hellaswag.jsonl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_SCORED_AT_ONCE = 8
_WARM_SHARE = 0.1
_LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")


# ---------------------------------------------------------------- model and text


def load_model(
    device: TorchDevice,
    *,
    folder: Path = MODEL_FOLDER,
    attention: str = "sdpa",
    in_float32: bool = False,
    quantization: Any = None,
) -> Any:
    """The model of ``folder`` by transformers, in bf16 or float32, in evaluation mode.

    ``quantization`` is a config of transformers'. Raises ModelLoadError or ModelNotFound.
    """
    from llmfit.backends._hf import load_causal_lm

    spec = resolve(str(folder))
    plan = Plan(backend="sdpa", model=spec, device="cuda" if device == "cuda" else "cpu")
    options = {} if quantization is None else {"quantization_config": quantization}
    with _no_bars():
        model: Any = load_causal_lm(spec.path, plan, attention=attention, **options)
    if in_float32:
        model = model.float()
    return model.to(device) if quantization is None else model


@contextmanager
def _no_bars() -> Iterator[None]:
    """Within, transformers draws no bars: a study reports its progress itself."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def sequences(text: Path, *, tokens: int, seed: int, most: int = 10**6) -> Tensor:
    """``int64[N, tokens]``: the text's documents in an order that ``seed`` fixes, cut evenly."""
    import torch

    from llmfit.backends._tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    found = load_calibration(str(text), tokenizer, samples=most, tokens=tokens, seed=seed)
    return torch.tensor(found)


class Draws:
    """Batches ``int64[B, T]``, drawn from ``data`` (``int64[N, T]``) in an order of ``seed``."""

    def __init__(self, data: Tensor, batch: int, *, seed: int, device: TorchDevice) -> None:
        import torch

        self._data, self.batch, self._device = data, batch, device
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        """The next batch."""
        import torch

        chosen = torch.randint(len(self._data), (self.batch,), generator=self._random)
        return self._data[chosen].to(self._device)


# ---------------------------------------------------------------- training


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A short training: AdamW, a warm-up over a tenth of the steps, then cosine down to 0."""

    steps: int
    batch: int
    tokens: int
    learning_rate: float


def text_loss(model: Any, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next tokens of ``ids: int64[B, T]``, nats."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def train(
    model: torch.nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    draws: Draws,
    training: Training,
    progress: Callable[[int, int], None],
) -> tuple[float, ...]:
    """Train what of ``model`` has gradients, by ``loss_of`` each batch; the loss of every step."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(training.steps))
    losses = []
    model.train()
    for step in range(training.steps):
        progress(step, training.steps)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(draws())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return tuple(losses)


def _rate(steps: int) -> Callable[[int], float]:
    warm = max(1, round(_WARM_SHARE * steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return rate


def step_case(
    name: str,
    model: Any,
    optimizer: torch.optim.Optimizer,
    draws: Draws,
    *,
    device: TorchDevice,
    bf16: bool = False,
) -> Case:
    """A training step on the text, for ``Benchmark``; ``bf16`` runs the forward in autocast."""
    import torch

    def step(ids: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16) if bf16 else nullcontext():
            loss = text_loss(model, ids)
        loss.backward()
        optimizer.step()

    model.train()
    return Case(
        name=name,
        call=step,
        prepare=draws,
        batch_size=draws.batch,
        model=model,
        optimizer=optimizer,
        kind="training step",
        count_flops=False,
    )


def mean_loss(model: Any, data: Tensor, device: TorchDevice) -> float:
    """Mean cross entropy over ``data: int64[N, T]``, nats a token, in the mode the model is in."""
    import torch

    total = 0.0
    with torch.no_grad():
        for part in data.split(_SCORED_AT_ONCE):
            total += len(part) * text_loss(model, part.to(device)).item()
    return total / len(data)


def next_token_accuracy(model: Any, data: Tensor, device: TorchDevice) -> float:
    """Share of the tokens of ``data: int64[N, T]`` that the model finds the most likely next."""
    import torch

    model.eval()
    right = 0
    with torch.no_grad():
        for part in data.split(_SCORED_AT_ONCE):
            ids = part.to(device)
            guessed = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
            right += int((guessed == ids[:, 1:]).sum())
    return right / data[:, 1:].numel()


# ---------------------------------------------------------------- cutting and saving


def keep_layers(model: Any, kept: Sequence[int]) -> Any:
    """A new model with copies of the layers ``kept``, in that order, and of all that is no layer.

    Raises UsageError for no layers, or one that is not there.
    """
    config = deepcopy(model.config)
    there = config.num_hidden_layers
    if not kept or not set(kept) <= set(range(there)):
        raise UsageError(f"layers {list(kept)} cannot be kept of {there}.")
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[layer] for layer in kept]
    new = {old: place for place, old in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        layer = _LAYER.search(name)
        if layer is None:
            state[name] = tensor
        elif int(layer.group()) in new:
            state[_LAYER.sub(str(new[int(layer.group())]), name, count=1)] = tensor
    # Made in float32 and not cast as a whole, which would round the rotary frequencies too.
    shallow = type(model)(config)
    for parameter in shallow.parameters():
        parameter.data = parameter.data.to(model.dtype)
    shallow.load_state_dict(state)
    shallow.generation_config = deepcopy(model.generation_config)
    return shallow.to(model.device).eval()


def save_model(model: Any, folder: Path) -> None:
    """Write ``model`` in bf16 with the tokenizer's files, as a folder that loads anywhere."""
    import torch

    copy = deepcopy(model).to(torch.bfloat16)
    copy.config.dtype = torch.bfloat16
    folder.mkdir(parents=True, exist_ok=True)
    with _no_bars():
        copy.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(MODEL_FOLDER / name, folder / name)
