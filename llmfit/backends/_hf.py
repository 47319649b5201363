"""What the Transformers backends share: loading, and the loaded model around it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.backends._several import on_gpus_alone, placement, require_on_gpus
from llmfit.backends._synthetic import NOTE as SYNTHETIC_NOTE
from llmfit.backends._synthetic import random_causal_lm, return_outputs_alone
from llmfit.backends._tokenizer import tokenizer_of
from llmfit.backends._weights import put_into_huge_pages, weights_bytes
from llmfit.backends.base import Backend, Check, LoadedModel, LoadInfo, Package, Tokenizer
from llmfit.errors import LlmfitError, ModelLoadError
from llmfit.foreign.errors import LibraryErrors
from llmfit.foreign.files import check_configs
from llmfit.models import config_of
from llmfit.planning.memory.kv_cache import unsuited
from llmfit.records import Kernel, KvCacheDtype, ModelSpec, Plan
from llmfit.units import format_percent

if TYPE_CHECKING:
    from torch import nn

    from llmfit.decode.base import Decoder, LogitsVisitor, Window, WindowScore

_ENOUGH = 0.9
"""Share of the parameters that files hold at least; shapes are exact to a hundredth."""
KV_CACHE_PACKAGE = Package("hqq", "hqq")
"""Quantises the KV cache where the plan asks for it."""


class TorchBackend(Backend):
    """What the backends that run a transformers model have in common."""

    def check(self, plan: Plan) -> Check:
        """As the base, and what a quantised KV cache needs where the plan asks for one."""
        outcome = super().check(plan)
        if outcome != Check() or plan.kv_cache_dtype is None:
            return outcome
        if KV_CACHE_PACKAGE.installed() is None:
            return Check(
                unavailable=f"hqq not installed, for --kv-cache-dtype {plan.kv_cache_dtype}: "
                "pip install 'llmfit[kv]'"
            )
        return Check(skipped=unsuited(plan.model, plan.kv_cache_dtype))

    def prepare(self, plan: Plan) -> None:
        """As the base; also imports the model's own class and wakes the matrix library."""
        super().prepare(plan)
        import torch
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoTokenizer

        del AutoTokenizer  # transformers imports a class's module when its name is first read
        torch.nn.functional.linear(*torch.ones(2, 64, 64, dtype=torch.bfloat16))
        with suppress(LlmfitError, KeyError):  # load meets the same and says it properly
            MODEL_FOR_CAUSAL_LM_MAPPING[type(plan_config(plan))]


class HfModel(LoadedModel):
    """A transformers causal language model in memory, whatever its linear layers are.

    With ``kv_cache_dtype`` it decodes and scores over transformers' quantised cache, says so in its
    notes, and raises ModelLoadError where the model cannot have one. Loading ends with the weights
    in huge pages of a CPU's memory, and a trial of the kernels that can run its decode steps;
    without ``own_kernels`` none of llmfit's, without ``own_attention`` not its attention. The steps
    go through ``torch.compile`` with ``compiled``, and on a GPU, where they can, with
    ``may_compile``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Tokenizer,
        info: LoadInfo,
        context_length: int,
        compiled: bool = False,
        may_compile: bool = False,
        kv_cache_dtype: KvCacheDtype | None = None,
        own_kernels: bool = True,
        own_attention: bool = True,
    ) -> None:
        from llmfit.decode.graph_step import attends_itself
        from llmfit.decode.placement import is_spread
        from llmfit.decode.step_linears import StepLinears, choose_step_linears

        config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
        self.model = model
        self.tokenizer = tokenizer
        if kv_cache_dtype is not None:
            info = _with_cache(info, model, kv_cache_dtype)
        on_cpu = model.device.type == "cpu"
        huge, self._linears = None, StepLinears()
        if not is_spread(model):
            if on_cpu:
                huge = put_into_huge_pages(model)
            self._linears = choose_step_linears(
                model, own=own_kernels, norms=on_cpu and not compiled
            )
        attention = info.kernel.attention
        self._may_compile = may_compile and model.device.type == "cuda" and kv_cache_dtype is None
        self._own_attention = own_attention and on_cpu and kv_cache_dtype is None
        if (compiled or self._may_compile or self._own_attention) and attends_itself(model):
            attention += ", in steps llmfit"
        self.info = replace(
            info,
            huge_page_bytes=huge,
            kernel=replace(
                info.kernel,
                attention=attention,
                step=self._linears.kernel,
                trial_s=info.kernel.trial_s | self._linears.trial_s,
            ),
            notes=(*info.notes, *self._linears.notes, *_unused(model)),
        )
        self.vocab_size = int(config.vocab_size)
        self.context_length = context_length
        self._compiled = compiled
        self._kv_cache_dtype = kv_cache_dtype

    def decoder(self, *, batch: int, capacity: int, prefill_chunk: int | None = None) -> Decoder:
        """See ``LoadedModel.decoder``."""
        from llmfit.decode.torch_decoder import TorchDecoder

        self.check_capacity(capacity)
        return TorchDecoder(
            self.model,
            batch=batch,
            capacity=capacity,
            pad_id=self._pad_id(),
            compiled=self._compiled,
            may_compile=self._may_compile,
            kv_cache_dtype=self._kv_cache_dtype,
            prefill_chunk=prefill_chunk,
            linears=self._linears,
            own_attention=self._own_attention,
        )

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        self.check_windows(windows)
        if self._kv_cache_dtype is not None:
            from llmfit.decode.cached_scoring import score_windows_cached

            return score_windows_cached(
                self.model, windows, self._kv_cache_dtype, batch_tokens=batch_tokens, visit=visit
            )
        from llmfit.decode.torch_scoring import score_windows

        return score_windows(
            self.model, windows, batch_tokens=batch_tokens, pad_id=self._pad_id(), visit=visit
        )

    def close(self) -> None:
        """See ``LoadedModel.close``."""
        del self.model, self._linears

    def _pad_id(self) -> int:
        eos = self.tokenizer.eos_id or 0
        return eos if eos < self.vocab_size else 0  # added, and never given an embedding


def _unused(model: nn.Module) -> tuple[str, ...]:
    """A note of tensors in the files that the model has no place for."""
    names = getattr(model, "llmfit_unused_tensors", ())
    if not names:
        return ()
    return (f"{len(names)} tensors of the files are not the model's, {names[0]} among them",)


def _with_cache(info: LoadInfo, model: nn.Module, dtype: KvCacheDtype) -> LoadInfo:
    """``info`` with what the quantised KV cache is; raises ModelLoadError where there is none."""
    from llmfit.decode.quantized_cache import describe, quantized_cache

    quantized_cache(model, dtype)
    kernel = replace(info.kernel, attention=f"{info.kernel.attention}, KV {dtype} (hqq)")
    return replace(info, kernel=kernel, notes=(*info.notes, describe(model, dtype)))


def load_causal_lm(path: str, plan: Plan, *, attention: str, **options: Any) -> nn.Module:
    """``AutoModelForCausalLM`` from a folder, in bf16, on the plan's device, in eval mode.

    ``options`` go to ``from_pretrained`` (a quantisation config or a device map, say). Only
    safetensors are read, and code of the model's own is run only where the plan trusts it. Raises
    ModelLoadError, also for missing tensors and for a plan of synthetic weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quieten_bitsandbytes()
    if plan.weights == "synthetic":  # never real ones in their place
        raise ModelLoadError(
            f"row {plan.backend} makes no synthetic weights: its format is not packed here.",
            hint="--weights real, or --backends without it",
        )
    if not any(Path(path).glob("*.safetensors")):
        raise ModelLoadError(
            f"{path} holds no *.safetensors weights.",
            hint="another folder; or --allow-pickle where the hub has pickles alone",
        )
    check_configs(Path(path))
    if path == plan.model.path:
        _require_enough(plan.model)
    with LibraryErrors(f"transformers cannot load {path}", folder=path), on_gpus_alone(plan):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.bfloat16,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=plan.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
            **{**placement(plan), **options},
        )
    _require_all(path, report)
    model.eval()
    return_outputs_alone(model)
    model.llmfit_unused_tensors = tuple(sorted(report["unexpected_keys"]))
    module: nn.Module = model
    return module


def _require_all(path: str, report: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for tensors that transformers has filled with random numbers."""
    hint = "all files of the checkpoint, and the config.json that belongs to them"
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise ModelLoadError(
            f"{path}: the tensor {name} has the shape {list(stored)}, by config.json it is "
            f"{list(wanted)}.",
            hint=hint,
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelLoadError(
            f"{path} lacks {len(absent)} tensors of the model, {absent[0]} among them.", hint=hint
        )


def _require_enough(spec: ModelSpec) -> None:
    """Raise ModelLoadError where the files hold far fewer values than the config tells of.

    transformers would make those that are missing, of whatever size, before it says so.
    """
    if spec.quantization is not None or spec.parameters is None or spec.shape is None:
        return
    if spec.shape.basis == "architecture" and spec.parameters < _ENOUGH * spec.shape.parameters:
        raise ModelLoadError(
            f"{spec.path} lacks tensors of the model: its files hold {spec.parameters} values, "
            f"config.json tells of {spec.shape.parameters}.",
            hint="all files of the checkpoint, and the config.json that belongs to them",
        )


_OTHER_SHAPES = "the unquantised model, which is then quantised to shapes that the kernel takes"


def run_one_token(model: nn.Module, *, hint: str = _OTHER_SHAPES) -> None:
    """Run one token, so that loading and not the first prompt pays for unpacking and repacking.

    Raises ModelLoadError with ``hint`` where a kernel is missing or cannot take the model.
    """
    import torch

    ids = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.inference_mode():
            model(ids, use_cache=False)
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as exc:
        raise ModelLoadError(
            f"the kernel {linear_kernel(model)} cannot run this model: {exc}",
            hint=hint,
        ) from exc


def plan_config(plan: Plan) -> Any:
    """transformers' config of the plan's model; without its files where weights are synthetic.

    Raises ModelLoadError or ModelNotFound.
    """
    from transformers import AutoConfig

    what = f"transformers cannot read the config of {plan.model.name}"
    with LibraryErrors(what, folder=plan.model.path):
        if plan.weights == "synthetic":
            return AutoConfig.for_model(**config_of(plan.model))
        return AutoConfig.from_pretrained(plan.model.path, trust_remote_code=plan.trust_remote_code)


def fused_attention(config: Any) -> tuple[str, tuple[str, ...]]:
    """``sdpa``, or ``eager`` with a note where the architecture has no fused attention.

    For rows whose point is the weights' format. Gemma-2's capped scores, say, suit no fused kernel.
    Raises ModelLoadError for a ``config`` of transformers that is of no causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config).__module__.startswith("transformers_modules."):
        return "eager", ("eager attention: the model's own code is not asked for a fused one",)
    try:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError as exc:
        raise ModelLoadError(
            f"transformers knows no causal language model for {type(config).__name__}."
        ) from exc
    if getattr(kind, "_supports_sdpa", False):
        return "sdpa", ()
    return "eager", (f"eager attention: {kind.__name__} has no fused one",)


def quieten_bitsandbytes() -> None:
    """Without its warnings, which records tell: that CUDA is missing, and at each product of
    LLM.int8() that inputs are made float16, which takes time itself.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def require_quantized(share: float, plan: Plan) -> None:
    """Raise ModelLoadError for a model of which nothing was quantised: no row of the format."""
    if share == 0:
        raise ModelLoadError(
            f"nothing of {plan.model.name} is quantised by {plan.backend}, which replaces only "
            "layers of PyTorch's Linear class.",
            hint=f"--backends without {plan.backend}",
        )


def share_note(share: float) -> str:
    """How much of the model a quantised row really quantises, for its notes."""
    return f"{format_percent(share)} of parameters quantised"


def linear_classes(model: nn.Module) -> Counter[str]:
    """Class names of the linear layers inside the decoder blocks, with their counts.

    A linear layer is a module whose class name has "linear" in it; output head and embeddings
    are left out.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    return Counter(
        type(module).__name__
        for module in model.modules()
        if module is not head and "linear" in type(module).__name__.lower()
    )


def linear_kernel(model: nn.Module) -> str:
    """The linear layers' class names, the most frequent first: ``Linear4bit + Linear``."""
    return " + ".join(name for name, _ in linear_classes(model).most_common()) or "none"


def load_plain(plan: Plan, *, attention: str, compiled: bool = False) -> HfModel:
    """The unquantised rows: bf16 weights with the attention kernel ``eager`` or ``sdpa``."""
    notes: tuple[str, ...] = ()
    if plan.weights == "synthetic":
        model = random_causal_lm(plan, plan_config(plan), attention=attention)
        notes = (SYNTHETIC_NOTE,)
    else:
        model = load_causal_lm(plan.model.path, plan, attention=attention)
        if plan.model.dtype not in (None, "bfloat16"):
            notes = (f"weights stored in {plan.model.dtype}, run in bfloat16",)
    notes += require_on_gpus(model, plan)
    linear = linear_kernel(model)
    if compiled:
        from llmfit.decode.graph_step import COMPILED_NOTE

        linear += " (torch.compile)"
        notes += (COMPILED_NOTE,)
    info = LoadInfo(
        kernel=Kernel(linear=linear, attention=attention),
        dtype="bfloat16",
        weights_bytes=weights_bytes(model),
        quantized_share=0.0,
        notes=notes,
    )
    return HfModel(
        model,
        tokenizer=tokenizer_of(plan),
        info=info,
        context_length=plan.model.max_position_embeddings,
        compiled=compiled,
        kv_cache_dtype=plan.kv_cache_dtype,
        # The reference row runs PyTorch's kernels alone.
        own_kernels=compiled or (attention == "sdpa" and plan.device == "cpu"),
        own_attention=compiled,
    )
