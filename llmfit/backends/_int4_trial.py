"""Which 4-bit kernel a GPTQ or AWQ row runs with on a GPU: tried on the model's first blocks.

    config, cut to two blocks ─► the same random weights through each kernel's own loading
      ─► equal to plain torch? ─► seconds of a step (one CUDA graph) and of a prompt
      ─► the kernel with which the workload takes least

A kernel is chosen by its backend's name in GPTQModel, or is llmfit's (``_packed_int4``) or
PyTorch's own (``_tinygemm``), which are made from the layers of plain torch operations. All is in
the record: ``kernel.trial_s``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from llmfit.backends._packed_int4 import PackedInt4Linear, to_packed_int4
from llmfit.backends._synthetic import Pack, random_causal_lm
from llmfit.backends._tinygemm import TinyGemmLinear, to_tinygemm
from llmfit.decode.capture import capture, median_s
from llmfit.decode.step_linears import TOLERANCE
from llmfit.errors import ModelLoadError, first_line
from llmfit.quantization import Facts
from llmfit.records import Device, Plan

OWN, TINYGEMM = "llmfit", "tinygemm"
MADE_HERE: dict[str, Callable[[Any], nn.Module]] = {OWN: to_packed_int4, TINYGEMM: to_tinygemm}
"""Kernels whose layers are made from those of plain torch operations."""
PLAIN = {"gptq": "torch", "awq": "torch_awq"}
"""GPTQModel's kernels of plain torch operations, which take any layer and are the reference."""
CANDIDATES = {
    "gptq": (OWN, TINYGEMM, "exllama_v2", "triton", "marlin", "machete"),
    "awq": (OWN, TINYGEMM, "exllama_v2", "gemm_triton", "gemm", "marlin", "machete"),
}
"""Kernels for GPUs beside those; the names are transformers' and GPTQModel's. Those that take
longest to compile, once on a machine, are the last."""
_EXTENSIONS = {
    "gptq": {"exllama_v2": "exllamav2", "marlin": "marlin", "machete": "machete"},
    "awq": {
        "exllama_v2": "exllamav2_awq", "gemm": "awq", "marlin": "marlin", "machete": "machete",
    },
}  # fmt: skip
"""GPTQModel's kernels in CUDA, by the name of the library that it compiles at their first use.
Source: GPTQModel 7.6, gptqmodel/extension.py."""
_BLOCKS = 2
_WORDS = 256
"""Vocabulary of the model that is tried: embeddings and head are no part of the trial."""
_PASSES = 5
_LONGEST_S = 120.0
"""No further kernel is tried after this: some are compiled at their first use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """What a trial found."""

    method: str
    """``gptq`` or ``awq``."""
    kernel: str
    """A backend of GPTQModel's, or one of ``MADE_HERE``."""
    trial_s: dict[str, dict[str, float]]
    """Seconds for all layers of the model: of a step and of the prompt, by the kernel."""
    notes: tuple[str, ...]

    @property
    def backend(self) -> str:
        """The backend to load the checkpoint with."""
        return PLAIN[self.method] if self.kernel in MADE_HERE else self.kernel

    def apply(self, model: nn.Module) -> None:
        """Give the kernel to ``model``, which was loaded with ``backend``."""
        if self.kernel in MADE_HERE:
            _replace_layers(model, MADE_HERE[self.kernel])


@dataclass(slots=True)
class _Trial:
    """Runs candidates over the same inputs, and keeps what they took."""

    plan: Plan
    scale: float
    """Blocks of the model to one of the trial's."""
    dtype: torch.dtype = torch.bfloat16
    """What the model computes in; transformers runs AWQ on a GPU in float16."""
    expected: torch.Tensor | None = None
    step_s: dict[str, float] = field(default_factory=dict)
    prompt_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def measure(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Time ``layers`` unless they differ from the reference, which is the first to come."""
        device = self.plan.device
        batch = self.plan.workload.batch
        step = [_prepared(*each) for each in _inputs(layers, batch, device, self.dtype)]
        outputs = torch.cat([each().float().flatten() for each in step])
        if self.expected is None:
            self.expected = outputs
        difference = float((outputs - self.expected).norm() / self.expected.norm())
        if not difference <= TOLERANCE:
            self.notes.append(
                f"kernel not used, as its results differ: {name} (off by {difference:.1e})"
            )
            return
        rows = self.plan.workload.prompt_tokens
        prompt = [partial(layer, x) for layer, x in _inputs(layers, rows, device, self.dtype)]
        run, why_not = _captured(partial(_run, step), device)
        if why_not is not None and self.step_s:  # the reference is kept for want of another
            self.notes.append(f"{name} not used: it cannot be captured in a CUDA graph: {why_not}")
            return
        step_s, prompt_s = (
            median_s(each, device, _PASSES) for each in (run, partial(_run, prompt))
        )
        self.step_s[name], self.prompt_s[name] = self.scale * step_s, self.scale * prompt_s

    def fastest(self) -> str:
        """The kernel with which the plan's workload takes least."""
        steps = self.plan.workload.new_tokens - 1
        return min(self.step_s, key=lambda name: self.prompt_s[name] + steps * self.step_s[name])


@torch.inference_mode()
def choose_int4_kernel(
    plan: Plan,
    config: Any,
    facts: Facts,
    *,
    attention: str,
    pack: Pack,
    names: Sequence[str] | None = None,
) -> KernelChoice:
    """Try 4-bit kernels on the plan's device and take the one its workload is fastest with.

    ``config`` is the model's, and ``facts`` its ``quantization_config``; neither is changed.
    ``names`` are tried instead of ``CANDIDATES``. A kernel that does not load or run is a note.
    Raises ModelLoadError where not even plain torch operations can run the layers.
    """
    method = str(facts["quant_method"])
    small = _cut(config)
    trial = _Trial(plan, scale=_blocks_of(config) / _blocks_of(small))

    def layers_with(backend: str) -> list[nn.Module]:
        model = random_causal_lm(
            plan,
            copy.deepcopy(small),
            attention=attention,
            quantization={**facts, "backend": backend},
            pack=pack,
        )
        trial.dtype = model.dtype  # type: ignore[assignment]
        return int4_layers(model)

    started = time.monotonic()
    plain = layers_with(PLAIN[method])
    trial.measure(PLAIN[method], plain)
    if not trial.step_s:
        raise ModelLoadError("plain torch operations give no finite numbers for random weights.")
    for name in CANDIDATES[method] if names is None else names:
        if time.monotonic() - started > _LONGEST_S:
            trial.notes.append(f"{name} not tried: the kernels before it took too long")
            continue
        try:
            if (wanted := _not_built(name, method, trial.dtype)) is not None:
                trial.notes.append(wanted)
                continue
            if name in MADE_HERE:
                trial.measure(name, [MADE_HERE[name](layer) for layer in plain])
            else:
                trial.measure(name, layers_with(name))
        except Exception as exc:  # noqa: BLE001 - third parties compile kernels at first use
            reason = " ".join(str(exc).split())[:200]
            trial.notes.append(f"{name} not tried: {type(exc).__name__}: {reason}")
    batch = plan.workload.batch
    step = "1 token" if batch == 1 else f"a token of {batch} sequences"
    prompt = f"{plan.workload.prompt_tokens} tokens"
    return KernelChoice(
        method=method,
        kernel=trial.fastest(),
        trial_s={step: trial.step_s, prompt: trial.prompt_s},
        notes=tuple(trial.notes),
    )


def _not_built(name: str, method: str, dtype: torch.dtype) -> str | None:
    """Why a kernel in CUDA is not tried: GPTQModel would compile it now, for minutes."""
    extension_name = _EXTENSIONS[method].get(name)
    if extension_name is None:
        return None
    from gptqmodel import extension

    if extension_name == "marlin":
        extension_name = "marlin_bf16" if dtype == torch.bfloat16 else "marlin_fp16"
    built = extension._extension_for_name(extension_name)
    if (built.build_root() / f"{built.name}.so").is_file():
        return None
    return (
        f"{name} not tried: GPTQModel has not compiled it yet; once: python -c 'from gptqmodel "
        f'import extension; extension.load("{extension_name}")\''
    )


def int4_layers(model: nn.Module) -> list[nn.Module]:
    """GPTQModel's layers of ``model`` and those made from them, in its order."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    return [
        module
        for module in model.modules()
        if isinstance(module, (BaseQuantLinear, PackedInt4Linear, TinyGemmLinear))
    ]


def _replace_layers(model: nn.Module, make: Callable[[Any], nn.Module]) -> None:
    """Replace the layers of plain torch operations in ``model`` one by one."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    names = [name for name, each in model.named_modules() if isinstance(each, BaseQuantLinear)]
    for name in names:
        model.set_submodule(name, make(model.get_submodule(name)))


def _cut(config: Any) -> Any:
    """A copy of ``config`` for a model of its first blocks."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = min(_BLOCKS, text.num_hidden_layers)
    text.vocab_size, text.pad_token_id = min(_WORDS, text.vocab_size), None
    if kinds is not None:
        text.layer_types = list(kinds[: text.num_hidden_layers])
    return small


def _blocks_of(config: Any) -> int:
    return int(config.get_text_config().num_hidden_layers)


def _inputs(
    layers: Sequence[Any], rows: int, device: Device, dtype: torch.dtype
) -> list[tuple[Any, torch.Tensor]]:
    """Each layer with its inputs [1, rows, K], the same ones for every kernel."""
    random = torch.Generator(device).manual_seed(0)
    by_width: dict[int, torch.Tensor] = {}
    for layer in layers:
        width = int(layer.in_features)
        if width not in by_width:
            values = torch.randn(1, rows, width, generator=random, device=device)
            by_width[width] = values.to(dtype)
    return [(layer, by_width[int(layer.in_features)]) for layer in layers]


def _prepared(layer: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A product of a step. What llmfit's layer does to one row of inputs first is no part of it: in
    a compiled step the kernel that makes them does it."""
    if isinstance(layer, PackedInt4Linear) and x.numel() == layer.in_features:
        return partial(layer.product, layer.prepare(x), x)
    return partial(layer, x)


def _run(products: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
    return [product() for product in products]


def _captured(run: Callable[[], object], device: Device) -> tuple[Callable[[], object], str | None]:
    """``run`` as one CUDA graph; on a CPU, or with the reason where it cannot, as it is."""
    if device == "cpu":
        return run, None
    try:
        return capture(run)[0].replay, None
    except RuntimeError as exc:
        return run, first_line(exc)
