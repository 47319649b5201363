"""What the Transformers backends share: loading, and the loaded model around it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfit.backends._tokenizer import load_tokenizer
from llmfit.backends.base import Backend, LoadedModel, LoadInfo, Tokenizer
from llmfit.errors import EvaluationError, ModelLoadError, UsageError
from llmfit.records import Kernel, Plan
from llmfit.units import format_percent

if TYPE_CHECKING:
    from torch import nn

    from llmfit.decode.base import Decoder, LogitsVisitor, Window, WindowScore


class TorchBackend(Backend):
    """What the backends that run a transformers model have in common."""

    def prepare(self, plan: Plan) -> None:
        """As the base; also imports the model's own class and wakes the matrix library."""
        super().prepare(plan)
        import torch
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

        del AutoTokenizer  # transformers imports a class's module when its name is first read
        torch.nn.functional.linear(*torch.ones(2, 64, 64, dtype=torch.bfloat16))
        with suppress(OSError, ValueError, KeyError):  # load meets the same and says it properly
            MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(plan.model.path))]


class HfModel(LoadedModel):
    """A transformers causal language model in memory, whatever its linear layers are."""

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Tokenizer,
        info: LoadInfo,
        compiled: bool = False,
    ) -> None:
        config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.vocab_size = int(config.vocab_size)
        self.context_length = int(config.max_position_embeddings)
        self._compiled = compiled

    def decoder(self, *, batch: int, capacity: int) -> Decoder:
        """See ``LoadedModel.decoder``."""
        from llmfit.decode.torch_decoder import TorchDecoder

        if capacity > self.context_length:
            raise UsageError(
                f"{capacity} tokens a sequence are asked for, the model's context is "
                f"{self.context_length}.",
                hint="fewer prompt or new tokens",
            )
        return TorchDecoder(
            self.model,
            batch=batch,
            capacity=capacity,
            pad_id=self._pad_id(),
            compiled=self._compiled,
        )

    def score(
        self, windows: Sequence[Window], *, batch_tokens: int, visit: LogitsVisitor | None = None
    ) -> Iterator[WindowScore]:
        """See ``LoadedModel.score``."""
        from llmfit.decode.torch_scoring import score_windows

        longest = max((len(window.ids) - 1 for window in windows), default=0)  # fed, not predicted
        if longest > self.context_length:
            raise EvaluationError(
                f"a window of {longest} tokens exceeds the model's context of "
                f"{self.context_length}.",
                hint="a smaller --ppl-window",
            )
        return score_windows(
            self.model, windows, batch_tokens=batch_tokens, pad_id=self._pad_id(), visit=visit
        )

    def close(self) -> None:
        """See ``LoadedModel.close``."""
        del self.model

    def _pad_id(self) -> int:
        return self.tokenizer.eos_id or 0


def load_causal_lm(path: str, plan: Plan, *, attention: str, **options: Any) -> nn.Module:
    """``AutoModelForCausalLM`` from a folder, in bf16, on the plan's device, in eval mode.

    ``options`` go to ``from_pretrained`` (a quantisation config, say). Only safetensors are
    read and no code of the model's own is run. Raises ModelLoadError.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if plan.device == "cpu":
        _be_quiet()
    if not any(Path(path).glob("*.safetensors")):
        raise ModelLoadError(
            f"{path} holds no *.safetensors weights.",
            hint="convert the weights to safetensors, or name another folder",
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.bfloat16,
            attn_implementation=attention,
            device_map={"": plan.device},
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as exc:
        raise ModelLoadError(
            f"transformers cannot load {path}: {type(exc).__name__}: {exc}",
        ) from exc
    model.eval()
    module: nn.Module = model
    return module


def fused_attention(path: str) -> tuple[str, tuple[str, ...]]:
    """``sdpa``, or ``eager`` with a note where the architecture has no fused attention.

    For rows whose point is the weights' format. Gemma-2's capped scores, say, suit no fused kernel.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(path))]
    except (OSError, ValueError, KeyError) as exc:
        raise ModelLoadError(
            f"transformers knows no causal language model in {path}: {type(exc).__name__}: {exc}"
        ) from exc
    if getattr(kind, "_supports_sdpa", False):
        return "sdpa", ()
    return "eager", (f"eager attention: {kind.__name__} has no fused one",)


def _be_quiet() -> None:
    """bitsandbytes warns on every CPU load that CUDA is missing; the record says the device."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


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


def weights_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, a tied tensor counted once.

    bitsandbytes keeps block statistics beside its parameters (``quant_state``, ``SCB``); they
    are counted too.
    """
    seen: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if hasattr(tensor, "untyped_storage"):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()

    for tensor in [*model.parameters(), *model.buffers()]:
        add(tensor)
        add(getattr(tensor, "SCB", None))
        state = getattr(tensor, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code"):
                add(getattr(part, name, None))
    return sum(seen.values())


def load_plain(plan: Plan, *, attention: str, compiled: bool = False) -> HfModel:
    """The unquantised rows: bf16 weights with the attention kernel ``eager`` or ``sdpa``."""
    model = load_causal_lm(plan.model.path, plan, attention=attention)
    linear = linear_kernel(model)
    notes: tuple[str, ...] = ()
    if plan.model.dtype not in (None, "bfloat16"):
        notes = (f"weights stored in {plan.model.dtype}, run in bfloat16",)
    if compiled:
        linear += " (torch.compile)"
        notes += ("only the decode step is compiled; prefill and scoring run uncompiled",)
    info = LoadInfo(
        kernel=Kernel(linear=linear, attention=attention),
        dtype="bfloat16",
        weights_bytes=weights_bytes(model),
        quantized_share=0.0,
        notes=notes,
    )
    return HfModel(model, tokenizer=load_tokenizer(plan.model.path), info=info, compiled=compiled)
