"""Models that are stored quantised in a format of their own, run as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfit.backends._checkpoint import given_checkpoint, quantized_config
from llmfit.backends._hf import (
    HfModel,
    TorchBackend,
    fused_attention,
    linear_kernel,
    load_causal_lm,
    run_one_token,
)
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import weights_bytes
from llmfit.backends.base import (
    TORCH,
    Check,
    LoadedModel,
    LoadInfo,
    Package,
    Progress,
    no_progress,
)
from llmfit.errors import BackendUnavailable
from llmfit.models import tensor_shapes
from llmfit.quantization import Facts, stored_quantization
from llmfit.records import Kernel, Plan
from llmfit.units import format_percent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """A ``quant_method`` that transformers loads, and what it takes."""

    packages: tuple[Package, ...] = ()
    kernels: tuple[Package, ...] = ()
    """Packages whose kernels read the packed weights on a GPU."""
    unpacks: bool = False
    """``quantization_config`` has a ``dequantize`` key, for where there is no such kernel."""
    lost: str | None = None
    """What the format does beside its weights, and what is not done when they are unpacked."""


_KERNELS = Package("kernels", "kernels")
_METHODS: Mapping[str, _Method] = {
    "compressed-tensors": _Method(packages=(Package("compressed_tensors", "compressed-tensors"),)),
    "fp8": _Method(
        kernels=(_KERNELS,),
        unpacks=True,
        lost="only the weights are rounded: an FP8 kernel rounds the activations too",
    ),
    "mxfp4": _Method(kernels=(_KERNELS, Package("triton", "triton")), unpacks=True),
}
OWN_ROWS: Mapping[str, str] = {
    "gptq": "gptq", "awq": "awq", "bitsandbytes_8bit": "int8", "bitsandbytes_4bit": "nf4",
}  # fmt: skip
"""Methods whose checkpoints are rows of their own, and which."""
_BESIDE: Mapping[str, str] = {
    ".weight_packed": ".weight", ".weight_scale": ".weight", ".weight_scale_inv": ".weight",
    "_blocks": "",
}  # fmt: skip
"""End of the name of a tensor that only a quantised matrix has → end of the matrix's own name."""

_PACKED_NOTE = "weights packed in memory"
_UNPACKED_NOTE = "unpacked to bfloat16: memory and speed are bf16's, the quality is the format's"


class Stored(TorchBackend):
    """compressed-tensors, FP8 in blocks, MXFP4: read by transformers, with whatever kernel it has.

    On a CPU all of them are unpacked to bfloat16, which the row's notes say.
    """

    id = "stored"
    label = "As stored"
    packages = (*TORCH, Package("accelerate", "accelerate"))
    extra = "stored"
    takes_checkpoint = True
    loads_quantized = frozenset(_METHODS)

    def check(self, plan: Plan) -> Check:
        """See ``Backend.check``: a row only for what is stored in such a format."""
        name, method = plan.model.name, plan.model.quantization
        if plan.checkpoint is not None:
            return super().check(plan)
        if method is None:
            return Check(skipped=f"{name} is not stored quantised; the other rows quantise it")
        if method in OWN_ROWS:
            return Check(skipped=f"{name} is stored as {method}: that is row {OWN_ROWS[method]}")
        if method not in _METHODS:
            return Check(
                skipped=f"{name} is stored as {method}; of such formats {self.id} loads "
                f"{', '.join(_METHODS)}. Take the unquantised model"
            )
        outcome = super().check(plan)
        missing = [each for each in _METHODS[method].packages if each.installed() is None]
        if outcome.unavailable is None and missing:
            names = ", ".join(package.distribution for package in missing)
            return Check(unavailable=f"{names} not installed: {self.install_hint()}")
        return outcome

    def load(self, plan: Plan, progress: Progress = no_progress) -> LoadedModel:
        """See ``Backend.load``. Raises BackendUnavailable where the format's package is missing."""
        spec = plan.model
        taken: tuple[str, ...] = ()
        if plan.checkpoint is not None:
            spec, taken = given_checkpoint(self.id, self.loads_quantized, plan)
        method = str(spec.quantization)
        for package in _METHODS[method].packages:
            if package.installed() is None:
                raise BackendUnavailable(
                    f"{method} checkpoints need {package.distribution}.", hint=self.install_hint()
                )
        folder = Path(spec.path)
        facts, notes = _for_device(method, stored_quantization(folder) or {}, plan.device)
        config = quantized_config(folder, facts, plan)
        attention, attention_notes = fused_attention(config)
        model = load_causal_lm(spec.path, plan, attention=attention, config=config)
        run_one_token(model)
        share = _stored_share(folder, config)
        packed = _METHODS[method].unpacks and not facts.get("dequantize")
        info = LoadInfo(
            kernel=Kernel(linear=linear_kernel(model), attention=attention),
            dtype=method if packed else f"bfloat16 (stored as {method})",
            weights_bytes=weights_bytes(model),
            quantized_share=share if packed else 0.0,
            notes=(
                f"{format_percent(share)} of parameters stored as {method}",
                _PACKED_NOTE if packed else _UNPACKED_NOTE,
                *taken,
                *notes,
                *attention_notes,
            ),
            artifact=spec.path,
        )
        return HfModel(
            model,
            tokenizer=tokenizer_of(plan),
            info=info,
            context_length=plan.model.max_position_embeddings,
            kv_cache_dtype=plan.kv_cache_dtype,
        )


def _for_device(method: str, said: Facts, device: str) -> tuple[Facts, tuple[str, ...]]:
    """The ``quantization_config`` to load with, and a note where that unpacks for want of a kernel.

    Said outright, since transformers' own choice looks at the machine and not at the row's device.
    """
    kind = _METHODS[method]
    missing = [package.distribution for package in kind.kernels if package.installed() is None]
    if not kind.unpacks or (device != "cpu" and not missing):
        return said, ()
    notes: tuple[str, ...] = () if kind.lost is None else (kind.lost,)
    if device != "cpu":
        notes += (f"no kernel for packed {method}: pip install {' '.join(missing)}",)
    return {**said, "dequantize": True}, notes


def _stored_share(folder: Path, config: Any) -> float:
    """Share of the parameters that the checkpoint holds quantised, by its tensors' names, 0…1."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # only the shapes, which packed tensors do not tell
        dense = AutoModelForCausalLM.from_config(config)
    sizes = {name: parameter.numel() for name, parameter in dense.named_parameters()}
    quantized = set()
    for name in tensor_shapes(folder):
        end = next((end for end in _BESIDE if name.endswith(end)), None)
        if end is not None:
            quantized.add(name.removesuffix(end) + _BESIDE[end])
    return sum(sizes.get(name, 0) for name in quantized) / sum(sizes.values())
